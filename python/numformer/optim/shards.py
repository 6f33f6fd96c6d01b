"""Optimizer state that is divided among processes (S. Rajbhandari et al., "ZeRO", SC 2020, stage 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numformer.nn import Parameter

Array = NDArray[Any]


class Shards(Protocol):
    """Which part of each parameter is whose, and what those who share them do together.

    All methods but :meth:`piece` are called by all processes, in the same order.
    """

    def piece(self, parameter: Parameter) -> slice:
        """Return this process's part of a parameter, as numbers of the flat array."""
        ...

    def norm(self, mine: float) -> float:
        """Return the norm of all pieces from that of one's own."""
        ...

    def whole(self, mine: Array, shape: tuple[int, ...]) -> Array | None:
        """Return an array from its pieces where it is to be written, None elsewhere."""
        ...

    def spread(self) -> None:
        """Give everybody the new values of one's own pieces."""
        ...


class Part:
    """A process's part of a parameter, and of what is kept of it.

    Parameters
    ----------
    piece : slice
        Numbers of the flat parameter.
    size : int
        How many it has.
    """

    __slots__ = ("empty", "piece")

    def __init__(self, piece: slice, size: int) -> None:
        self.empty = piece.start >= piece.stop
        self.piece = None if (piece.start, piece.stop) == (0, size) else piece

    def of(self, array: Array) -> Array:
        """Return the part of an array, a view; the array as it is where that is all of it."""
        return array if self.piece is None else array.reshape(-1)[self.piece]


def cut(owner: str, state: Mapping[str, Array], parts: dict[str, tuple[Part, tuple[int, ...]]]) -> dict[str, Array]:
    """Return the parts of a whole state; ValueError where an array is not of the shape that has these parts."""
    found = dict(state)
    for name, (part, shape) in parts.items():
        if name in state:
            if np.shape(state[name]) != shape:
                raise ValueError(
                    f"load_state_dict: the entries do not fit {owner}: {name} must have shape {shape}, "
                    f"got {np.shape(state[name])}"
                )
            found[name] = part.of(np.asarray(state[name]))
    return found
