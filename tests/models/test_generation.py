"""Generation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numformer.models import GPT, GPTConfig
from numformer.models.generation import penalised, probabilities, sample


@pytest.fixture(scope="module")
def model() -> GPT:
    made = GPT(GPTConfig(vocab_size=13, context=16, layers=2, heads=2, width=8, dtype="float64"), rng=0)
    rng = np.random.default_rng(1)
    for parameter in made.parameters():  # large weights, so that texts differ
        parameter.value += 0.3 * rng.standard_normal(parameter.value.shape)
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("new", [1, 10, 40])
def test_cache_changes_nothing(model: GPT, temperature: float, new: int) -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    options: dict[str, Any] = {"temperature": temperature, "seed": 5}
    np.testing.assert_array_equal(
        model.generate(ids, new, **options), model.generate(ids, new, use_cache=False, **options)
    )


def test_logits_with_cache(model: GPT) -> None:
    ids = np.random.default_rng(0).integers(0, 13, (2, 16))
    cache = model.new_cache()
    pieces = [model.infer(ids[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 16))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), model.infer(ids), rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="up to 16 positions, got one of 17"):
        model.infer(ids[:, :1], cache=cache)


def test_greedy_is_the_most_probable(model: GPT) -> None:
    ids = np.array([1, 2, 3])
    text = model.generate(ids, 8, temperature=0)
    assert text.shape == (11,)
    for end in range(3, 11):
        assert text[end] == model.infer(text[:end])[-1].argmax()


def test_window_slides_by_one_at_will(model: GPT) -> None:
    text = model.generate(np.array([1, 2, 3]), 30, temperature=0, slide=1)
    for end in range(17, 33):
        assert text[end] == model.infer(text[end - 16 : end])[-1].argmax()


def test_prompt_longer_than_the_context(model: GPT) -> None:
    ids = np.arange(40) % 13
    text = model.generate(ids, 5, seed=1)
    np.testing.assert_array_equal(text[:40], ids)
    np.testing.assert_array_equal(text[40:], model.generate(ids[-16:], 5, seed=1)[16:])


def test_seed(model: GPT) -> None:
    ids = np.array([1])
    assert (model.generate(ids, 14, seed=1) == model.generate(ids, 14, seed=1)).all()
    assert (model.generate(ids, 14, seed=1) != model.generate(ids, 14, seed=2)).any()


def distribution(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """One row, as the definition says: tokens from the most probable on, of equal ones the first."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weights = [math.exp((float(logits[token]) - float(logits[order[0]])) / temperature) for token in order[:top_k]]
    kept, before = {}, 0.0
    for token, weight in zip(order, weights, strict=False):
        if top_p is None or before < top_p:
            kept[token] = weight
        before += weight / sum(weights)
    p = np.zeros(len(logits))
    for token, weight in kept.items():
        p[token] = weight / sum(kept.values())
    return p


@pytest.mark.parametrize("top_k", [None, 1, 3, 40, 1000])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.3, 0.9, 1.0])
def test_what_is_drawn_from(rng: np.random.Generator, top_k: int | None, top_p: float | None) -> None:
    for scale, rounded in ((1.0, False), (10.0, False), (3.0, True), (0.0, True)):
        logits = (scale * rng.standard_normal((3, 97))).astype(np.float32)
        if rounded:
            logits = logits.round()  # equal ones
        logits[1, 5:90] = -np.inf
        got = probabilities(logits, 0.7, top_k, top_p)
        for row, found in zip(logits, got, strict=True):
            want = distribution(row, 0.7, top_k, top_p)
            # Of the last ones the sum before them may be p but for its rounding.
            close = np.isclose(found, want, rtol=1e-9, atol=1e-15)
            assert close.all() or (top_p == 1.0 and found[~close].max() < 1e-9), (scale, rounded)


def test_top_k_of_one_is_greedy(model: GPT) -> None:
    ids = np.array([[1, 2]])
    greedy = model.generate(ids, 12, temperature=0)
    np.testing.assert_array_equal(model.generate(ids, 12, top_k=1, seed=3), greedy)
    np.testing.assert_array_equal(model.generate(ids, 12, top_p=1e-9, seed=3), greedy)


def test_probabilities() -> None:
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]]))
    np.testing.assert_allclose(probabilities(logits, 1.0, None, None), [[0.1, 0.4, 0.2, 0.3]])
    np.testing.assert_allclose(probabilities(logits, 0.5, None, None), [np.array([1, 16, 4, 9]) / 30])
    np.testing.assert_allclose(probabilities(logits, 1.0, 2, None), [[0, 4 / 7, 0, 3 / 7]])
    np.testing.assert_allclose(probabilities(logits, 1.0, None, 0.7 - 1e-9), [[0, 4 / 7, 0, 3 / 7]])
    np.testing.assert_allclose(probabilities(logits, 1.0, None, 0.71), [[0, 4 / 9, 2 / 9, 3 / 9]])
    np.testing.assert_allclose(probabilities(logits, 1.0, 10, 1.0), [[0.1, 0.4, 0.2, 0.3]])


def test_samples_follow_the_distribution() -> None:
    p = np.array([0.05, 0.5, 0.0, 0.45])
    with np.errstate(divide="ignore"):
        logits = np.broadcast_to(np.log(p), (20000, 4))
    drawn = np.bincount(sample(logits, np.random.default_rng(0), 1.0, None, None), minlength=4) / 20000
    # five standard deviations of a frequency over 20000 draws
    np.testing.assert_allclose(drawn, p, atol=5 * np.sqrt(0.25 / 20000))
    assert drawn[2] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
        {"slide": 0},
        {"slide": 17},
        {"max_new_tokens": -1},
        {"stop": 13},
        {"repetition_penalty": 0.0},
    ],
)
def test_bad_options(model: GPT, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        model.generate(np.array([1]), **({"max_new_tokens": 3} | options))


def test_prompts_of_different_lengths(model: GPT) -> None:
    prompts = [np.array([1, 2, 3, 4]), np.array([5]), np.array([6, 7])]
    for options in ({}, {"use_cache": False}, {"repetition_penalty": 1.5}):
        texts = model.generate(prompts, 9, temperature=0, **options)
        for prompt, text in zip(prompts, texts, strict=True):
            np.testing.assert_array_equal(text, model.generate(prompt, 9, temperature=0, **options))


def test_mask_with_cache(model: GPT) -> None:
    ids = np.random.default_rng(0).integers(0, 13, (2, 12))
    mask = np.arange(12) >= np.array([[4], [0]])
    cache = model.new_cache()
    pieces = [model.infer(ids[:, a:b], mask=mask[:, :b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 12))]
    whole = np.concatenate(pieces, axis=1)
    np.testing.assert_allclose(whole[0, 4:], model.infer(ids[0, 4:]), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(whole[1], model.infer(ids[1]), rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 12\), got \(2, 11\)"):
        model.infer(ids, mask=mask[:, 1:])
    with pytest.raises(TypeError, match="mask must be boolean"):
        model.infer(ids, mask=mask.astype(int))


def test_stop_ends_a_sequence(model: GPT) -> None:
    prompts = np.array([[1, 2], [3, 4], [5, 6]])
    free = model.generate(prompts, 12, temperature=0)
    stop = int(free[0, 4])
    texts = model.generate(prompts, 12, temperature=0, stop=stop)
    for row, text in zip(free[:, 2:], texts[:, 2:], strict=True):
        ends = np.flatnonzero(row == stop)
        end = int(ends[0]) + 1 if ends.size else len(row)
        np.testing.assert_array_equal(text[:end], row[:end])
        assert (text[end:] == stop).all()
    several = model.generate(list(prompts), 12, temperature=0, stop=[stop, 99 % 13])
    assert several[0].size == 2 + int(np.flatnonzero(np.isin(free[0, 2:], [stop, 99 % 13]))[0]) + 1


def test_stream_is_generate(model: GPT) -> None:
    prompts, options = [np.array([1, 2]), np.array([3])], {"temperature": 1.0, "seed": 4}
    texts = model.generate(prompts, 20, stop=[0, 1, 2], **options)
    steps = list(model.stream(prompts, 20, stop=[0, 1, 2], **options))
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        np.testing.assert_array_equal(text[len(prompt) :], [step[row] for step in steps if step[row] >= 0])


def test_repetition_penalty(model: GPT) -> None:
    np.testing.assert_allclose(
        penalised(np.array([[2.0, -2.0, 2.0]]), np.array([[True, True, False]]), 4.0), [[0.5, -8.0, 2.0]]
    )
    text = model.generate(np.array([1]), 12, temperature=0, repetition_penalty=1.7)
    for end in range(1, 13):
        seen = np.isin(np.arange(13), text[:end])
        assert text[end] == penalised(model.infer(text[:end])[-1], seen, 1.7).argmax()
    assert (text != model.generate(np.array([1]), 12, temperature=0)).any()


def test_log_likelihood(model: GPT) -> None:
    texts = [np.array([1, 2, 3, 4, 5]), np.array([7]), np.array([6, 7, 8])]
    found = model.log_likelihood(texts)
    for text, value in zip(texts, found, strict=True):
        logits = model.infer(text)
        p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(value, p[np.arange(len(text) - 1), text[1:]].sum(), rtol=1e-9, atol=1e-12)
    assert model.log_likelihood(texts[0]) == pytest.approx(found[0])
