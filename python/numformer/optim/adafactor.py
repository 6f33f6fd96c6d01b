"""Adafactor: the squares of a matrix's gradient are kept as the means of its rows and columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import ops
from numformer.nn import Parameter
from numformer.ops import dispatch
from numformer.ops.memory import namespace
from numformer.optim.optimizer import Group, Optimizer, number, store_copies

Array = NDArray[Any]

PIECE = 1 << 17
"""Numbers that are worked on at a time: scratch of 512 KiB stays in the cache between the passes."""


class Adafactor(Optimizer):
    """Adafactor: Adam without momentum, whose second moments take R + C numbers for R x C weights instead of R C.

    With b = step**beta2_decay, rows R and columns C become (1 - b) R + b mean(g^2 over the columns), likewise C;
    V = R C / mean(R); u = g / sqrt(V); value -= lr_t * max(eps2, rms(value)) * u / max(1, rms(u) / d), where
    lr_t = min(lr, 1 / sqrt(step)). A vector keeps V itself. The rule is that of ``torch.optim.Adafactor``.

    Parameters
    ----------
    parameters : list of Parameter or of Group
        What is trained.
    lr : float
        Largest step, relative to the size of a parameter.
    beta2_decay : float
        At most 0: how fast the means become slow.
    eps : (float or None, float)
        Keeps squares away from 0 (None: the distance from 1 to the next number of the dtype), and the smallest size
        of a parameter.
    d : float
        At least 1: updates whose root mean square is above it are scaled down.
    weight_decay : float
        Of parameters that are given without a group; decoupled, as in AdamW.
    clip_norm : float, optional
        Largest norm of the gradients.

    References
    ----------
    N. Shazeer, M. Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018.
    """

    slots: tuple[str, ...] = ("rows", "columns")
    elementwise: bool = False

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Group],
        *,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        if not (math.isfinite(beta2_decay) and beta2_decay <= 0):
            raise ValueError(f"Adafactor: beta2_decay must be at most 0, got {beta2_decay}")
        if not (math.isfinite(d) and d >= 1):
            raise ValueError(f"Adafactor: d must be at least 1, got {d}")
        self.beta2_decay, self.d = float(beta2_decay), float(d)
        self.eps1 = None if eps[0] is None else number("Adafactor", "eps[0]", eps[0])
        self.eps2 = number("Adafactor", "eps[1]", eps[1])
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, clip_norm=clip_norm)

    def _new_state(self, slot: str, value: Array) -> Array:
        if value.ndim < 2:  # squares themselves, and nothing
            shape = value.shape if slot == "rows" else (0,)
        else:
            shape = value.shape[:-1] if slot == "rows" else (*value.shape[:-2], value.shape[-1])
        zeros: Array = namespace(value).zeros(shape, value.dtype)
        return zeros

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
        blend, rate = step**self.beta2_decay, min(lr, step**-0.5)
        if (backend := dispatch.backend_of(values[0])) is not None:
            eps = float(np.finfo(values[0].dtype).eps) if self.eps1 is None else self.eps1
            options = lr, blend, rate, eps, self.eps2, self.d, weight_decay
            backend.adafactor_update(values, grads, *state, *options, grad_scale, copies)
            return
        for value, grad, rows, columns in zip(values, grads, *state, strict=True):
            if value.size == 0:
                continue
            eps = float(np.finfo(value.dtype).eps) if self.eps1 is None else self.eps1
            size = max(self.eps2, _rms([value], value.size))
            matrices = [_Matrix(*arrays) for arrays in _matrices(value, grad, rows, columns)]
            for matrix in matrices:
                matrix.blend(blend, grad_scale)
            spread = _rms((u for matrix in matrices for _, u in matrix.updates(eps, grad_scale)), value.size)
            factor = rate * size / max(1.0, spread / self.d)
            for matrix in matrices:
                for place, update in matrix.updates(eps, grad_scale):
                    update *= factor
                    matrix.value[place] *= 1.0 - lr * weight_decay
                    matrix.value[place] -= update
        store_copies(values, copies)


def _matrices(value: Array, grad: Array, rows: Array, columns: Array) -> Iterator[tuple[Array, Array, Array, Any]]:
    """Walk over a stack of matrices; a vector is one column, each row of which has its own square."""
    if value.ndim < 2:
        yield value.reshape(-1, 1), grad.reshape(-1, 1), rows.reshape(-1), None
        return
    height, width = value.shape[-2:]
    every = value.reshape(-1, height, width), grad.reshape(-1, height, width)
    yield from zip(*every, rows.reshape(-1, height), columns.reshape(-1, width), strict=True)


def _rms(arrays: Iterable[Array], count: int) -> float:
    return math.sqrt(sum(float(ops.global_norm([array])) ** 2 for array in arrays) / count)


class _Matrix:
    """A matrix, its gradient, and the means of the squares of that; worked on in pieces of whole rows."""

    def __init__(self, value: Array, grad: Array, rows: Array, columns: Array | None) -> None:
        self.value, self.grad, self.rows, self.columns = value, grad, rows, columns
        self.height = max(1, PIECE // value.shape[1])
        self.scratch = np.empty((min(self.height, len(value)), value.shape[1]), value.dtype)

    def _pieces(self) -> Iterator[tuple[slice, Array]]:
        for first in range(0, len(self.value), self.height):
            place = slice(first, min(first + self.height, len(self.value)))
            yield place, self.scratch[: place.stop - first]

    def blend(self, share: float, scale: float) -> None:
        """Let the squares of the gradient into the means."""
        height, width = self.value.shape
        total = np.zeros(width, self.value.dtype)
        for place, squares in self._pieces():
            np.multiply(self.grad[place], scale, out=squares)
            np.square(squares, out=squares)
            total += squares.sum(axis=0)
            self.rows[place] += share * (squares.mean(axis=1) - self.rows[place])
        if self.columns is not None:
            self.columns += share * (total / height - self.columns)

    def updates(self, eps: float, scale: float) -> Iterator[tuple[slice, Array]]:
        """Make the update of each piece, in memory that the next one overwrites."""
        mean = max(float(self.rows.mean()), eps)
        for place, update in self._pieces():
            rows = self.rows[place][:, None]
            if self.columns is None:
                update[...] = rows
            else:
                np.multiply(rows / mean, self.columns, out=update)
            np.maximum(update, eps * eps, out=update)
            np.sqrt(update, out=update)
            np.divide(self.grad[place], update, out=update)
            update *= scale
            yield place, update
