"""Masked tokens and next sentences: what BERT and RoBERTa are pre-trained on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.data.windows import IGNORE

Array = NDArray[Any]


def mask_tokens(
    ids: Array,
    *,
    mask_id: int,
    vocab_size: int,
    special: Sequence[int] = (),
    rate: float = 0.15,
    seed: int = 0,
    step: int = 0,
) -> tuple[Array, Array]:
    """Hide tokens, and say which were there.

    A token is chosen with probability `rate`; of those chosen 80% become `mask_id`, 10% another token by chance, 10%
    stay (Devlin et al., 2019, section 3.1; there exactly 15% of a sequence are chosen, here each token by itself).

    Parameters
    ----------
    ids : array of integers
        Tokens, of any shape.
    mask_id : int
        The token that hides another.
    vocab_size : int
        Tokens by chance are below it, and not among `special`.
    special : integers
        Tokens that are never chosen: padding, beginnings, ends.
    rate : float
        In (0, 1].
    seed, step : int
        The choice is a function of both.

    Returns
    -------
    masked, targets : arrays of int64
        Of the shape of ids; targets are -100 where nothing was chosen.
    """
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"mask_tokens: ids must be integers, got {ids.dtype}")
    ids = ids.astype(np.int64, copy=False)  # unsigned types have no -100
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"mask_tokens: rate must be above 0 and at most 1, got {rate}")
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_tokens: mask_id must be in [0, {vocab_size}), got {mask_id}")
    others = np.setdiff1d(np.arange(vocab_size), [*special, mask_id])
    if others.size == 0:
        raise ValueError("mask_tokens: vocab_size must leave tokens that are not special, got none")
    rng = np.random.Generator(np.random.Philox(key=(seed % 2**64) | (step << 64)))
    chosen = (rng.random(ids.shape) < rate) & ~np.isin(ids, np.asarray(special, np.int64))
    fate = rng.random(ids.shape)
    masked = np.where(chosen & (fate < 0.8), mask_id, ids)
    masked = np.where(chosen & (fate >= 0.9), others[rng.integers(0, others.size, ids.shape)], masked)
    return masked, np.where(chosen, ids, IGNORE)


class MaskedText:
    """Sequences to learn masked tokens from: batches of (ids, mask, types, targets).

    With `labels`, batches are (ids, mask, types, labels, targets), as the head "pretraining" of a BERT reads them.

    Parameters
    ----------
    sequences : list of arrays of integers
        Token ids with whatever begins and ends them; not empty.
    mask_id, pad_id : int
        Tokens that hide another and that fill up.
    vocab_size : int
        Number of tokens.
    special : integers
        Tokens that are never hidden; `pad_id` is one of them.
    types : list of arrays of integers, optional
        Token types, of the shape of the sequences.
    labels : array of integers, optional
        A class for each sequence: 0 where its second sentence follows the first, else 1.
    copies : int or None
        Static masking (BERT): each sequence has so many masks, and gets the next one each time it comes. None masks
        anew each time: dynamic masking (Liu et al., "RoBERTa", 2019, section 4.1).
    rate : float
        Share of the tokens that are chosen.
    seed : int
        Of the masks.
    """

    def __init__(
        self,
        sequences: Sequence[Array],
        *,
        mask_id: int,
        pad_id: int,
        vocab_size: int,
        special: Sequence[int] = (),
        types: Sequence[Array] | None = None,
        labels: Array | None = None,
        copies: int | None = 10,
        rate: float = 0.15,
        seed: int = 0,
    ) -> None:
        if not len(sequences) or not all(len(one) for one in sequences):
            raise ValueError("MaskedText: sequences must not be empty, got none or an empty one")
        if copies is not None and copies < 1:
            raise ValueError(f"MaskedText: copies must be at least 1 or None, got {copies}")
        for name, other in (("types", types), ("labels", labels)):
            if other is not None and len(other) != len(sequences):
                raise ValueError(f"MaskedText: {name} must be as many as sequences, {len(sequences)}, got {len(other)}")
        if types is not None and any(len(a) != len(b) for a, b in zip(types, sequences, strict=True)):
            raise ValueError("MaskedText: types must have the shapes of the sequences, got others")
        self.sequences, self.types, self.pad_id = sequences, types, pad_id
        self.labels = None if labels is None else np.asarray(labels)
        self.copies, self.seed = copies, seed
        self.options: dict[str, Any] = {
            "mask_id": mask_id,
            "vocab_size": vocab_size,
            "special": [*special, pad_id],
            "rate": rate,
        }

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.sequences)

    def samples(self, start: int, stop: int) -> tuple[Array, ...]:
        """Return the sequences from `start` up to `stop`, with the first of their masks."""
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"MaskedText: samples must be in [0, {len(self)}), got [{start}, {stop})")
        return self._batch(np.arange(start, stop), np.zeros(stop - start, np.int64))

    def draw(self, count: int, *, seed: int, step: int) -> tuple[Array, ...]:
        """Return `count` sequences, a function of seed and step: epochs in an order of their own, one after another."""
        if count < 1:
            raise ValueError(f"MaskedText: count must be at least 1, got {count}")
        places = np.arange(step * count, (step + 1) * count)
        epochs, indices = places // len(self), np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            rng = np.random.Generator(np.random.Philox(key=(seed % 2**64) | (int(epoch) << 64)))
            order = rng.permutation(len(self))
            indices[epochs == epoch] = order[places[epochs == epoch] % len(self)]
        return self._batch(indices, epochs if self.copies is None else epochs % self.copies)

    def _batch(self, indices: Array, copies: Array) -> tuple[Array, ...]:
        width = max(len(self.sequences[i]) for i in indices)
        shape = len(indices), width
        ids, kinds = np.full(shape, self.pad_id, np.int64), np.zeros(shape, np.int64)
        mask, targets = np.zeros(shape, bool), np.full(shape, IGNORE, np.int64)
        for row, (index, copy) in enumerate(zip(indices, copies, strict=True)):
            sequence, end = np.asarray(self.sequences[index]), len(self.sequences[index])
            # A mask is a function of seed, sequence and copy: the same in any batch.
            ids[row, :end], targets[row, :end] = mask_tokens(
                sequence, seed=self.seed, step=int(copy) * len(self) + int(index), **self.options
            )
            mask[row, :end] = True
            if self.types is not None:
                kinds[row, :end] = self.types[index]
        if self.labels is None:
            return ids, mask, kinds, targets
        return ids, mask, kinds, self.labels[indices].astype(np.int64), targets


def next_sentences(
    documents: Sequence[Sequence[Array]], *, cls_id: int, sep_id: int, context: int, seed: int = 0
) -> tuple[list[Array], list[Array], Array]:
    """Make pairs of neighbouring sentences, half of them with a second one from another document.

    A pair is ``[CLS] first [SEP] second [SEP]`` (Devlin et al., 2019, section 3.1). Where it is longer than `context`
    the longer side loses its end. There several sentences fill up a side; here each sentence is one.

    Parameters
    ----------
    documents : list of lists of arrays of integers
        Token ids of sentences without beginning and end; at least two documents.
    cls_id, sep_id : int
        Tokens that begin a pair and end a sentence.
    context : int
        The longest pair, at least 5.
    seed : int
        Of the choice.

    Returns
    -------
    sequences, types : lists of arrays of int64
        Tokens of pairs, and 0 for the first sentence, 1 for the second.
    labels : array of int64
        0 where the second follows the first, 1 where it is another one.
    """
    if context < 5:
        raise ValueError(f"next_sentences: context must be at least 5, got {context}")
    full = [i for i, document in enumerate(documents) if len(document)]
    if len(full) < 2:
        raise ValueError(f"next_sentences: documents must be at least two that are not empty, got {len(full)}")
    rng = np.random.Generator(np.random.Philox(key=seed % 2**64))
    sequences, types, labels = [], [], []
    for place, number in enumerate(full):
        document = documents[number]
        for first, second in pairwise(document):
            label = int(rng.random() < 0.5)
            if label:
                other = documents[full[(place + int(rng.integers(1, len(full)))) % len(full)]]
                second = other[int(rng.integers(0, len(other)))]
            a, b = len(first), len(second)
            while a + b > context - 3:
                a, b = (a - 1, b) if a > b else (a, b - 1)
            tokens = np.concatenate([[cls_id], first[:a], [sep_id], second[:b], [sep_id]]).astype(np.int64)
            sequences.append(tokens)
            types.append((np.arange(len(tokens)) > a + 1).astype(np.int64))
            labels.append(label)
    if not labels:
        raise ValueError("next_sentences: documents must have neighbouring sentences, got one sentence each")
    return sequences, types, np.array(labels, np.int64)
