"""Keys and values of what was read already."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.ops.dispatch import core
from numformer.ops.memory import namespace

Array = NDArray[Any]
_ALL = slice(None)


class KVCache:
    """Keys and values of one attention layer, for generation token by token.

    Positions are appended in place. Room is made ahead and doubles when it is full, so that n tokens cost O(n) copying.
    With a window, what lies further back is given up, and memory stays bounded. A cache is for one thread at a time.

    Parameters
    ----------
    capacity : int
        Positions to make room for at first.
    window : int, optional
        How many positions before the new ones are kept: all that ``attention(..., window=(window, None))`` needs.

    Attributes
    ----------
    length : int
        Positions that were appended, given up or not: the index of the next one.

    Raises
    ------
    TypeError, ValueError
        If `capacity` or `window` is not an integer, or is negative.
    RuntimeError
        From :meth:`append` and :meth:`select` while another thread is in one of them.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> cache, x = nf.KVCache(), np.ones((1, 2, 1, 8))  # batch, heads, positions, size
    >>> for _ in range(3):  # q, k and v of one position each
    ...     out = nf.attention(x, *cache.append(x, x), causal=True)
    >>> cache.length, out.shape
    (3, (1, 2, 1, 8))
    """

    def __init__(self, capacity: int = 64, *, window: int | None = None) -> None:
        for name, value in (("capacity", capacity), ("window", 0 if window is None else window)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"KVCache: {name} must be an int, got {type(value).__name__}")
            if value < 0:
                raise ValueError(f"KVCache: {name} must not be negative, got {value}")
        self.length = 0
        self.window = window
        self._capacity = max(1, capacity)
        self._first = self._end = 0  # of what is held, in the arrays
        self._keys: Array | None = None
        self._values: Array | None = None
        self._spare: Array | None = None
        # Whoever changes the cache holds the one item: to pop it is atomic, with the GIL and without, and unlike a
        # lock a list can be copied with the cache.
        self._turn: list[None] = [None]

    def _take_turn(self) -> None:
        try:
            self._turn.pop()
        except IndexError:
            raise RuntimeError("KVCache: another thread is changing it; use one cache for each thread") from None

    def append(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Add positions and return views of all that are held, the new ones last.

        Parameters
        ----------
        k, v : (..., n, size) arrays
            Of the dtypes and sizes, apart from n, of the first call.

        Returns
        -------
        keys, values : (..., positions, size) arrays
            Valid until the next call.

        Raises
        ------
        ValueError
            If shapes or dtypes differ from what is held, or k and v are not as many.
        RuntimeError
            While another thread changes the cache.
        """
        self._take_turn()
        try:
            return self._append(k, v)
        finally:
            self._turn.append(None)

    def _append(self, k: Array, v: Array) -> tuple[Array, Array]:
        if type(k) is not np.ndarray or type(v) is not np.ndarray or self._keys is None:
            k, v = core.as_array("KVCache", "k", k), core.as_array("KVCache", "v", v)
        shape = k.shape
        if len(shape) < 2 or shape[:-1] != v.shape[:-1]:
            raise ValueError(
                f"KVCache: k and v must have shapes (..., n, size) that agree but for size, got {k.shape} and {v.shape}"
            )
        self._check("k", self._keys, k)
        self._check("v", self._values, v)
        n = shape[-2]
        if self.window is not None:
            self._first = max(self._first, self._end - self.window)
        if self._keys is None or self._end + n > self._keys.shape[-2]:
            self._make_room(k, v)
        keys, values, end = self._keys, self._values, self._end + n
        assert keys is not None and values is not None
        new, held = (..., slice(self._end, end), _ALL), (..., slice(self._first, end), _ALL)
        keys[new], values[new] = k, v
        self._end = end
        self.length += n
        return keys[held], values[held]

    def select(self, rows: Array) -> None:
        """Keep the sequences of these indices, in this order; one may come several times (the beams of a search).

        Raises
        ------
        ValueError
            If `rows` is not a vector of whole numbers from 0 to the number of sequences less 1.
        RuntimeError
            While another thread changes the cache.
        """
        self._take_turn()
        try:
            self._select(rows)
        finally:
            self._turn.append(None)

    def _select(self, rows: Array) -> None:
        if self._keys is not None and self._values is not None:
            rows, count = np.asarray(rows), self._keys.shape[0]
            if (
                rows.ndim != 1
                or rows.dtype.kind not in "iu"
                or (rows.size and not 0 <= rows.min() <= rows.max() < count)
            ):
                raise ValueError(f"KVCache.select: rows must be a vector of indices below {count}, got {rows!r}")
            self._keys = self._selected(self._keys, rows)
            self._values = self._selected(self._values, rows)

    def _selected(self, held: Array, rows: Array) -> Array:
        """Copy whole sequences into the array that the last call left, where it fits: a fresh one has cold pages."""
        xp = namespace(held)
        if xp is not np:  # its pool keeps what is let go
            chosen: Array = xp.take(held, xp.asarray(rows), axis=0)
            return chosen
        spare, shape = self._spare, (len(rows), *held.shape[1:])
        if spare is None or spare.shape != shape or spare.dtype != held.dtype:
            spare = np.empty(shape, held.dtype)
        np.take(held, rows, axis=0, out=spare, mode="clip")  # the other modes copy once more
        self._spare = held
        return spare

    @staticmethod
    def _check(name: str, held: Array | None, new: Array) -> None:
        if held is None:
            return
        ours, theirs = held.shape, new.shape
        if held.dtype != new.dtype or ours[-1] != theirs[-1] or ours[:-2] != theirs[:-2]:
            core.as_array("KVCache", name, new)  # which says so where nothing of its dtype is ever held
            raise ValueError(
                f"KVCache: it holds {held.dtype} of batch and heads {held.shape[:-2]} and size {held.shape[-1]}, "
                f"got {new.dtype} of {new.shape[:-2]} and {new.shape[-1]}; use one cache for each batch of sequences"
            )

    def _make_room(self, k: Array, v: Array) -> None:
        """Move what is held to the front of arrays with room for the new positions."""
        self._keys, self._values = self._moved(self._keys, k), self._moved(self._values, v)
        self._first, self._end = 0, self._end - self._first

    def _moved(self, held: Array | None, new: Array) -> Array:
        n, kept = new.shape[-2], self._end - self._first
        if held is None:
            return namespace(new).empty((*new.shape[:-2], max(n, self._capacity), new.shape[-1]), new.dtype)
        capacity = held.shape[-2]
        to = held
        if 2 * (kept + n) > capacity:  # else it is moved at most once in as many positions as are kept
            to = namespace(new).empty((*new.shape[:-2], max(2 * (kept + n), capacity), new.shape[-1]), new.dtype)
        to[..., :kept, :] = held[..., self._first : self._end, :]
        return to
