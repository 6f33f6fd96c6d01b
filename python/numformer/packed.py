"""Sequences of different lengths in one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Packed:
    """Sequences of different lengths, one after another in one array: there is no padding to keep or to compute.

    ``packed[i]`` is sequence i, a view; ``packed[i:j]`` packs those from i up to j.

    Parameters
    ----------
    values : (total, ...) array
        The sequences, one after another.
    cu_seqlens : (sequences + 1,) integers
        Where each begins, and the total: sequence s is ``values[cu_seqlens[s] : cu_seqlens[s + 1]]``, as
        `numformer.attention_varlen` reads it. Lengths may be 0.

    Raises
    ------
    TypeError
        Where `cu_seqlens` does not hold integers.
    ValueError
        Where it does not run from 0 to the total, or decreases.

    Examples
    --------
    >>> import numpy as np
    >>> from numformer.data import Packed
    >>> packed = Packed.of([np.array([7, 8, 9]), np.array([5])])
    >>> packed.values, packed.cu_seqlens, packed.positions
    (array([7, 8, 9, 5]), array([0, 3, 4]), array([0, 1, 2, 0]))
    >>> packed.padded(0)
    array([[7, 8, 9],
           [5, 0, 0]])
    """

    __slots__ = ("cu_seqlens", "values")

    def __init__(self, values: Array, cu_seqlens: Array) -> None:
        starts = np.asarray(cu_seqlens)
        if starts.dtype.kind not in "iu":
            raise TypeError(f"Packed: cu_seqlens must be integers, got {starts.dtype}")
        if starts.ndim != 1 or not starts.size:
            raise ValueError(f"Packed: cu_seqlens must have shape (sequences + 1,), got {starts.shape}")
        if values.ndim < 1:
            raise ValueError("Packed: values must have shape (total, ...), got ()")
        if starts[0] != 0 or starts[-1] != len(values) or (starts[1:] < starts[:-1]).any():
            raise ValueError(
                f"Packed: cu_seqlens must run from 0 to the rows of values {len(values)}, not decreasing, got {starts}"
            )
        self.values = values
        self.cu_seqlens = starts.astype(np.int64, copy=False)

    @classmethod
    def of(cls, sequences: Sequence[Array]) -> Packed:
        """Pack sequences, of which there is at least one."""
        return cls(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]))

    @classmethod
    def cut(cls, rows: Array, lengths: Array) -> Packed:
        """Pack the first ``lengths[i]`` elements of each row i of (sequences, longest): what is padding is left out."""
        return cls(rows[np.arange(rows.shape[1]) < lengths[:, None]], np.append(0, np.cumsum(lengths)))

    @property
    def lengths(self) -> Array:
        """The length of each sequence."""
        return np.diff(self.cu_seqlens)

    @property
    def positions(self) -> Array:
        """The position of each row of `values` within its sequence."""
        return np.arange(len(self.values)) - np.repeat(self.cu_seqlens[:-1], self.lengths)

    def take(self, indices: Array) -> Packed:
        """Pack the sequences of these indices."""
        lengths = self.lengths[indices]
        starts = np.append(0, np.cumsum(lengths))
        rows = np.arange(starts[-1]) + np.repeat(self.cu_seqlens[indices] - starts[:-1], lengths)
        return Packed(self.values[rows], starts)

    def padded(self, fill: Any) -> Array:
        """Return the sequences as rows, (sequences, longest, ...), shorter ones filled at the end."""
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        rows = np.full((len(self), longest, *self.values.shape[1:]), fill, self.values.dtype)
        rows[np.arange(longest) < lengths[:, None]] = self.values
        return rows

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.cu_seqlens) - 1

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> Packed: ...
    def __getitem__(self, index: int | slice) -> Array | Packed:
        """Return a sequence, or some of them packed."""
        starts = self.cu_seqlens
        if not isinstance(index, slice):
            number = range(len(self))[index]
            return self.values[starts[number] : starts[number + 1]]
        first, stop, step = index.indices(len(self))
        if step != 1:
            return self.take(np.arange(first, stop, step))
        stop = max(first, stop)
        return Packed(self.values[starts[first] : starts[stop]], starts[first : stop + 1] - starts[first])

    def __repr__(self) -> str:
        """Say the lengths."""
        return f"Packed({self.values.dtype}, lengths {self.lengths.tolist()})"
