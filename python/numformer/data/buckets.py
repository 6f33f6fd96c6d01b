"""Batches of pairs of sentences, of like length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.data.pairs import TOO_LONG, ParallelText
from numformer.data.vocabulary import BOS, EOS, PAD, Vocabulary
from numformer.packed import Packed

Array = NDArray[Any]
Batch = tuple[Packed, Packed, Packed]


class Pairs:
    """Pairs of token sequences: (source, decoder input, targets), each packed, so that there is no padding.

    Source and targets end with EOS, the decoder's input begins with BOS. As a sequence of samples neighbours are of
    like length. :meth:`draw` goes through all of them, in another order each epoch: they are shuffled, sorted by length
    within pools of many batches, cut into batches, and these are shuffled.

    Parameters
    ----------
    sources, targets : lists of arrays of integers
        Token ids without BOS and EOS, not empty.
    pool : int
        Batches that are sorted together: more make lengths in a batch more alike, fewer mix better.
    """

    def __init__(self, sources: Sequence[Array], targets: Sequence[Array], *, pool: int = 100) -> None:
        if len(sources) != len(targets):
            raise ValueError(
                f"Pairs: there must be as many targets as sources, got {len(sources)} sources and "
                f"{len(targets)} targets"
            )
        if not len(sources):
            raise ValueError("Pairs: at least one pair is needed, got none")
        if pool < 1:
            raise ValueError(f"Pairs: pool must be at least 1, got {pool}")
        every = [(_ids("sources", a), _ids("targets", b)) for a, b in zip(sources, targets, strict=True)]
        lengths = np.array([(len(b), len(a)) for a, b in every])
        order = _by_length(lengths, 32)
        self.order = order
        """Index in what was given of each sample."""
        source, target = (Packed.of([every[i][side] for i in order]) for side in (0, 1))
        self.sources, self.targets = list(source), list(target)
        self.lengths = lengths[order] + 1
        ends = [_with(part, part.cu_seqlens[1:], EOS) for part in (source, target)]
        self._packed = ends[0], _with(target, target.cu_seqlens[:-1], BOS), ends[1]
        self.pool = pool
        self._plan: tuple[tuple[int, int, int], list[Array]] | None = None

    @classmethod
    def from_text(
        cls, text: ParallelText, vocabulary: Vocabulary, context: int, *, on_bad: str = "skip", pool: int = 100
    ) -> Pairs:
        """Encode pairs; those that are longer than the model go into the report of the text.

        Parameters
        ----------
        text : ParallelText
            The pairs.
        vocabulary : Vocabulary
            For both languages.
        context : int
            The longest sequence of the model, EOS included.
        on_bad : {"skip", "error"}
            Whether longer pairs are left out or refused.
        pool : int
            See :class:`Pairs`.
        """
        sources, targets = vocabulary.encode(text.sources), vocabulary.encode(text.targets)
        fits = [i for i in range(len(text)) if max(len(sources[i]), len(targets[i])) < context]
        fitting = set(fits)
        for i in range(len(text)):
            if i not in fitting:
                text.report.add(TOO_LONG, text.lines[i])
        if len(fits) < len(text):
            text.report.judge(on_bad)
        if not fits:
            raise ValueError(f"{text.report}; there is nothing to use")
        pairs = cls([sources[i] for i in fits], [targets[i] for i in fits], pool=pool)
        pairs.order = np.array(fits)[pairs.order]
        return pairs

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.sources)

    def samples(self, start: int, stop: int) -> Batch:
        """Return pairs in an order of like lengths, from `start` up to `stop`."""
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"Pairs: samples must be in [0, {len(self)}), got [{start}, {stop})")
        return self._batch(np.arange(start, stop))

    def batches(self, count: int) -> int:
        """Return how many batches of `count` pairs an epoch has; the last to be cut may be smaller."""
        if count < 1:
            raise ValueError(f"Pairs: count must be at least 1, got {count}")
        return -(-len(self) // count)

    def draw(self, count: int, *, seed: int, step: int) -> Batch:
        """Return a batch of `count` pairs of like length, or the smaller rest of an epoch.

        Parameters
        ----------
        count : int
            How many.
        seed, step : int
            The batch is a function of both: any step can be had again.
        """
        epoch, index = divmod(step, self.batches(count))
        return self._batch(self._epoch(count, seed, epoch)[index])

    def _epoch(self, count: int, seed: int, epoch: int) -> list[Array]:
        """Return the batches of an epoch, as indices; the last plan is kept."""
        key = count, seed, epoch
        plan = self._plan  # read once: another thread may draw another epoch
        if plan is None or plan[0] != key:
            rng = np.random.Generator(np.random.Philox(key=(seed % 2**64) | (epoch << 64)))
            shuffled = rng.permutation(len(self))
            batches: list[Array] = []
            for first in range(0, len(self), self.pool * count):
                some = shuffled[first : first + self.pool * count]
                some = some[_by_length(self.lengths[some], count)]  # pairs of equal lengths stay shuffled
                batches += [some[i : i + count] for i in range(0, len(some), count)]
            self._plan = plan = key, [batches[i] for i in rng.permutation(len(batches))]
        return plan[1]

    def _batch(self, indices: Array) -> Batch:
        source, target, targets = (part.take(indices) for part in self._packed)
        return source, target, targets


def _with(packed: Packed, places: Array, token: int) -> Packed:
    """Put one more token into each sequence, before these elements of all of them."""
    return Packed(np.insert(packed.values, places, token), packed.cu_seqlens + np.arange(len(packed) + 1))


def _by_length(lengths: Array, count: int) -> Array:
    """Return an order of (target, source) lengths in which `count` neighbours are of like length; it is stable.

    Sorted by target and cut into strips, each of which is sorted by source, up and down in turn, so that lengths meet
    where strips do. With as many strips as there are batches in one, both lengths vary alike in a batch
    (S. T. Leutenegger, M. A. Lopez, J. Edgington, "STR: A Simple and Efficient Algorithm for R-Tree Packing", 1997).
    """
    order = np.argsort(lengths[:, 0], kind="stable")
    batches = -(-len(order) // count)
    strip = count * math.isqrt(batches - 1) + count  # the square root of the batches, rounded up
    pieces = []
    for number, first in enumerate(range(0, len(order), strip)):
        piece = order[first : first + strip]
        source = lengths[piece, 1]
        pieces.append(piece[np.argsort(-source if number % 2 else source, kind="stable")])
    return np.concatenate(pieces)


def pad_sources(sources: Sequence[Array]) -> Array:
    """Return token sequences as one array that a model reads: each ends with EOS, shorter ones are padded."""
    result = np.full((len(sources), max(map(len, sources)) + 1), PAD, np.int32)
    for row, ids in enumerate(sources):
        result[row, : len(ids)], result[row, len(ids)] = ids, EOS
    return result


def _ids(name: str, ids: Array) -> Array:
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(f"Pairs: {name} must be lists of integers, got {ids.dtype} of shape {ids.shape}")
    if not len(ids):
        raise ValueError(f"Pairs: {name} must not be empty sequences, got one")
    return ids.astype(np.int32)
