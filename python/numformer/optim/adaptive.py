"""Adagrad and RMSprop: the step of each number is divided by the size of its gradients so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from numformer import ops
from numformer.nn import Parameter
from numformer.optim.optimizer import Group, Optimizer, number

Array = NDArray[Any]


class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan, Singer, 2011): s += g**2; value -= lr * g / (sqrt(s) + eps).

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained.
    lr : float
        Learning rate.
    eps : float
        Keeps the quotient finite.
    initial : float
        What s is at the start.
    weight_decay : float
        Added to the gradient, times the value.
    clip_norm : float, optional
        Largest norm of the gradients.
    """

    slots: tuple[str, ...] = ("sum",)

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float = 0.01,
        eps: float = 1e-10,
        initial: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.eps = number("Adagrad", "eps", eps)
        initial = number("Adagrad", "initial", initial)
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)
        for array in self._state["sum"]:
            array.fill(initial)

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
        ops.adagrad_update(
            values,
            grads,
            state[0],
            lr=lr,
            eps=self.eps,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
            copies=copies,
        )


class RMSprop(Optimizer):
    """RMSprop (Tieleman, Hinton, 2012): s = alpha * s + (1 - alpha) * g**2; value -= lr * g / (sqrt(s) + eps).

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained.
    lr : float
        Learning rate.
    alpha : float
        How much of s is kept, in [0, 1).
    eps : float
        Keeps the quotient finite.
    momentum : float
        In [0, 1); above 0 the steps are summed as in :class:`SGD`.
    centered : bool
        Divide by the standard deviation instead: s less the square of the mean gradient (Graves, 2013).
    weight_decay : float
        Added to the gradient, times the value.
    clip_norm : float, optional
        Largest norm of the gradients.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.alpha = number("RMSprop", "alpha", alpha, 0.0, 1.0)
        self.eps = number("RMSprop", "eps", eps)
        self.momentum = number("RMSprop", "momentum", momentum, 0.0, 1.0)
        self.centered = centered
        self.slots = ("square", *(["mean"] if centered else []), *(["momentum"] if momentum else []))
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
        ops.rmsprop_update(
            values,
            grads,
            state[0],
            state[1] if self.centered else None,
            state[-1] if self.momentum else None,
            lr=lr,
            alpha=self.alpha,
            eps=self.eps,
            weight_decay=weight_decay,
            momentum=self.momentum,
            grad_scale=grad_scale,
            copies=copies,
        )
