"""What a layer promises besides its numbers."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from numformer import nn
from numformer.nn.dropout import number_dropouts


class Sighted(nn.SlidingAttention):
    """With padding and global tokens."""

    def __call__(self, x: Any, **options: Any) -> Any:
        return super().__call__(x, mask=np.arange(x.shape[1]) % 3 * np.ones((len(x), 1), int), **options)


LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(8, 8, activation="gelu"),
    "layer-norm": lambda: nn.LayerNorm(8),
    "rms-norm": lambda: nn.RMSNorm(8),
    "dropout": lambda: nn.Dropout(0.5),
    "feed-forward": lambda: nn.FeedForward(8),
    "attention": lambda: nn.MultiHeadAttention(8, 2),
    "relative-attention": lambda: nn.RelativeAttention(8, 2),
    "sliding-attention": lambda: Sighted(8, 2, window=1),
    "pre-norm": lambda: nn.PreNormBlock(8, 2, dropout=0.1),
    "post-norm": lambda: nn.PostNormBlock(8, 2),
}
CTX = nn.Context(seed=1)
WITH_MEMORY: dict[str, Any] = {
    "cross-attention": lambda: nn.CrossAttention(8, 2),
    "pre-norm": lambda: nn.PreNormDecoderBlock(8, 2, dropout=0.1),
    "post-norm": lambda: nn.PostNormDecoderBlock(8, 2),
}


def _x(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((2, 5, 8), np.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_backward_runs_once(name: str) -> None:
    layer = LAYERS[name]()
    y, backward = layer(_x(), ctx=CTX)
    backward(y)
    with pytest.raises(RuntimeError, match="run already"):
        backward(y)


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "dropout"])
def test_backward_lets_go_without_the_collector(name: str) -> None:
    layer = LAYERS[name]()
    gc.collect()
    gc.disable()
    try:
        x = _x()
        alive = weakref.ref(x)
        y, backward = layer(x, ctx=CTX)
        del x
        assert alive() is not None, "the forward must keep its input for the backward"
        backward(y)
        assert alive() is None
        del y, backward
        assert gc.collect() == 0, "there is a reference cycle"
    finally:
        gc.enable()


@pytest.mark.parametrize("name", LAYERS)
def test_backward_dropped_unused_lets_go(name: str) -> None:
    layer = LAYERS[name]()
    gc.collect()
    gc.disable()
    try:
        x = _x()
        alive = weakref.ref(x)
        y, backward = layer(x, ctx=CTX)
        del x, y, backward
        assert alive() is None
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_layers_with_a_memory_let_go(name: str, used: bool) -> None:
    layer = WITH_MEMORY[name]()
    gc.collect()
    gc.disable()
    try:
        x, memory = _x(), _x(1)
        alive = weakref.ref(x), weakref.ref(memory)
        y, backward = layer(x, memory, ctx=CTX)
        del x, memory
        assert all(reference() is not None for reference in alive)
        if used:
            backward(y)
            with pytest.raises(RuntimeError, match="run already"):
                backward(y)
        else:
            del backward
        assert all(reference() is None for reference in alive)
        del y
        assert gc.collect() == 0, "there is a reference cycle"
    finally:
        gc.enable()


def test_gradients_are_written_then_added() -> None:
    layer = nn.Linear(8, 8)
    x = _x()
    y, backward = layer(x)
    backward(y)
    first = layer.weight.grad.copy()
    buffer = layer.weight.grad
    layer.zero_grad()
    _, backward = layer(x)
    backward(y)
    np.testing.assert_array_equal(layer.weight.grad, first)
    assert layer.weight.grad is buffer, "the buffer is used again"
    _, backward = layer(x)
    backward(y)
    np.testing.assert_allclose(layer.weight.grad, 2 * first, rtol=1e-6, atol=1e-6)


def test_shared_parameter_is_complete_after_its_last_use() -> None:
    first = nn.Linear(8, 8, bias=False)
    second = nn.Linear(8, 8, bias=False, transposed=True, weight=first.weight)
    done: list[str] = []
    first.weight.on_complete = lambda parameter: done.append(parameter.name)
    first.parameters()
    h, backward1 = first(_x())
    y, backward2 = second(h)
    dh = backward2(y)
    assert done == []
    backward1(dh)
    assert done == ["weight"]


def test_dropout_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="seed"):
        nn.Dropout(0.5)(_x())
    with pytest.raises(ValueError, match="seed"):
        nn.PreNormBlock(8, 2, dropout=0.1)(_x(), ctx=nn.Context(step=1))


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_dropout_p(p: float) -> None:
    with pytest.raises(ValueError, match="p must be"):
        nn.Dropout(p)


def test_dropout_masks_do_not_know_micro_batches() -> None:
    layer = nn.Dropout(0.5, layer=2)
    x = np.ones((6, 5, 8), np.float32)
    whole, _ = layer(x, ctx=nn.Context(seed=7, step=3))
    pieces = [layer(x[i : i + 2], ctx=nn.Context(seed=7, step=3, sample=i)) for i in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate([y for y, _ in pieces]), whole)
    gradients = np.concatenate([backward(x[:2]) for _, backward in pieces])
    np.testing.assert_array_equal(gradients, whole)
    other, _ = layer(x, ctx=nn.Context(seed=7, step=4))
    assert (other != whole).any()
    assert set(np.unique(whole)) == {0.0, 2.0}


def test_dropouts_of_a_model_draw_different_masks() -> None:
    block = nn.PreNormBlock(8, 2, dropout=0.5)
    number_dropouts(block)
    assert sorted(m.layer for _, m in block.modules() if isinstance(m, nn.Dropout)) == [0, 1]


def test_state_dict_names_what_is_wrong() -> None:
    layer = nn.FeedForward(8)
    state = {name: value.copy() for name, value in layer.state_dict().items()}
    before = layer.inner.weight.value.copy()
    state["extra"] = np.zeros(1)
    del state["inner.bias"]
    state["outer.weight"] = np.zeros((3, 3))
    state["inner.weight"] = state["inner.weight"] + 1
    with pytest.raises(
        ValueError,
        match=r"missing inner\.bias.*unexpected extra.*outer\.weight must have shape \(32, 8\), got \(3, 3\)",
    ):
        layer.load_state_dict(state)
    np.testing.assert_array_equal(layer.inner.weight.value, before)


def test_state_dict_round_trip() -> None:
    a, b = nn.FeedForward(8), nn.FeedForward(8)
    b.load_state_dict(a.state_dict())
    np.testing.assert_array_equal(a.infer(_x()), b.infer(_x()))


@pytest.mark.parametrize("length", [1, 7])
def test_cache_continues_a_sequence(length: int) -> None:
    layer = nn.MultiHeadAttention(8, 4, num_kv_heads=2, causal=True, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((3, 20, 8))
    cache = nn.KVCache(2)
    pieces = [layer.infer(x[:, i : i + length], cache=cache) for i in range(0, 20, length)]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), layer.infer(x), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="KVCache"):
        layer.infer(x[:2], cache=cache)


def test_cache_selects_sequences() -> None:
    layer = nn.MultiHeadAttention(8, 2, causal=True, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((3, 9, 8))
    cache, rows = nn.KVCache(2), np.array([2, 0, 2, 2])
    cache.select(rows)  # nothing is there yet
    layer.infer(x[:, :5], cache=cache)
    cache.select(rows)
    np.testing.assert_allclose(
        layer.infer(x[rows, 5:], cache=cache), layer.infer(x[rows])[:, 5:], rtol=1e-10, atol=1e-12
    )
    for wrong in ([4], [-1, 0], [0.5], [True, False, True, True], [[0]]):
        with pytest.raises(ValueError, match="rows must be a vector of indices below 4"):
            cache.select(np.array(wrong))


def test_sines() -> None:
    table = nn.SinusoidalPositions(10, 6).table
    np.testing.assert_allclose(table[3, 2], np.sin(3 / 10000 ** (2 / 6)))
    np.testing.assert_allclose(table[3, 5], np.cos(3 / 10000 ** (4 / 6)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.MultiHeadAttention(8, 3), "heads must divide width 8, got 3"),
        (lambda: nn.MultiHeadAttention(8, 4, num_kv_heads=3), "num_kv_heads must divide heads 4, got 3"),
        (lambda: nn.MultiHeadAttention(8, 2).infer(_x()[0]), r"x must have shape \(batch, positions, 8\)"),
        (lambda: nn.CrossAttention(8, 3), "heads must divide width 8, got 3"),
        (lambda: nn.CrossAttention(8, 2).infer(_x()[0], _x()), r"x must have shape \(batch, positions, 8\)"),
        (
            lambda: nn.CrossAttention(8, 2)(_x(), _x()[..., :4]),
            r"memory must have shape \(batch, memory positions, 8\)",
        ),
        (lambda: nn.CrossAttention(8, 2)(_x(), _x()[:1]), "x has a batch of 2, but memory one of 1"),
        (lambda: nn.CrossAttention(8, 2).infer(_x()), "either memory or kv"),
        (lambda: nn.MultiHeadAttention(8, 2)(_x(), cu_seqlens=np.array([0, 2])), r"x must have shape \(total, 8\)"),
        (
            lambda: nn.MultiHeadAttention(8, 2)(_x()[0], cu_seqlens=np.array([0, 99])),
            "cu_seqlens_q must end with the rows of q",
        ),
        (
            lambda: nn.MultiHeadAttention(8, 2)(_x()[0], cu_seqlens=np.array([0, 5]), mask=np.ones((5, 5), bool)),
            "mask must be None with cu_seqlens",
        ),
        (
            lambda: nn.MultiHeadAttention(8, 2).infer(_x()[0], cu_seqlens=np.array([0, 5]), cache=nn.KVCache()),
            "cache must be None with cu_seqlens",
        ),
        (
            lambda: nn.CrossAttention(8, 2)(_x()[0], _x()[0], cu_seqlens=np.array([0, 5])),
            "both cu_seqlens and memory_cu_seqlens, or neither",
        ),
        (
            lambda: nn.CrossAttention(8, 2).infer(
                _x()[0], _x(), cu_seqlens=np.array([0, 5]), memory_cu_seqlens=np.array([0, 5])
            ),
            r"memory must have shape \(total, 8\)",
        ),
        (lambda: nn.CrossAttention(8, 2).infer(_x(), kv=_x()), r"kv must have shape \(batch, memory positions, 16\)"),
        (lambda: nn.Linear(0, 3), "inputs must be at least 1"),
        (lambda: nn.Linear(3, 3, activation="tanh"), "activation must be None or one of relu"),
        (lambda: nn.Linear(3, 4, weight=nn.Parameter(np.zeros((3, 3)))), r"weight must have shape \(3, 4\)"),
        (lambda: nn.PreNormBlock(8, 2, norm="batch"), "norm must be"),
        (lambda: nn.LearnedPositions(4, 8).infer(_x()), "4 positions, got a sequence that ends at 5"),
        (lambda: nn.SinusoidalPositions(4, 8).infer(_x()), "4 positions"),
        (lambda: nn.CrossEntropy(label_smoothing=2), "label_smoothing must be"),
    ],
)
def test_bad_values(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("make", [lambda: nn.Linear(3.0, 3), lambda: nn.Linear(3, 3, dtype=np.float16)])
def test_bad_kinds(make: Any) -> None:
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize("rows", [2047, 2048, 3500])
def test_feed_forward_of_a_long_input_has_the_bits_of_one_piece(rows: int) -> None:
    layer = nn.FeedForward(8, 12)
    x, residual = np.random.default_rng(1).standard_normal((2, 1, rows, 8)).astype(np.float32)
    np.testing.assert_array_equal(layer.infer(x, residual=residual), layer(x, residual=residual)[0])
    np.testing.assert_array_equal(layer.infer(x), layer(x)[0])
