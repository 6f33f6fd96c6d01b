"""Sampling tokens from a language model."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numformer.models.config import GPTConfig
from numformer.nn import KVCache, initial

Array = NDArray[Any]


class LanguageModel(Protocol):
    """What generation needs of a model."""

    config: GPTConfig

    def infer(self, ids: Array, *, cache: list[KVCache] | None = None, last: bool = False) -> Array:
        """Return logits."""
        ...

    def new_cache(self) -> list[KVCache]:
        """Return an empty cache."""
        ...


def generate(
    model: LanguageModel,
    ids: Array,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    use_cache: bool,
    slide: int | None,
) -> Array:
    """Continue sequences; see ``GPT.generate``."""
    context = model.config.context
    slide = max(1, context // 4) if slide is None else slide
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be at least 0, got {max_new_tokens}")
    if not 1 <= slide <= context:
        raise ValueError(f"generate: slide must be between 1 and the context {context}, got {slide}")
    check_sampling(temperature, top_k, top_p)
    rng = np.random.Generator(np.random.Philox(None if seed is None else initial.seed("generate", seed)))
    single = ids.ndim == 1
    rows = ids[None] if single else ids
    start, end = max(0, rows.shape[1] - context), rows.shape[1]
    tokens = np.empty((rows.shape[0], end + max_new_tokens), np.int64)
    tokens[:, :end] = rows
    cache = model.new_cache()
    read = start  # tokens before this one are in the cache
    for position in range(end, end + max_new_tokens):
        if position - start > context:
            start += slide
            cache, read = model.new_cache(), start
        if use_cache:
            logits = model.infer(tokens[:, read:position], cache=cache, last=True)
            read = position
        else:
            logits = model.infer(tokens[:, start:position], last=True)
        tokens[:, position] = sample(logits[:, -1], rng, temperature, top_k, top_p)
    return tokens[0] if single else tokens


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for options that mean nothing."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"generate: temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must be above 0 and at most 1, got {top_p}")


def probabilities(logits: Array, temperature: float, top_k: int | None, top_p: float | None) -> Array:
    """Return the distribution, (..., tokens) in float64, that :func:`sample` draws from; temperature above 0."""
    x = logits.astype(np.float64)
    x = (x - x.max(axis=-1, keepdims=True)) / temperature
    count = x.shape[-1]
    order = np.argsort(-x, axis=-1, kind="stable")
    p = np.exp(np.take_along_axis(x, order, axis=-1))
    if top_k is not None and top_k < count:
        p[..., top_k:] = 0.0
    p /= p.sum(axis=-1, keepdims=True)
    if top_p is not None:
        # A token stays while those before it have not reached p; the first one always does.
        before = np.cumsum(p, axis=-1) - p
        p[before >= top_p] = 0.0
        p /= p.sum(axis=-1, keepdims=True)
    result = np.empty_like(p)
    np.put_along_axis(result, order, p, axis=-1)
    return result


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
