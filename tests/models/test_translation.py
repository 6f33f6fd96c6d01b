"""Decoding of the encoder-decoder: greedy, sampling, beam search."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from numformer.models import Transformer, TransformerConfig
from numformer.models.translation import beam_search
from numformer.optim import AdamW

Array = np.ndarray[Any, Any]


def _model(vocab_size: int = 11, seed: int = 1, scale: float = 0.3, **options: Any) -> Transformer:
    sizes: dict[str, Any] = {"context": 16, "encoder_layers": 1, "decoder_layers": 2, "heads": 2, "width": 8}
    model = Transformer(TransformerConfig(vocab_size=vocab_size, dtype="float64", **(sizes | options)), rng=0)
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():  # large weights, so that sentences differ
        parameter.value += scale * rng.standard_normal(parameter.value.shape)
    return model


SOURCE = np.array(
    [[5, 6, 7, 8, 2], [9, 3, 2, 0, 0], [4, 2, 0, 0, 0], [10, 10, 7, 2, 0], [3, 4, 5, 6, 2], [8, 2, 0, 0, 0]]
)


@functools.cache
def _trained(norm: str = "pre") -> Transformer:
    """A model that has half learned to write sentences backwards: it ends them at different places, with doubts."""
    model = _model(scale=0.0, norm=norm, width=16, dropout=0.0)
    optimizer = AdamW(model.parameters(), lr=5e-3)
    rng = np.random.default_rng(0)
    for _ in range(120):
        lengths = rng.integers(1, 7, 24)
        source, target, targets = np.zeros((24, 7), int), np.zeros((24, 7), int), np.full((24, 7), -100)
        for row, n in enumerate(lengths):
            words = rng.integers(3, 11, n)
            source[row, : n + 1] = [*words, 2]
            target[row, : n + 1] = [1, *words[::-1]]
            targets[row, : n + 1] = [*words[::-1], 2]
        _, backward = model.loss((source, target, targets))
        backward()
        optimizer.step()
    return model


def _log_p(model: Transformer, source: Array, prefix: list[int]) -> Array:
    """Log-probabilities of the next token, read anew from the whole prefix, without padding and beginning."""
    x = model.infer(source, np.array([model.config.bos_id, *prefix]))[-1]
    x[[model.config.pad_id, model.config.bos_id]] = -np.inf
    return x - np.log(np.exp(x).sum())


def _text(row: Array, model: Transformer) -> list[int]:
    return [int(token) for token in row if token != model.config.pad_id]


def _score(model: Transformer, source: Array, text: list[int], alpha: float) -> float:
    total = sum(_log_p(model, source, text[:n])[token] for n, token in enumerate(text))
    return float(total) / ((5 + len(text)) / 6) ** alpha


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_greedy_takes_the_most_probable_and_stops(norm: str) -> None:
    model = _trained(norm)
    result = model.generate(SOURCE, 14)
    assert result.dtype == np.int64
    lengths = set()
    for row, source in zip(result, SOURCE, strict=True):
        text = _text(row, model)
        for n, token in enumerate(text):
            assert token == _log_p(model, source[source != 0], text[:n]).argmax()
        assert 2 not in text[:-1]
        assert text[-1] == 2 or len(text) == 14
        np.testing.assert_array_equal(row[len(text) :], 0)
        lengths.add(len(text))
        # A sentence alone gives what it gives in a batch, whoever leaves it when.
        np.testing.assert_array_equal(model.generate(source[source != 0], 14), text)
    assert len(lengths) > 2, "the sentences of this test shall end at different times"
    assert result.shape[1] == max(lengths)


@pytest.mark.parametrize("model", [_trained, functools.partial(_model, seed=2)])
def test_one_beam_is_greedy(model: Any) -> None:
    model = model()
    limits = np.full(6, 14)
    found = beam_search(model.decoding(SOURCE), model.config, limits, 1, 0.6)
    np.testing.assert_array_equal(found, model.generate(SOURCE, 14))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_wide_beam_is_an_exhaustive_search(seed: int, alpha: float) -> None:
    model = _model(vocab_size=5, seed=seed)
    source = np.array([[3, 4, 3, 2], [4, 2, 0, 0], [3, 3, 2, 0]])
    longest = 5
    every = [[*middle, 2] for n in range(longest) for middle in itertools.product([3, 4], repeat=n)]
    found = model.generate(source, longest, num_beams=2 ** (longest + 1), length_penalty=alpha)
    for row, sentence in zip(found, source, strict=True):
        scores = [_score(model, sentence[sentence != 0], text, alpha) for text in every]
        assert _text(row, model) == every[int(np.argmax(scores))]


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("model", [_trained, functools.partial(_model, seed=4)])
def test_beams_are_searched_as_said(model: Any, beams: int) -> None:
    """The plain algorithm, one sentence at a time, without a cache: to the limit, whatever cannot win any more."""
    model, alpha, limit = model(), 0.6, 8
    found = model.generate(SOURCE, limit, num_beams=beams, length_penalty=alpha)
    for row, padded in zip(found, SOURCE, strict=True):
        source = padded[padded != 0]
        running: list[tuple[float, list[int]]] = [(0.0, [])]
        finished: list[tuple[float, list[int]]] = []
        while running and len(finished) < beams and len(running[0][1]) < limit:
            candidates = [
                (total + p, [*text, token])
                for total, text in running
                for token, p in enumerate(_log_p(model, source, text))
                if np.isfinite(p)
            ]
            candidates.sort(key=lambda candidate: -candidate[0])
            ends = [c for c in candidates[:beams] if c[1][-1] == 2]
            finished += [(total / ((5 + len(text)) / 6) ** alpha, text) for total, text in ends]
            running = [c for c in candidates if c[1][-1] != 2][:beams]
        expected = max(finished, key=lambda f: f[0])[1] if finished else running[0][1]
        assert _text(row, model) == expected


def test_search_finds_what_is_more_probable_than_greedy() -> None:
    model = _trained("post")
    source = np.random.default_rng(1).integers(3, 11, (20, 5))
    greedy, searched = model.generate(source, 15), model.generate(source, 15, num_beams=8, length_penalty=0.0)
    gains = [
        _score(model, row, _text(b, model), 0.0) - _score(model, row, _text(a, model), 0.0)
        for a, b, row in zip(greedy, searched, source, strict=True)
        if a[a != 0][-1] == 2
    ]
    assert np.sum(gains) > 1e-6


def test_length_penalty_prefers_longer_sentences() -> None:
    model = _model(vocab_size=5, seed=3)
    source = np.array([[3, 4, 2, 0], [4, 4, 3, 2], [3, 2, 0, 0]])
    lengths = [
        (model.generate(source, 6, num_beams=64, length_penalty=alpha) != 0).sum(axis=1) for alpha in (0.0, 1.0, 4.0)
    ]
    assert (lengths[0] <= lengths[1]).all()
    assert (lengths[1] <= lengths[2]).all()
    assert (lengths[0] < lengths[2]).any()


def test_equal_scores_have_an_order() -> None:
    """All tokens are equally probable: the earlier beam and the smaller token come first, each time."""
    model = _model(vocab_size=6)
    for parameter in model.parameters():
        parameter.value[...] = 0.0
    found = model.generate(np.array([[3, 4, 2]]), 4, num_beams=2, length_penalty=0.0)
    np.testing.assert_array_equal(found, [[2]])
    np.testing.assert_array_equal(model.generate(np.array([[3, 4, 2]]), 4), [[2]])


def test_default_length_is_the_papers() -> None:
    model = _model(context=60)
    model.tokens.weight.value[2] = 0.0  # the end has logit 0, so that another token always wins
    result = model.generate(SOURCE[:3])
    ended = (result == 2).any(axis=1)
    lengths = (result != 0).sum(axis=1)
    np.testing.assert_array_equal(lengths[~ended], np.minimum((SOURCE[:3] != 0).sum(axis=1) + 50, 60)[~ended])
    assert not ended.all()


def test_sampling() -> None:
    model = _model()
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0}
    first = model.generate(SOURCE, **options, seed=1)
    np.testing.assert_array_equal(first, model.generate(SOURCE, **options, seed=1))
    others = [model.generate(SOURCE, **options, seed=seed) for seed in range(2, 6)]
    assert any(other.shape != first.shape or (other != first).any() for other in others)
    np.testing.assert_array_equal(model.generate(SOURCE, **options, seed=1, top_k=1), model.generate(SOURCE, 12))
    for row in first:
        text = _text(row, model)
        assert 1 not in text
        assert 2 not in text[:-1]


def test_no_new_tokens() -> None:
    assert _model().generate(SOURCE, 0).shape == (6, 0)
    assert _model().generate(SOURCE[0], 0).shape == (0,)


def test_beginning_may_be_the_end() -> None:
    model = _model(bos_id=2)
    assert (model.generate(SOURCE, 14, num_beams=3) == 2).any()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_beams": 0}, ValueError),
        ({"num_beams": 2.0}, TypeError),
        ({"length_penalty": -1.0}, ValueError),
        ({"length_penalty": float("nan")}, ValueError),
        ({"temperature": -1.0}, ValueError),
        ({"temperature": 1.0, "num_beams": 2}, ValueError),
        ({"top_k": 0}, ValueError),
        ({"top_p": 0.0}, ValueError),
        ({"seed": -1}, ValueError),
        ({"max_new_tokens": -1}, ValueError),
        ({"max_new_tokens": 17}, ValueError),
        ({"max_new_tokens": 2.5}, TypeError),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        _model().generate(SOURCE, **options)
