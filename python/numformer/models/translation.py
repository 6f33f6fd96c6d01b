"""Decoding of an encoder-decoder model: greedy, sampling, beam search."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numformer import ops
from numformer.models.generation import sample
from numformer.models.transformer_config import TransformerConfig

Array = NDArray[Any]


class Decoding(Protocol):
    """Targets that grow token by token; what a search needs of a model."""

    def step(self, tokens: Array) -> Array:
        """Append a token to each row and return the logits of the next one, (rows, vocab_size), a new array."""
        ...

    def select(self, rows: Array, sentences: Array) -> None:
        """Keep these rows, in this order, and these sentences; each sentence has equally many rows, side by side."""
        ...


def check_search(num_beams: int, length_penalty: float, length_norm: str, temperature: float) -> None:
    """Raise an error for options that mean nothing."""
    if not isinstance(num_beams, (int, np.integer)) or isinstance(num_beams, bool):
        raise TypeError(f"generate: num_beams must be an integer, got {num_beams!r}")
    if num_beams < 1:
        raise ValueError(f"generate: num_beams must be at least 1, got {num_beams}")
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise ValueError(f"generate: length_penalty must be at least 0, got {length_penalty}")
    if length_norm not in ("gnmt", "power"):
        raise ValueError(f"generate: length_norm must be 'gnmt' or 'power', got {length_norm!r}")
    if num_beams > 1 and temperature > 0:
        raise ValueError(f"generate: beam search takes no chances, so temperature must be 0, got {temperature}")


def forbid(logits: Array, config: TransformerConfig, last: Array) -> Array:
    """Give no chance to the tokens that no sentence contains: the padding, and the beginning unless it is the end.

    `last` says which sentences are at their limit; each has equally many rows of the logits, side by side.
    """
    logits[:, config.pad_id] = -np.inf
    if config.bos_id != config.eos_id:
        logits[:, config.bos_id] = -np.inf
    if config.forced_eos and last.any():
        rows = np.repeat(last, len(logits) // last.size)
        logits[rows] = -np.inf
        logits[rows, config.eos_id] = 0.0
    return logits


def sample_sentences(
    decoding: Decoding,
    config: TransformerConfig,
    limits: Array,
    rng: np.random.Generator,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Array:
    """Decode a token at a time, the most probable one (temperature 0) or a drawn one.

    Parameters
    ----------
    limits : array of int64
        The most tokens for each sentence, at least 1 each.

    Returns
    -------
    array of int64
        (sentences, longest result), filled with `pad_id`.
    """
    result = np.full((limits.size, int(limits.max())), config.pad_id, np.int64)
    live = np.arange(limits.size)
    tokens = np.full(limits.size, config.bos_id, np.int64)
    length = 0
    while True:
        logits = forbid(decoding.step(tokens), config, limits[live] == length + 1)
        tokens = sample(logits, rng, temperature, top_k, top_p)
        result[live, length] = tokens
        length += 1
        going = (tokens != config.eos_id) & (length < limits[live])
        if not going.any():
            return result[:, :length]
        if not going.all():
            rows = np.flatnonzero(going)
            live, tokens = live[rows], tokens[rows]
            decoding.select(rows, rows)


def beam_search(
    decoding: Decoding,
    config: TransformerConfig,
    limits: Array,
    num_beams: int,
    length_penalty: float,
    length_norm: str = "gnmt",
) -> Array:
    """Decode the sentences of highest score: log p(sentence) / ((5 + n) / 6)**length_penalty for n tokens.

    The score is that of Wu et al., "Google's neural machine translation system", 2016, section 7, without coverage;
    with `length_norm` "power" it is log p(sentence) / n**length_penalty.
    Each step ranks the continuations of all running beams of a sentence. Those among the first `num_beams` that end
    are finished; the first `num_beams` that do not end run on. A sentence is done when as many hypotheses are
    finished, when no running beam can reach the score of the best finished one any more, or at its limit; the best
    running one is taken where none has finished. Of equal scores the earlier beam and the smaller token come first,
    and the shorter hypothesis stays.

    Parameters
    ----------
    limits : array of int64
        The most tokens for each sentence, at least 1 each.

    Returns
    -------
    array of int64
        (sentences, longest result), filled with `pad_id`.
    """
    result = np.full((limits.size, int(limits.max())), config.pad_id, np.int64)
    live = np.arange(limits.size)
    best = np.full(limits.size, -np.inf)  # score of the best finished hypothesis of each sentence
    finished = np.zeros(limits.size, np.int64)
    scores = np.zeros((limits.size, 1))  # log-probabilities of the running beams; -inf: there is none
    tokens = np.full((limits.size, 1), config.bos_id, np.int64)
    texts = np.empty((limits.size, 1, 0), np.int64)
    length = 0
    while True:
        logits = forbid(decoding.step(tokens.reshape(-1)), config, limits[live] == length + 1)
        length += 1
        penalty = _penalty(length, length_penalty, length_norm)
        scores, parents, tokens = _continuations(logits, scores, 2 * num_beams, config.eos_id)
        ends = tokens == config.eos_id
        for row, rank in np.argwhere(ends[:, :num_beams] & np.isfinite(scores[:, :num_beams])):
            sentence = live[row]
            finished[sentence] += 1
            if scores[row, rank] / penalty > best[sentence]:
                best[sentence] = scores[row, rank] / penalty
                result[sentence] = config.pad_id
                result[sentence, : length - 1] = texts[row, parents[row, rank]]
                result[sentence, length - 1] = config.eos_id
        # Those that do not end come first, the order of both kinds stays.
        running = np.argsort(ends, axis=1, kind="stable")[:, :num_beams]
        scores = np.take_along_axis(np.where(ends, -np.inf, scores), running, axis=1)
        parents = np.take_along_axis(parents, running, axis=1)
        tokens = np.take_along_axis(tokens, running, axis=1)
        texts = np.concatenate([np.take_along_axis(texts, parents[..., None], axis=1), tokens[..., None]], axis=2)
        # A log-probability only falls, and the penalty divides it by at most that of the limit.
        possible = scores[:, 0] / _penalty(limits[live], length_penalty, length_norm)
        cut = (length >= limits[live]) & np.isneginf(best[live])
        result[live[cut], :length] = texts[cut, 0]
        going = (finished[live] < num_beams) & (length < limits[live]) & (possible > best[live])
        if not going.any():
            return result[:, : int((result != config.pad_id).sum(axis=1).max())]
        kept = np.flatnonzero(going)
        rows = kept[:, None] * (logits.shape[0] // live.size) + parents[kept]
        decoding.select(rows.reshape(-1), kept)
        live, scores, tokens, texts = live[kept], scores[kept], tokens[kept], texts[kept]


def _penalty(length: Any, alpha: float, norm: str) -> Any:
    return (length if norm == "power" else (5.0 + length) / 6.0) ** alpha


def _continuations(logits: Array, scores: Array, count: int, eos_id: int) -> tuple[Array, Array, Array]:
    """Return the best continuations of each sentence: log-probability, number of the beam, token; the best first.

    `logits`, (sentences * beams, tokens), are overwritten.
    """
    sentences, beams = scores.shape
    # The row's log-sum-exp is what cross-entropy needs, whatever the target.
    targets = np.full(logits.shape[0], eos_id, np.int64)
    _, lse = ops.cross_entropy(logits, targets, reduction="none", return_lse=True)
    each = min(count, logits.shape[1])
    tokens = np.empty((logits.shape[0], each), np.int64)
    values = np.empty((logits.shape[0], each))
    every = np.arange(logits.shape[0])
    for rank in range(each):  # argmax takes the first of equals, which a partial sort does not promise
        tokens[:, rank] = logits.argmax(axis=1)
        values[:, rank] = logits[every, tokens[:, rank]]
        logits[every, tokens[:, rank]] = -np.inf
    totals = (values - lse[:, None]).reshape(sentences, beams, each) + scores[..., None]
    totals, tokens = totals.reshape(sentences, -1), tokens.reshape(sentences, -1)
    order = np.argsort(-totals, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(totals, order, axis=1), order // each, np.take_along_axis(tokens, order, axis=1)
