"""Keys and values of what was read already."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class KVCache:
    """Keys and values of one attention layer, for generation token by token.

    Room is made ahead and doubles when it is full, so that n tokens cost O(n) copying.

    Parameters
    ----------
    capacity : int
        Positions to make room for at first.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.length = 0
        self._capacity = max(1, capacity)
        self._keys: Array | None = None
        self._values: Array | None = None
        self._spare: Array | None = None

    def append(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Add positions, (batch, heads, n, size) each, and return views of all there are."""
        start, end = self.length, self.length + k.shape[2]
        self._keys = self._room(self._keys, k, end)
        self._values = self._room(self._values, v, end)
        self._keys[:, :, start:end] = k
        self._values[:, :, start:end] = v
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def select(self, rows: Array) -> None:
        """Keep the sequences of these indices, in this order; one may come several times (the beams of a search)."""
        if self._keys is not None and self._values is not None:
            self._keys = self._selected(self._keys, rows)
            self._values = self._selected(self._values, rows)

    def _selected(self, held: Array, rows: Array) -> Array:
        """Copy whole sequences into the array that the last call left, where it fits: a fresh one has cold pages."""
        spare, shape = self._spare, (len(rows), *held.shape[1:])
        if spare is None or spare.shape != shape or spare.dtype != held.dtype:
            spare = np.empty(shape, held.dtype)
        np.take(held, rows, axis=0, out=spare, mode="clip")  # the other modes copy once more
        self._spare = held
        return spare

    def _room(self, held: Array | None, new: Array, end: int) -> Array:
        if held is not None and (held.shape[:2], held.shape[3], held.dtype) != (new.shape[:2], new.shape[3], new.dtype):
            raise ValueError(
                f"KVCache: it holds {held.dtype} of batch and heads {held.shape[:2]}, "
                f"got {new.dtype} of {new.shape[:2]}; use one cache for each batch of sequences"
            )
        if held is not None and end <= held.shape[2]:
            return held
        capacity = max(end, self._capacity if held is None else 2 * held.shape[2])
        grown = np.empty((*new.shape[:2], capacity, new.shape[3]), new.dtype)
        if held is not None:
            grown[:, :, : self.length] = held[:, :, : self.length]
        return grown
