"""Every layer and block against central differences."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from gradient import along, check
from numformer import nn
from numformer.nn.dropout import number_dropouts

F64 = np.float64
CTX = nn.Context(seed=3, step=2, sample=5)


class Sighted(nn.SlidingAttention):
    """With padding, and global tokens of different number."""

    seen = np.array([[1, 2, 1, 1, 2, 1], [1, 1, 1, 2, 0, 0]])

    def __call__(self, x: Any, **options: Any) -> Any:
        return super().__call__(x, mask=self.seen, **options)

    def infer(self, x: Any, **options: Any) -> Any:
        return super().infer(x, mask=self.seen, **options)


def _layers() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    common: dict[str, Any] = {"dtype": F64, "rng": rng}
    made: dict[str, Any] = {
        "linear": nn.Linear(8, 5, **common),
        "linear-no-bias": nn.Linear(8, 5, bias=False, **common),
        "linear-transposed": nn.Linear(8, 5, transposed=True, **common),
        "learned": nn.LearnedPositions(9, 8, **common),
        "sines": nn.SinusoidalPositions(9, 8),
        "layer-norm": nn.LayerNorm(8, dtype=F64),
        "layer-norm-no-bias": nn.LayerNorm(8, bias=False, dtype=F64),
        "rms-norm": nn.RMSNorm(8, dtype=F64),
        "dropout": nn.Dropout(0.4),
        "feed-forward": nn.FeedForward(8, 12, **common),
        "feed-forward-dropout": nn.FeedForward(8, dropout=0.3, **common),
        "attention": nn.MultiHeadAttention(8, 2, **common),
        "attention-causal": nn.MultiHeadAttention(8, 4, causal=True, bias=False, **common),
        "attention-grouped": nn.MultiHeadAttention(8, 4, num_kv_heads=2, causal=True, dropout=0.2, **common),
        "relative": nn.RelativeAttention(8, 2, **common),
        "relative-dropout": nn.RelativeAttention(8, 4, bias=True, transposed=True, dropout=0.2, **common),
        "sliding": Sighted(8, 2, window=2, **common),
        "sliding-dropout": Sighted(8, 4, window=1, bias=False, dropout=0.2, **common),
        "pre-norm": nn.PreNormBlock(8, 2, causal=True, **common),
        "pre-norm-dropout-rms": nn.PreNormBlock(8, 4, num_kv_heads=1, norm="rms", dropout=0.3, bias=False, **common),
        "post-norm": nn.PostNormBlock(8, 2, activation="silu", **common),
        "post-norm-dropout": nn.PostNormBlock(8, 2, dropout=0.3, causal=True, **common),
    }
    made |= {f"linear-{a}": nn.Linear(8, 5, activation=a, **common) for a in ("relu", "gelu", "gelu_tanh", "silu")}
    for layer in made.values():
        number_dropouts(layer)
        for parameter in layer.parameters():  # away from the zeros and ones that hide mistakes
            parameter.value += 0.1 * rng.standard_normal(parameter.value.shape)
    return made


@pytest.mark.parametrize("name", list(_layers()))
def test_gradient(name: str) -> None:
    layer = _layers()[name]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 6, 8))
    check(lambda x: layer(x, ctx=CTX), x, layer.parameters(), rng)


@pytest.mark.parametrize(
    "name", ["linear", "linear-gelu", "feed-forward", "feed-forward-dropout", "attention-grouped", "sliding"]
)
def test_residual(name: str) -> None:
    layer = _layers()[name]
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 6, 8))
    plain, backward = layer(x, ctx=CTX)
    dy = rng.standard_normal(plain.shape)
    dx = backward(dy)
    residual, other = rng.standard_normal(plain.shape), rng.standard_normal(x.shape)
    y, backward = layer(x, residual=residual, ctx=CTX)
    np.testing.assert_allclose(y, plain + residual, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(backward(dy, residual=other), dx + other, rtol=1e-12, atol=1e-12)


def _with_memory() -> dict[str, Any]:
    rng = np.random.default_rng(8)
    common: dict[str, Any] = {"dtype": F64, "rng": rng}
    made: dict[str, Any] = {
        "cross": nn.CrossAttention(8, 2, **common),
        "cross-dropout": nn.CrossAttention(8, 4, bias=False, dropout=0.3, **common),
        "pre-norm": nn.PreNormDecoderBlock(8, 2, activation="gelu", **common),
        "pre-norm-dropout": nn.PreNormDecoderBlock(8, 2, activation="silu", bias=False, dropout=0.3, **common),
        "post-norm": nn.PostNormDecoderBlock(8, 2, activation="gelu_tanh", **common),
        "post-norm-dropout": nn.PostNormDecoderBlock(8, 4, activation="gelu", hidden=12, dropout=0.3, **common),
    }
    for layer in made.values():
        number_dropouts(layer)
        for parameter in layer.parameters():
            parameter.value += 0.1 * rng.standard_normal(parameter.value.shape)
    return made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", list(_with_memory()))
def test_gradient_with_memory(name: str, masked: bool) -> None:
    layer = _with_memory()[name]
    rng = np.random.default_rng(9)
    x, memory = rng.standard_normal((2, 6, 8)), rng.standard_normal((2, 5, 8))
    mask = np.arange(5) < np.array([5, 3])[:, None, None, None] if masked else None

    def by_x(x: Any) -> Any:
        y, backward = layer(x, memory, mask=mask, ctx=CTX)
        return y, lambda dy: backward(dy)[0]

    def by_memory(memory: Any) -> Any:
        y, backward = layer(x, memory, mask=mask, ctx=CTX)
        return y, lambda dy: backward(dy)[1]

    check(by_x, x, layer.parameters(), rng)
    layer.zero_grad()
    check(by_memory, memory, layer.parameters(), rng)
    y, backward = layer(x, memory, mask=mask, ctx=CTX)
    dy, other = rng.standard_normal(y.shape), rng.standard_normal(memory.shape)
    _, dmemory = backward(dy)
    np.testing.assert_allclose(
        layer(x, memory, mask=mask, ctx=CTX)[1](dy, dmemory=other)[1], dmemory + other, rtol=1e-12, atol=1e-12
    )
    if masked:
        np.testing.assert_array_equal(dmemory[1, 3:], 0.0)


STARTS, MEMORY_STARTS = np.array([0, 4, 4, 5, 12]), np.array([0, 3, 5, 11, 11])
"""Of four packed sequences, one of which is empty; so is the memory of another."""


@pytest.mark.parametrize("name", [n for n in _layers() if n.startswith(("attention", "pre", "post", "feed", "drop"))])
def test_packed(name: str) -> None:
    """Each sequence has what it has alone, in a batch of one at its place; gradients of parameters are summed."""
    layer = _layers()[name]
    rng = np.random.default_rng(20)
    x, weights = rng.standard_normal((2, 12, 8))
    check(lambda x: layer(x, cu_seqlens=STARTS, ctx=CTX), x, layer.parameters(), rng)
    layer.zero_grad()
    y, backward = layer(x, cu_seqlens=STARTS, ctx=CTX)
    dx = backward(weights)
    summed = [p.grad.copy() for p in layer.parameters()]
    layer.zero_grad()
    for sample, (a, b) in enumerate(pairwise(STARTS)):
        alone, backward = layer(x[None, a:b], ctx=dataclasses.replace(CTX, sample=CTX.sample + sample))
        np.testing.assert_allclose(y[a:b], alone[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(dx[a:b], backward(weights[None, a:b])[0], rtol=1e-12, atol=1e-12)
    for parameter, gradient in zip(layer.parameters(), summed, strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-11, atol=1e-12)
    if "drop" not in name and "grouped" not in name and "feed" not in name:
        np.testing.assert_allclose(layer.infer(x, cu_seqlens=STARTS), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(_with_memory()))
def test_packed_with_memory(name: str) -> None:
    layer = _with_memory()[name]
    rng = np.random.default_rng(21)
    x, memory, weights = rng.standard_normal((12, 8)), rng.standard_normal((11, 8)), rng.standard_normal((12, 8))
    packed: dict[str, Any] = {"cu_seqlens": STARTS, "memory_cu_seqlens": MEMORY_STARTS}

    def by(which: int) -> Any:
        def forward(changed: Any) -> Any:
            y, backward = layer(*((changed, memory) if which == 0 else (x, changed)), ctx=CTX, **packed)
            return y, lambda dy: backward(dy)[which]

        return forward

    check(by(0), x, layer.parameters(), rng)
    layer.zero_grad()
    check(by(1), memory, layer.parameters(), rng)
    layer.zero_grad()
    y, backward = layer(x, memory, ctx=CTX, **packed)
    dx, dmemory = backward(weights)
    summed = [p.grad.copy() for p in layer.parameters()]
    layer.zero_grad()
    for sample, ((a, b), (c, d)) in enumerate(zip(pairwise(STARTS), pairwise(MEMORY_STARTS), strict=True)):
        ctx = dataclasses.replace(CTX, sample=CTX.sample + sample)
        alone, backward = layer(x[None, a:b], memory[None, c:d], ctx=ctx)
        np.testing.assert_allclose(y[a:b], alone[0], rtol=1e-12, atol=1e-12)
        for whole, part in zip((dx[a:b], dmemory[c:d]), backward(weights[None, a:b]), strict=True):
            np.testing.assert_allclose(whole, part[0], rtol=1e-12, atol=1e-12)
    for parameter, gradient in zip(layer.parameters(), summed, strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=1e-11, atol=1e-12)
    if "dropout" not in name:
        np.testing.assert_allclose(layer.infer(x, memory, **packed), y, rtol=1e-12, atol=1e-12)
        cross = getattr(layer, "cross_attention", layer)
        np.testing.assert_allclose(layer.infer(x, kv=cross.project(memory), **packed), y, rtol=1e-12, atol=1e-12)


def test_cross_attention_to_a_memory_of_another_width() -> None:
    rng = np.random.default_rng(10)
    layer = nn.CrossAttention(8, 2, memory_width=5, dtype=F64, rng=rng)
    x, memory = rng.standard_normal((2, 6, 8)), rng.standard_normal((2, 3, 5))
    y, backward = layer(x, memory)
    dy = rng.standard_normal(y.shape)
    dx, dmemory = backward(dy)
    along(lambda: float((layer.infer(x, memory) * dy).sum()), x, dx, rng)
    along(lambda: float((layer.infer(x, memory) * dy).sum()), memory, dmemory, rng)
    residual = rng.standard_normal(y.shape)
    z, backward = layer(x, memory, residual=residual)
    np.testing.assert_allclose(z, y + residual, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(backward(dy, residual=x)[0], dx + x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in _with_memory() if "dropout" not in n])
def test_infer_with_memory_is_the_forward(name: str) -> None:
    layer = _with_memory()[name]
    rng = np.random.default_rng(11)
    x, memory = rng.standard_normal((4, 6, 8)), rng.standard_normal((2, 5, 8))
    mask = np.arange(5) < np.array([5, 3])[:, None, None, None]
    twice, masks = memory.repeat(2, axis=0), mask.repeat(2, axis=0)
    expected = layer(x, twice, mask=masks)[0]
    cross = getattr(layer, "cross_attention", layer)
    np.testing.assert_allclose(layer.infer(x, twice, mask=masks), expected, rtol=1e-12, atol=1e-12)
    # two sequences for each memory, as the beams of a search have it
    np.testing.assert_allclose(layer.infer(x, memory, mask=mask), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.infer(x, kv=cross.project(memory), mask=mask), expected, rtol=1e-12, atol=1e-12)


def test_cross_attention_weights() -> None:
    rng = np.random.default_rng(12)
    layer = nn.CrossAttention(8, 2, dtype=F64, rng=rng)
    x, memory = rng.standard_normal((3, 6, 8)), rng.standard_normal((3, 5, 8))
    mask = np.arange(5) < np.array([5, 3, 0])[:, None, None, None]
    weights = layer.weights(x, memory, mask=mask)
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to([[[1.0]], [[1.0]], [[0.0]]], (3, 2, 6)), atol=1e-15)
    np.testing.assert_array_equal(weights[1, ..., 3:], 0.0)
    values = layer.project(memory)[..., 8:].reshape(3, 5, 2, 4).transpose(0, 2, 1, 3)
    merged = (weights @ values).transpose(0, 2, 1, 3).reshape(x.shape)
    np.testing.assert_allclose(layer.output.infer(merged), layer.infer(x, memory, mask=mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask_shape", [(6, 6), (2, 1, 6, 6), (1, 2, 1, 6)])
def test_attention_mask(mask_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    layer = nn.MultiHeadAttention(8, 2, dtype=F64, rng=rng)
    mask = rng.random(mask_shape) < 0.6
    x = rng.standard_normal((2, 6, 8))
    check(lambda x: layer(x, mask=mask), x, layer.parameters(), rng)
    np.testing.assert_allclose(layer.infer(x, mask=mask), layer(x, mask=mask)[0], rtol=1e-12)


@pytest.mark.parametrize("before", [1, 9])
def test_relative_attention_with_memory(before: int) -> None:
    """Gradients with a memory, which gets none; and a segment after its memory is the end of the whole."""
    rng = np.random.default_rng(13)
    layer = nn.RelativeAttention(8, 2, bias=True, dtype=F64, rng=rng)
    for parameter in layer.parameters():
        parameter.value += 0.3 * rng.standard_normal(parameter.value.shape)
    x, memory = rng.standard_normal((2, 6, 8)), rng.standard_normal((2, before, 8))
    check(lambda x: layer(x, memory=memory), x, layer.parameters(), rng)
    y, backward = layer(x, memory=memory)
    whole = layer.infer(np.concatenate([memory, x], axis=1))
    np.testing.assert_allclose(y, whole[:, before:], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.infer(x, memory=memory), y, rtol=1e-12, atol=1e-12)
    dy, residual, other = (rng.standard_normal(y.shape) for _ in range(3))
    dx = backward(dy)
    assert dx.shape == x.shape
    z, backward = layer(x, memory=memory, residual=residual)
    np.testing.assert_allclose(z, y + residual, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(backward(dy, residual=other), dx + other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", [(2, 3, 7), (3, 3, 8), (3, 8)])
def test_relative_attention_refuses_another_memory(wrong: tuple[int, ...]) -> None:
    layer = nn.RelativeAttention(8, 2)
    with pytest.raises(ValueError, match="memory must have shape"):
        layer(np.zeros((2, 5, 8), np.float32), memory=np.zeros(wrong, np.float32))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_embedding(scale: float) -> None:
    rng = np.random.default_rng(4)
    layer = nn.Embedding(7, 5, scale=scale, dtype=F64, rng=rng)
    ids = np.array([[0, 3, 3], [6, 3, 1]])
    y, backward = layer(ids)
    np.testing.assert_array_equal(y, scale * layer.weight.value[ids])
    dy = rng.standard_normal(y.shape)
    assert backward(dy) is None
    assert layer.weight.grad is not None
    along(lambda: float((layer(ids)[0] * dy).sum()), layer.weight.value, layer.weight.grad, rng)
    np.testing.assert_array_equal(layer.weight.grad[[2, 4, 5]], 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("overwrite", [False, True])
def test_cross_entropy(smoothing: float, overwrite: bool) -> None:
    rng = np.random.default_rng(5)
    layer = nn.CrossEntropy(label_smoothing=smoothing, overwrite=overwrite)
    logits = rng.standard_normal((3, 4, 7))
    targets = rng.integers(0, 7, (3, 4))
    targets[0, 1] = -100
    loss, backward = layer(logits.copy(), targets)
    np.testing.assert_allclose(layer.infer(logits, targets), loss, rtol=1e-14)
    gradient = backward(0.5)
    along(lambda: 0.5 * float(layer.infer(logits, targets)), logits, gradient, rng)
    np.testing.assert_array_equal(gradient[0, 1], 0.0)


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_offset(offset: int) -> None:
    rng = np.random.default_rng(6)
    layer = nn.LearnedPositions(9, 4, dtype=F64, rng=rng)
    x = rng.standard_normal((3, 5, 4))
    check(lambda x: layer(x, offset=offset), x, layer.parameters(), rng)
    assert layer.weight.grad is not None
    np.testing.assert_array_equal(layer.weight.grad[:offset], 0.0)
    np.testing.assert_array_equal(layer.weight.grad[offset + 5 :], 0.0)


@pytest.mark.parametrize(
    "name", [n for n in _layers() if n not in ("dropout",) and "dropout" not in n and "grouped" not in n]
)
def test_infer_is_the_forward(name: str) -> None:
    layer = _layers()[name]
    x = np.random.default_rng(7).standard_normal((2, 6, 8))
    np.testing.assert_allclose(layer.infer(x), layer(x)[0], rtol=1e-12, atol=1e-12)
