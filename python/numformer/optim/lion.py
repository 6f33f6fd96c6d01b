"""Lion: steps of one size, whose signs a momentum decides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import ops
from numformer.nn import Parameter
from numformer.ops import dispatch
from numformer.optim.optimizer import Group, Optimizer, number, store_copies

Array = NDArray[Any]

PIECE = 1 << 17
"""Numbers that are worked on at a time: four arrays of 512 KiB stay in the caches between the passes."""


class Lion(Optimizer):
    """Lion: each number moves by `lr`, in the direction that a momentum and the gradient decide.

    value -= lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * value), then m = beta2 * m + (1 - beta2) * g.
    It keeps one number for each weight, AdamW two; its learning rate is a third to a tenth of AdamW's, and its weight
    decay as much larger.

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained.
    lr : float
        Learning rate.
    betas : (float, float)
        beta1 and beta2, in [0, 1).
    weight_decay : float
        Of parameters that are given without a group.
    clip_norm : float, optional
        Largest norm of the gradients.

    References
    ----------
    X. Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, algorithm 2.
    """

    slots: tuple[str, ...] = ("m",)

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        self.beta1 = number("Lion", "beta1", betas[0], 0.0, 1.0)
        self.beta2 = number("Lion", "beta2", betas[1], 0.0, 1.0)
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
        if (backend := dispatch.backend_of(values[0])) is not None:
            betas = self.beta1, self.beta2
            backend.lion_update(values, grads, state[0], lr, *betas, weight_decay, grad_scale, copies)
            return
        scratch = np.empty(PIECE, values[0].dtype)
        for arrays in zip(values, grads, state[0], strict=True):
            flat = [array.reshape(-1) for array in arrays]
            for first in range(0, len(flat[0]), PIECE):
                value, grad, m = ([array[first : first + PIECE]] for array in flat)
                sign = [scratch[: len(m[0])]]
                # x += (1 - beta) * (scale * grad - x) is descent along x - scale * grad, which has a kernel.
                np.copyto(sign[0], m[0])
                ops.sgd_update(sign, grad, None, lr=1 - self.beta1, weight_decay=1.0, grad_scale=-grad_scale)
                np.sign(sign[0], out=sign[0])
                ops.sgd_update(value, sign, None, lr=lr, weight_decay=weight_decay)
                ops.sgd_update(m, grad, None, lr=1 - self.beta2, weight_decay=1.0, grad_scale=-grad_scale)
        store_copies(values, copies)
