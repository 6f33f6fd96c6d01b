"""A text as streams that are read side by side, segment after segment."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.data.windows import IGNORE

Array = NDArray[Any]
Batch = tuple[Array, Array, Array]


class Streams:
    """Segments of a text for a model with a memory: (ids, places, targets), a target being the token after its id.

    The text is cut into `streams` parts of like length. A batch has the next segment of each of them, so that a model
    that keeps what it computed for the last one goes on reading; `places`, (rows, 2), says of each row of which stream
    it is and its which segment. Sample i is segment ``i // streams`` of stream ``i % streams``. Each token but the
    first is a target exactly once; where a part is shorter than others, targets at its end do not count.

    Parameters
    ----------
    tokens : array of integers
        The text; more tokens than streams.
    context : int
        Length of a segment.
    streams : int
        How many parts; the batch size.
    """

    def __init__(self, tokens: Array, context: int, streams: int) -> None:
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise TypeError(f"Streams: tokens must be integers on one axis, got {tokens.dtype} of shape {tokens.shape}")
        for name, value in (("context", context), ("streams", streams)):
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise TypeError(f"Streams: {name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"Streams: {name} must be at least 1, got {value}")
        if len(tokens) <= streams:
            raise ValueError(f"Streams: {streams} streams need at least {streams + 1} tokens, got {len(tokens)}")
        self.tokens, self.context, self.streams = tokens, context, streams
        self.targets = len(tokens) - 1
        self._edges = self.targets * np.arange(streams + 1) // streams
        self.segments = -(-int(np.diff(self._edges).max()) // context)

    def __len__(self) -> int:
        """Return the number of segments of all streams."""
        return self.segments * self.streams

    def samples(self, start: int, stop: int) -> Batch:
        """Return the samples from `start` up to `stop`."""
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"Streams: samples must be in [0, {len(self)}), got [{start}, {stop})")
        segments, streams = np.divmod(np.arange(start, stop), self.streams)
        begins = self._edges[streams] + segments * self.context
        where = begins[:, None] + np.arange(self.context)
        inside = where < self._edges[streams + 1][:, None]
        where = np.minimum(where, self.targets - 1)
        # Converted first: tokens of unsigned types have no -100.
        ids = np.where(inside, self.tokens[where].astype(np.int32), 0)
        targets = np.where(inside, self.tokens[where + 1].astype(np.int32), IGNORE)
        return ids, np.stack([streams, segments], axis=1), targets

    def draw(self, count: int, *, seed: int, step: int) -> Batch:
        """Return the segment of each stream that a step reads; after the last one the text begins anew.

        Parameters
        ----------
        count : int
            The number of streams.
        seed : int
            Not used: nothing is by chance.
        step : int
            Number of the step.
        """
        if count != self.streams:
            raise ValueError(
                f"Streams: a batch has a row of each of the {self.streams} streams, got a count of {count}"
            )
        first = step % self.segments * self.streams
        return self.samples(first, first + self.streams)
