"""Every layer and block against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradient import along, check
from numformer import nn
from numformer.nn.dropout import number_dropouts

F64 = np.float64
CTX = nn.Context(seed=3, step=2, sample=5)


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


@pytest.mark.parametrize("name", ["linear", "linear-gelu", "feed-forward", "feed-forward-dropout", "attention-grouped"])
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


@pytest.mark.parametrize("mask_shape", [(6, 6), (2, 1, 6, 6), (1, 2, 1, 6)])
def test_attention_mask(mask_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    layer = nn.MultiHeadAttention(8, 2, dtype=F64, rng=rng)
    mask = rng.random(mask_shape) < 0.6
    x = rng.standard_normal((2, 6, 8))
    check(lambda x: layer(x, mask=mask), x, layer.parameters(), rng)
    np.testing.assert_allclose(layer.infer(x, mask=mask), layer(x, mask=mask)[0], rtol=1e-12)


def test_embedding() -> None:
    rng = np.random.default_rng(4)
    layer = nn.Embedding(7, 5, dtype=F64, rng=rng)
    ids = np.array([[0, 3, 3], [6, 3, 1]])
    y, backward = layer(ids)
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
