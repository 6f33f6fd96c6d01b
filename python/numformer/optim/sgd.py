"""Gradient descent, plain and with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from numformer import ops
from numformer.nn import Parameter
from numformer.optim.optimizer import Group, Optimizer, number

Array = NDArray[Any]


class GradientDescent(Optimizer):
    """value -= lr * (gradient + weight_decay * value).

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained.
    lr : float
        Learning rate.
    weight_decay : float
        Added to the gradient, times the value.
    clip_norm : float, optional
        Largest norm of the gradients.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float = 0.1,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def _update(
        self,
        values: list[Array],
        grads: list[Array],
        state: list[list[Array]],
        *,
        lr: float,
        weight_decay: float,
        step: int,
        grad_scale: float,
        copies: list[Array | None] | None,
    ) -> None:
        ops.sgd_update(values, grads, None, lr=lr, weight_decay=weight_decay, grad_scale=grad_scale, copies=copies)


class SGD(Optimizer):
    """With momentum: m = momentum * m + gradient; value -= lr * m.

    With `nesterov`, value -= lr * (gradient + momentum * m) instead (Sutskever et al., 2013).

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained.
    lr : float
        Learning rate.
    momentum : float
        In [0, 1).
    nesterov : bool
        Look ahead.
    weight_decay : float
        Added to the gradient, times the value.
    clip_norm : float, optional
        Largest norm of the gradients.
    """

    slots: tuple[str, ...] = ("momentum",)

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.momentum = number("SGD", "momentum", momentum, 0.0, 1.0)
        if nesterov and momentum == 0:
            raise ValueError("SGD: nesterov needs a momentum above 0, got 0")
        self.nesterov = nesterov
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def _update(
        self,
        values: list[Array],
        grads: list[Array],
        state: list[list[Array]],
        *,
        lr: float,
        weight_decay: float,
        step: int,
        grad_scale: float,
        copies: list[Array | None] | None,
    ) -> None:
        ops.sgd_update(
            values,
            grads,
            state[0],
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
            copies=copies,
        )
