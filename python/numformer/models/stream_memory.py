"""What a model remembers of streams that are read segment after segment, one a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.ops.memory import beside, namespace, on_host

Array = NDArray[Any]


class StreamMemory:
    """Hidden states of every layer before the next segment of each stream.

    What a step computes is used by the steps after it, and not when the same step is made once more: a step that was
    interrupted between two micro-batches has left nothing.
    """

    def __init__(self) -> None:
        # By stream: which segment comes next, and the states of each layer, (positions, width).
        self._before: dict[int, tuple[int, list[Array]]] = {}
        self._new: dict[int, tuple[int, list[Array]]] = {}
        self._step = -1

    def read(self, places: Array, step: int, like: Array) -> list[Array]:
        """Return the states before these segments, (rows, positions, width) of each layer; none at their beginning.

        Parameters
        ----------
        places : array of integers
            (rows, 2): stream and segment.
        step : int
            Number of the training step.
        like : array
            In whose memory they are to be: what a checkpoint had is on the host.
        """
        if step != self._step:
            self._before |= self._new
            self._new, self._step = {}, step
        rows = [self._find(int(stream), int(segment)) for stream, segment in places]
        lengths = {len(row[0]) if row else 0 for row in rows}
        if len(lengths) > 1:
            raise ValueError(
                "TransformerXL: the rows of a batch must be equally far in their streams, got memories of "
                f"{', '.join(map(str, sorted(lengths)))} positions; let micro-batches divide the number of streams"
            )
        if lengths == {0}:
            return []
        return [
            namespace(like).stack([beside(one, like) for one in states], axis=0) for states in zip(*rows, strict=True)
        ]

    def _find(self, stream: int, segment: int) -> list[Array]:
        for known in (self._new, self._before):
            if stream in known and known[stream][0] == segment and segment > 0:
                return known[stream][1]
        return []

    def write(self, places: Array, states: list[Array]) -> None:
        """Keep the states before the segments that come next."""
        for row, (stream, segment) in enumerate(places):
            self._new[int(stream)] = (int(segment) + 1, [layer[row] for layer in states])

    def state(self, step: int) -> dict[str, Array]:
        """Return what a run that goes on at `step` needs: arrays (layers, positions, width)."""
        known = self._before | (self._new if self._step < step else {})
        return {
            f"{stream}.{segment}": np.stack(list(map(on_host, states))) for stream, (segment, states) in known.items()
        }

    def load(self, arrays: Mapping[str, Array], layers: int, width: int) -> None:
        """Set what :meth:`state` returned; ValueError for what does not fit the model."""
        known: dict[int, tuple[int, list[Array]]] = {}
        for name, array in arrays.items():
            stream, _, segment = name.partition(".")
            if not (stream.isdecimal() and segment.isdecimal()):
                raise ValueError(f"the memory has an entry {name!r}")
            if array.ndim != 3 or (len(array), array.shape[2]) != (layers, width):
                raise ValueError(f"the memory must have shape ({layers}, positions, {width}), got {array.shape}")
            known[int(stream)] = (int(segment), list(array))
        self._before, self._new, self._step = known, {}, -1
