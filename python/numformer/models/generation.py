"""Sampling tokens from a language model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numformer.nn import initial
from numformer.ops.memory import on_host

Array = NDArray[Any]


class LanguageModel(Protocol):
    """What generation needs of a model."""

    config: Any

    def infer(
        self, ids: Array, *, mask: Array | None = None, cache: list[Any] | None = None, last: bool = False
    ) -> Array:
        """Return logits."""
        ...

    def new_cache(self) -> list[Any]:
        """Return an empty cache."""
        ...


@dataclass(frozen=True)
class Options:
    """How tokens are drawn; see ``GPT.generate``."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    stop: int | Iterable[int] = ()
    use_cache: bool = True
    slide: int | None = None

    def stop_tokens(self, vocab_size: int) -> Array:
        """Return the tokens that end a text."""
        tokens = np.asarray([self.stop] if isinstance(self.stop, (int, np.integer)) else list(self.stop))
        if tokens.size == 0:
            return np.empty(0, np.int64)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise TypeError(f"generate: stop must be a token or several, got {self.stop!r}")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise ValueError(f"generate: stop must be tokens in [0, {vocab_size}), got {self.stop!r}")
        return tokens

    def check(self, context: int) -> None:
        """Raise ValueError for options that mean nothing."""
        check_sampling(self.temperature, self.top_k, self.top_p)
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"generate: repetition_penalty must be above 0, got {self.repetition_penalty}")
        if self.slide is not None and not 1 <= self.slide <= context:
            raise ValueError(f"generate: slide must be between 1 and the context {context}, got {self.slide}")


def count_of_new(max_new_tokens: int) -> int:
    """Check how many tokens to add."""
    if not isinstance(max_new_tokens, (int, np.integer)) or isinstance(max_new_tokens, bool):
        raise TypeError(f"generate: max_new_tokens must be an integer, got {max_new_tokens!r}")
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be at least 0, got {max_new_tokens}")
    return int(max_new_tokens)


def read_prompts(ids: Any, check: Callable[[Any], Array]) -> tuple[Array, Array | None, list[int] | None, bool]:
    """Return sequences as one array, filled up on the left, its mask, the lengths of a list, whether it is one."""
    several = isinstance(ids, (list, tuple)) and len(ids) > 0 and all(np.ndim(one) == 1 for one in ids)
    if not several:
        array = check(ids)
        return np.atleast_2d(array), None, None, array.ndim == 1
    rows = [check(one) for one in ids]
    lengths = [len(row) for row in rows]
    width = max(lengths)
    tokens, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return tokens, None if mask.all() else mask, lengths, False


def next_tokens(tokens: Array, mask: Array | None) -> Array:
    """Return what each position predicts: the token behind it, -100 where there is none or `mask` is False."""
    targets = np.full(tokens.shape, -100, np.int64)
    targets[:, :-1] = tokens[:, 1:]
    if mask is not None:
        targets[~mask] = -100
    return targets


def as_given(tokens: Array, counts: Array, prompts: Array, lengths: list[int] | None, single: bool) -> Any:
    """Return what :func:`generate` made in the form in which :func:`read_prompts` found the prompts."""
    if lengths is not None:
        width = prompts.shape[1]
        return [row[width - n : width + count] for row, n, count in zip(tokens, lengths, counts, strict=True)]
    return tokens[0] if single else tokens


def stream(
    model: LanguageModel,
    prompts: Array,
    mask: Array | None,
    max_new_tokens: int,
    options: Options,
    *,
    context: int | None = None,
) -> Iterator[Array]:
    """Continue sequences, a token at a time; see ``GPT.stream``.

    Parameters
    ----------
    prompts : array of integers
        (rows, positions).
    mask : boolean array, optional
        (rows, positions): False where shorter prompts are filled up, on the left.
    context : int, optional
        The longest sequence; that of the model by default.
    """
    context, vocab_size = model.config.context if context is None else context, model.config.vocab_size
    slide = max(1, context // 4) if options.slide is None else options.slide
    stop = options.stop_tokens(vocab_size)
    rng = np.random.Generator(
        np.random.Philox(None if options.seed is None else initial.seed("generate", options.seed))
    )
    rows, end = prompts.shape
    start = read = max(0, end - context)  # tokens before `read` are in the cache
    tokens = np.empty((rows, end + max_new_tokens), np.int64)
    tokens[:, :end] = prompts
    real = np.ones(tokens.shape, bool)
    if mask is not None:
        real[:, :end] = mask
    penalty = options.repetition_penalty
    seen = np.zeros((rows, vocab_size if penalty != 1.0 else 0), bool)
    if penalty != 1.0:
        for row, ids in enumerate(prompts):
            seen[row, ids[real[row, :end]]] = True
    live = np.arange(rows)  # which of the sequences go on
    cache = model.new_cache()
    for position in range(end, end + max_new_tokens):
        if position - start > context:
            start += slide
            cache, read = model.new_cache(), start
        window = None if mask is None else real[:, start:position]
        first = read if options.use_cache else start
        logits = model.infer(
            tokens[:, first:position],
            mask=None if window is None or window.all() else window,
            cache=cache if options.use_cache else None,
            last=True,
        )
        logits = on_host(logits)[:, -1]
        read = position
        if penalty != 1.0:
            logits = penalised(logits, seen, penalty)
        drawn = sample(logits, rng, options.temperature, options.top_k, options.top_p)
        tokens[:, position] = drawn
        if penalty != 1.0:
            seen[np.arange(len(live)), drawn] = True
        result = np.full(rows, -1, np.int64)
        result[live] = drawn
        yield result
        if stop.size == 0:
            continue
        going = np.flatnonzero(~np.isin(drawn, stop))
        if going.size == 0:
            return
        if going.size < live.size:
            live, tokens, real, seen = live[going], tokens[going], real[going], seen[going]
            for one in cache:
                one.select(going)


def generate(
    model: LanguageModel,
    prompts: Array,
    mask: Array | None,
    max_new_tokens: int,
    options: Options,
    *,
    context: int | None = None,
) -> tuple[Array, Array]:
    """Return the prompts with what follows, (rows, positions), and how many tokens each row got.

    A row that has ended is filled up with the token that ended it.
    """
    steps = list(stream(model, prompts, mask, max_new_tokens, options, context=context))
    drawn = np.stack(steps, axis=1) if steps else np.empty((len(prompts), 0), np.int64)
    counts = (drawn >= 0).sum(axis=1)
    for row, count in enumerate(counts):
        drawn[row, count:] = drawn[row, count - 1]
    return np.concatenate([prompts.astype(np.int64), drawn], axis=1), counts


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for options that mean nothing."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"generate: temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must be above 0 and at most 1, got {top_p}")


def penalised(logits: Array, seen: Array, penalty: float) -> Array:
    """Make tokens that a text has already less probable: positive logits are divided, negative ones multiplied.

    N. S. Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019, section
    4.1; there negative logits are divided too, which makes them more probable.
    """
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def probabilities(logits: Array, temperature: float, top_k: int | None, top_p: float | None) -> Array:
    """Return the distribution, (..., tokens) in float64, that :func:`sample` draws from; temperature above 0."""
    x = logits.astype(np.float64)
    x = (x - x.max(axis=-1, keepdims=True)) / temperature
    count = x.shape[-1]
    p = np.exp(x)
    if top_k is not None and top_k < count:
        least = np.partition(x, count - top_k, axis=-1)[..., count - top_k, np.newaxis]
        above, equal = x > least, x == least
        room = top_k - above.sum(axis=-1, keepdims=True)  # for the first of those that are equal
        p[~(above | (equal & (np.cumsum(equal, axis=-1) <= room)))] = 0.0
    p /= p.sum(axis=-1, keepdims=True)
    if top_p is not None:
        # Tokens below this are together less than 1 - p, so those before them have reached p: they need no sorting.
        few = max(1, int((p >= (1 - top_p) / count).sum(axis=-1).max()))
        if 2 * few > count:
            order = np.argsort(-p, axis=-1, kind="stable")
        else:
            order = np.sort(np.argpartition(-p, few - 1, axis=-1)[..., :few], axis=-1)
            falling = np.argsort(-np.take_along_axis(p, order, axis=-1), axis=-1, kind="stable")
            order = np.take_along_axis(order, falling, axis=-1)
        kept = np.take_along_axis(p, order, axis=-1)
        # A token stays while those before it have not reached p; the first one always does.
        before = np.cumsum(kept, axis=-1) - kept
        kept[before >= top_p] = 0.0
        p[:] = 0.0
        np.put_along_axis(p, order, kept / kept.sum(axis=-1, keepdims=True), axis=-1)
    return p


def sample(
    logits: Array, rng: np.random.Generator, temperature: float, top_k: int | None, top_p: float | None
) -> Array:
    """Draw one token for each row of (rows, tokens) logits."""
    if temperature == 0:
        return np.argmax(logits, axis=-1)
    edges = np.cumsum(probabilities(logits, temperature, top_k, top_p), axis=-1)
    # The inverse of the cumulative distribution: u < edges[..., -1], so that the last token with a chance is the last
    # one drawn.
    u = rng.random((*edges.shape[:-1], 1)) * edges[..., -1:]
    return np.argmax(edges > u, axis=-1)
