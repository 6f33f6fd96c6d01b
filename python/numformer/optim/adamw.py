"""AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from numpy.typing import NDArray

from numformer import ops
from numformer.nn import Parameter
from numformer.optim.optimizer import Group, Optimizer, number

Array = NDArray[Any]


class AdamW(Optimizer):
    """Adam (Kingma, Ba, 2015) with decoupled weight decay (Loshchilov, Hutter, 2019), in one pass over memory.

    m = beta1 * m + (1 - beta1) * g and v = beta2 * v + (1 - beta2) * g**2, both corrected for their start at 0, and
    value -= lr * (m / (sqrt(v) + eps) + weight_decay * value).

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

    slots: ClassVar[tuple[str, ...]] = ("m", "v")

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
        self.beta1 = number("AdamW", "beta1", betas[0], 0.0, 1.0)
        self.beta2 = number("AdamW", "beta2", betas[1], 0.0, 1.0)
        self.eps = number("AdamW", "eps", eps)
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def _update(
        self,
        values: list[Array],
        grads: list[Array],
        state: list[list[Array]],
        lr: float,
        weight_decay: float,
        grad_scale: float,
    ) -> None:
        ops.adamw_update(
            values,
            grads,
            state[0],
            state[1],
            lr=lr,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=weight_decay,
            step=self.steps,
            grad_scale=grad_scale,
        )
