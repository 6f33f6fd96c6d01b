"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from numpy.typing import NDArray

from numformer import ops
from numformer.nn import Parameter
from numformer.optim.optimizer import Group, Optimizer, number

Array = NDArray[Any]


class Adam(Optimizer):
    """Adam (Kingma, Ba, 2015), in one pass over memory; the decay is part of the gradient.

    With g = gradient + weight_decay * value: m = beta1 * m + (1 - beta1) * g and v = beta2 * v + (1 - beta2) * g**2,
    both corrected for their start at 0, and value -= lr * m / (sqrt(v) + eps).

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained.
    lr : float
        Learning rate.
    betas : (float, float)
        beta1 and beta2, in [0, 1).
    eps : float
        Keeps the quotient finite.
    weight_decay : float
        Of parameters that are given without a group.
    clip_norm : float, optional
        Largest norm of the gradients.
    """

    slots: tuple[str, ...] = ("m", "v")
    _rule: ClassVar[Callable[..., None]] = staticmethod(ops.adam_update)

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        owner = type(self).__name__
        self.beta1 = number(owner, "beta1", betas[0], 0.0, 1.0)
        self.beta2 = number(owner, "beta2", betas[1], 0.0, 1.0)
        self.eps = number(owner, "eps", eps)
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
        type(self)._rule(
            values,
            grads,
            *state,
            lr=lr,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=weight_decay,
            step=step,
            grad_scale=grad_scale,
            copies=copies,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov, Hutter, 2019).

    As :class:`Adam`, but without the decay in g: value -= lr * (m / (sqrt(v) + eps) + weight_decay * value).

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained; :func:`decay_groups` makes groups that spare biases and norms the decay.
    lr : float
        Learning rate.
    betas : (float, float)
        beta1 and beta2, in [0, 1).
    eps : float
        Keeps the quotient finite.
    weight_decay : float
        Of parameters that are given without a group.
    clip_norm : float, optional
        Largest norm of the gradients.
    """

    _rule: ClassVar[Callable[..., None]] = staticmethod(ops.adamw_update)

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, clip_norm=clip_norm)
