"""Samples of a text for a language model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Batch = tuple[Array, Array]

IGNORE = -100
"""Target that does not count."""


class Windows:
    """Windows of a text: (ids, targets), where a target is the token after its id.

    As a sequence of samples it is the text cut into windows side by side, so that each token but the first is a target
    exactly once; the last window is filled up with targets that do not count. :meth:`draw` takes windows from anywhere.

    Parameters
    ----------
    tokens : array of integers
        The text; at least two tokens.
    context : int
        Length of a window.
    """

    def __init__(self, tokens: Array, context: int) -> None:
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise TypeError(f"Windows: tokens must be integers on one axis, got {tokens.dtype} of shape {tokens.shape}")
        if context < 1:
            raise ValueError(f"Windows: context must be at least 1, got {context}")
        if len(tokens) < 2:
            raise ValueError(f"Windows: a text needs at least 2 tokens, got {len(tokens)}")
        self.tokens = tokens
        self.context = context
        self.targets = len(tokens) - 1

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
        return ids.reshape(rows, context), targets.reshape(rows, context)

    def draw(self, count: int, *, seed: int, step: int) -> Batch:
        """Return windows from random places; the same seed and step give the same ones.

        Parameters
        ----------
        count : int
            How many.
        seed, step : int
            Key of the generator, Philox: no state, so any step can be had again.
        """
        if len(self.tokens) <= self.context:
            raise ValueError(
                f"Windows: a text of {len(self.tokens)} tokens is too short for windows of {self.context}; "
                "shorten the context or add text"
            )
        rng = np.random.Generator(np.random.Philox(key=(seed % 2**64) | (step << 64)))
        starts = rng.integers(len(self.tokens) - self.context, size=count)
        pieces = self.tokens[starts[:, None] + np.arange(self.context + 1)].astype(np.int32)
        return pieces[:, :-1], pieces[:, 1:]
