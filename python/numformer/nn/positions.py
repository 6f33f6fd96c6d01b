"""Positions, learned or of sines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.backward import Backward, take
from numformer.nn.context import Context
from numformer.nn.embedding import without_padding
from numformer.nn.module import Module
from numformer.nn.parameter import Parameter
from numformer.ops.memory import beside, device_of, indices

Array = NDArray[Any]


def _check(owner: str, x: Array, offset: int, length: int) -> int:
    if x.ndim < 2:
        raise ValueError(f"{owner}: x must have shape (..., positions, width), got {x.shape}")
    end = offset + x.shape[-2]
    if offset < 0 or end > length:
        raise ValueError(f"{owner}: there are {length} positions, got a sequence that ends at {end}")
    return end


class LearnedPositions(Module):
    """x plus a trained row for each position.

    Parameters
    ----------
    length, width : int
        Number of positions and size of a row.
    padding : int, optional
        The position of padding, where positions are given by number: its row gets no gradient.
    std : float
        Of the initial values.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, optional
        Draws the initial values.
    """

    def __init__(
        self,
        length: int,
        width: int,
        *,
        padding: int | None = None,
        std: float = 0.02,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        initial.size("LearnedPositions", length=length, width=width)
        self.length = length
        self.padding = padding
        self.weight = Parameter(initial.normal(rng, (length, width), std, dtype))

    def __call__(
        self, x: Array, *, offset: int = 0, ids: Array | None = None, ctx: Context | None = None
    ) -> tuple[Array, Backward]:
        """Return x with positions offset, offset + 1, ... added; ``backward(dy)`` gives dx, which is dy.

        `ids`, (batch, positions) or packed (total,), number the positions one by one instead.
        """
        ids = None if ids is None else self._beside(ids, x)
        y = self.infer(x, offset=offset, ids=ids)
        self.weight.pending += 1
        return y, Backward(self._backward, [offset, ids])

    def _backward(self, saved: list[Any], dy: Array) -> Array:
        offset, ids = take(saved)
        weight, length = self.weight, dy.shape[-2]
        if ids is not None:
            rows = without_padding(dy, ids, self.padding)
            ops.embedding_backward(rows, ids, self.length, out=weight.buffer(), accumulate=not weight.fresh)
            weight.done()
            return dy
        grad, fresh = weight.buffer(), weight.fresh
        if fresh:
            grad[:offset] = 0
            grad[offset + length :] = 0
        # Positions and channels are one long row here, so that the sum runs over the sequences.
        ops.sum_rows(
            dy.reshape(-1, length * dy.shape[-1]), out=grad[offset : offset + length].reshape(-1), accumulate=not fresh
        )
        weight.done()
        return dy

    def infer(self, x: Array, *, offset: int = 0, ids: Array | None = None) -> Array:
        """Return x with its positions added."""
        if ids is not None:
            return ops.add(x, ops.embedding(self._table(x), self._beside(ids, x)))
        end = _check("LearnedPositions", x, offset, self.length)
        return ops.add(x, self._table(x)[offset:end])

    def _beside(self, ids: Array, x: Array) -> Array:
        """Return the numbers where x is, those of the host too."""
        return indices("LearnedPositions", "ids", ids, self.length, x)

    def _table(self, x: Array) -> Array:
        """Return the table: float32 is added to 16 bits as it is."""
        value = self.weight.value
        return value if value.dtype == np.float32 and x.dtype.itemsize == 2 else self.weight.read(x.dtype)


class SinusoidalPositions(Module):
    """x plus sines and cosines of its position (Vaswani et al., 2017, section 3.5).

    Channel 2i holds sin(position / 10000**(2i / width)), channel 2i + 1 the cosine.

    Parameters
    ----------
    length, width : int
        Number of positions and channels.
    halves : bool
        All sines come first, then all cosines (Marian).
    """

    def __init__(self, length: int, width: int, *, halves: bool = False) -> None:
        initial.size("SinusoidalPositions", length=length, width=width)
        self.length, self.width, self.halves = length, width, halves
        self._rows = np.zeros((0, width))

    @property
    def table(self) -> Array:
        """All rows, in float64."""
        return self._sines(self.length)

    def _sines(self, end: int) -> Array:
        rate = 10000.0 ** (-(np.arange(self.width) // 2 * 2) / self.width)
        angle = np.arange(end)[:, None] * rate
        table: Array = np.where(np.arange(self.width) % 2 == 0, np.sin(angle), np.cos(angle))
        return np.concatenate([table[:, ::2], table[:, 1::2]], axis=1) if self.halves else table

    def _table(self, end: int, x: Array) -> Array:
        """Return at least `end` rows to add to x. They are made as they are used: `length` may be a file's word."""
        rows, kind = self._rows, np.dtype(np.float32) if x.dtype.itemsize == 2 else x.dtype
        if len(rows) < end or rows.dtype != kind or device_of(rows) != device_of(x):
            count = min(self.length, max(64, 2 * end, len(rows)))
            self._rows = rows = beside(self._sines(count).astype(kind), x)
        return rows

    def __call__(
        self, x: Array, *, offset: int = 0, ids: Array | None = None, ctx: Context | None = None
    ) -> tuple[Array, Backward]:
        """Return x with positions offset, offset + 1, ... added; ``backward(dy)`` gives dx, which is dy.

        `ids`, (batch, positions) or packed (total,), number the positions one by one instead.
        """
        return self.infer(x, offset=offset, ids=ids), Backward(self._backward, [])

    def _backward(self, saved: list[Any], dy: Array) -> Array:
        return dy

    def infer(self, x: Array, *, offset: int = 0, ids: Array | None = None) -> Array:
        """Return x with its positions added."""
        if ids is not None:
            # What a GPU holds is not asked for its largest: that would be to wait for it.
            last = int(np.max(ids, initial=0)) if device_of(ids) == "cpu" else self.length - 1
            rows = self._table(min(last + 1, self.length), x)
            return ops.add(x, ops.embedding(rows, indices("SinusoidalPositions", "ids", ids, self.length, x)))
        end = _check("SinusoidalPositions", x, offset, self.length)
        return ops.add(x, self._table(end, x)[offset:end])
