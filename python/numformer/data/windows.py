"""Samples of a text for a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.data.shuffle import Permutation

Array = NDArray[Any]
Batch = tuple[Array, ...]

_BLOCK = 1024
"""Windows of an epoch whose places are computed at once."""

IGNORE = -100
"""Target that does not count."""


class Windows:
    """Windows of a text: (ids, targets), where a target is the token after its id.

    As a sequence of samples it is the text cut into windows side by side, so that each token but the first is a target
    exactly once; the last window is filled up with targets that do not count. :meth:`draw` takes windows from anywhere,
    or with `epochs` goes through all of them.

    With `documents`, windows are packed: (ids, positions, targets), where positions begin anew at each document, so
    that a model does not let documents see each other, and the first token of a document is nobody's target. A document
    that goes on in the next window begins anew there.

    Parameters
    ----------
    tokens : array of integers
        The text; at least two tokens. A mapped file (:class:`TokenFile`) is read where windows are only.
    context : int
        Length of a window.
    documents : (documents + 1,) array of integers, optional
        Where documents begin in `tokens`, not decreasing, and where the last one ends, behind `tokens` perhaps.
    epochs : bool
        Whether :meth:`draw` takes windows side by side, each once an epoch, in an order that is a function of (seed,
        epoch, position) of which nothing is kept. The first one begins at another place in each epoch.
    limit : int, optional
        Tokens must be below it; those of a window are checked when it is made.
    advise : callable, optional
        Told of tokens that will be read soon, from and up to a place: :meth:`TokenFile.advise`.
    """

    def __init__(
        self,
        tokens: Array,
        context: int,
        *,
        documents: Array | None = None,
        epochs: bool = False,
        limit: int | None = None,
        advise: Callable[[int, int], None] | None = None,
    ) -> None:
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise TypeError(f"Windows: tokens must be integers on one axis, got {tokens.dtype} of shape {tokens.shape}")
        if context < 1:
            raise ValueError(f"Windows: context must be at least 1, got {context}")
        if len(tokens) < 2:
            raise ValueError(f"Windows: a text needs at least 2 tokens, got {len(tokens)}")
        if documents is not None:
            documents = np.asarray(documents)
            if documents.ndim != 1 or documents.dtype.kind not in "iu" or not len(documents):
                raise TypeError(
                    f"Windows: documents must be integers on one axis, got {documents.dtype} of shape {documents.shape}"
                )
            if documents[0] != 0 or documents[-1] < len(tokens):
                raise ValueError(
                    f"Windows: documents must run from 0 to the {len(tokens)} tokens, got {documents[0]} to "
                    f"{documents[-1]}"
                )
        self.tokens = tokens
        self.context = context
        self.documents = documents
        self.epochs = epochs
        self.limit = limit
        self.targets = len(tokens) - 1
        self.advise = advise
        self._kept: tuple[tuple[int, int, int], Array] | None = None

    def __len__(self) -> int:
        """Return the number of windows side by side."""
        return -(-self.targets // self.context)

    def samples(self, start: int, stop: int) -> Batch:
        """Return windows side by side, from `start` up to `stop`."""
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"Windows: samples must be in [0, {len(self)}), got [{start}, {stop})")
        rows, context = stop - start, self.context
        piece = self.tokens[start * context : stop * context + 1]
        ids = np.zeros(rows * context, np.int32)
        targets = np.full(rows * context, IGNORE, np.int32)
        count = len(piece) - 1
        ids[:count] = piece[:-1]
        targets[:count] = piece[1:]
        return self._batch(np.arange(start, stop) * context, ids.reshape(rows, context), targets.reshape(rows, context))

    def draw(self, count: int, *, seed: int, step: int) -> Batch:
        """Return windows from random places, or those of this step's part of the epochs.

        Parameters
        ----------
        count : int
            How many.
        seed, step : int
            The windows are a function of both: there is no state, so any step can be had again.
        """
        if len(self.tokens) <= self.context:
            raise ValueError(
                f"Windows: a text of {len(self.tokens)} tokens is too short for windows of {self.context}; "
                "shorten the context or add text"
            )
        if self.epochs:
            starts = self._starts(count, seed, step)
        else:
            rng = np.random.Generator(np.random.Philox(key=(seed % 2**64) | (step << 64)))
            starts = rng.integers(len(self.tokens) - self.context, size=count)
        pieces = self.tokens[starts[:, None] + np.arange(self.context + 1)].astype(np.int32)
        return self._batch(starts, pieces[:, :-1], pieces[:, 1:])

    def windows_an_epoch(self) -> int:
        """Return how many whole windows an epoch has; what is over at both ends is in them in other epochs."""
        return max(1, (self.targets - self._shifts() + 1) // self.context)

    def _shifts(self) -> int:
        """How many places the first window of an epoch may begin at."""
        return min(self.context, self.targets - self.context + 1)

    def _starts(self, count: int, seed: int, step: int) -> Array:
        """Return where the windows of a step begin; a batch may have windows of two epochs or more."""
        total = self.windows_an_epoch()
        parts, place, stop = [], step * count, (step + 1) * count
        while place < stop:
            epoch, number = divmod(place, total)
            block = self._block(seed, epoch, number // _BLOCK)
            parts.append(block[number % _BLOCK :][: stop - place])
            place += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _block(self, seed: int, epoch: int, number: int) -> Array:
        """Return where some windows of an epoch begin, one after the other in its order; the last ones are kept."""
        key = seed, epoch, number
        kept = self._kept  # read once: another thread may draw other windows
        if kept is None or kept[0] != key:
            rng = np.random.Generator(np.random.Philox(key=(seed % 2**64) | (epoch << 64), counter=2**64))
            shift = int(rng.integers(self._shifts()))
            total = self.windows_an_epoch()
            places = np.arange(number * _BLOCK, min(total, (number + 1) * _BLOCK))
            self._kept = kept = key, shift + self.context * Permutation(total, seed=seed, epoch=epoch)(places)
        return kept[1]

    def prepare(self, count: int, *, seed: int, step: int) -> None:
        """Say that this batch will be drawn soon, so that the system reads its part of a file meanwhile."""
        if self.advise is not None and self.epochs and len(self.tokens) > self.context:
            for start in self._starts(count, seed, step).tolist():
                self.advise(start, start + self.context + 1)

    def _batch(self, starts: Array, ids: Array, targets: Array) -> Batch:
        """Check windows that begin at these places, and pack their documents."""
        if self.limit is not None:
            most = int(max(ids.max(), targets.max()))
            if most >= self.limit or int(ids.min()) < 0:
                raise ValueError(
                    f"Windows: tokens must be in [0, {self.limit}), got {most if most >= self.limit else ids.min()}; "
                    "the file or array that they are from is damaged"
                )
        if self.documents is None:
            return ids, targets
        count, context = ids.shape
        # In the window of row r, document i begins at column documents[i] - starts[r], where that is inside.
        firsts = np.searchsorted(self.documents, starts, side="right")
        lasts = np.searchsorted(self.documents, starts + context, side="right")
        lengths = lasts - firsts
        rows = np.repeat(np.arange(count), lengths)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        columns = self.documents[firsts[rows] + offsets] - starts[rows]
        begins = np.zeros((count, context + 1), np.int32)
        begins[rows, columns] = np.arange(context + 1, dtype=np.int32)[columns]
        positions = np.arange(context, dtype=np.int32) - np.maximum.accumulate(begins, axis=1)[:, :-1]
        targets = targets.copy()
        first = np.zeros((count, context + 1), bool)
        first[rows, columns] = True
        targets[first[:, 1:]] = IGNORE
        return ids, positions, targets
