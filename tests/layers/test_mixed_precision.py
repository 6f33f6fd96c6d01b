"""Layers in 16 bits with float32 parameters, beside the same layers in float64 on the numbers that were rounded.

With u the unit roundoff of the 16-bit dtype: what goes in is exact on both sides, since the float64 twin reads the
rounded matrices and the rounded x. So a result differs by the roundings of the arrays between the kernels, at most u
each relative to the norm of what is rounded, and by errors of float32, which are 2**-13 (float16) and smaller beside
these. The count of arrays on the way to a result, forward and backward, is what stands in the table below.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numformer import nn
from numformer.nn.dropout import number_dropouts
from tolerance import u

Array = Any
NARROW = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
CTX = nn.Context(seed=3, step=2, sample=5)
narrow = pytest.mark.parametrize("dtype", NARROW, ids=str)

# A layer by (dtype, rng); arrays that are rounded on the way to y and to the gradients.
CASES: dict[str, tuple[Any, int, int]] = {
    "linear": (lambda **c: nn.Linear(16, 11, **c), 1, 1),
    "linear-transposed-gelu": (lambda **c: nn.Linear(16, 11, activation="gelu", transposed=True, **c), 1, 4),
    "learned": (lambda **c: nn.LearnedPositions(9, 16, **c), 1, 1),
    "layer-norm": (lambda **c: nn.LayerNorm(16, dtype=c["dtype"]), 1, 1),
    "rms-norm": (lambda **c: nn.RMSNorm(16, dtype=c["dtype"]), 1, 1),
    "feed-forward-dropout": (lambda **c: nn.FeedForward(16, 24, dropout=0.3, **c), 4, 8),
    "attention": (lambda **c: nn.MultiHeadAttention(16, 4, causal=True, **c), 4, 10),
    "attention-grouped": (lambda **c: nn.MultiHeadAttention(16, 4, num_kv_heads=2, dropout=0.2, **c), 5, 12),
    "relative": (lambda **c: nn.RelativeAttention(16, 2, **c), 5, 12),
    "pre-norm": (lambda **c: nn.PreNormBlock(16, 2, causal=True, **c), 9, 20),
    "post-norm": (lambda **c: nn.PostNormBlock(16, 2, activation="silu", dropout=0.2, **c), 10, 22),
}


def _shaken(layer: nn.Module, rng: Any) -> nn.Module:
    number_dropouts(layer)
    for parameter in layer.parameters():  # away from the zeros and ones that hide mistakes
        parameter.value += (0.1 * rng.standard_normal(parameter.value.shape)).astype(np.float32)
    return layer


def _twin(make: Any, layer: nn.Module, dtype: Any) -> nn.Module:
    """The layer in float64, with matrices as they are read in `dtype` (vectors are not rounded)."""
    twin = make(dtype=np.float64, rng=np.random.default_rng(0))
    number_dropouts(twin)
    for theirs, ours in zip(twin.parameters(), layer.parameters(), strict=True):
        rounded = ours.value.ndim > 1 and not ours.name.endswith(("bias_u", "bias_v"))
        theirs.value[...] = (ours.value.astype(dtype) if rounded else ours.value).astype(np.float64)
    return twin


def _close(ours: Array, theirs: Array, count: int, dtype: Any, what: str) -> None:
    error = np.linalg.norm(ours.astype(np.float64) - theirs)
    # Roundings of x, dy, weights are on both sides; the branches of softmax and norm amplify no more than twofold here.
    assert error <= 2 * count * u(dtype) * np.linalg.norm(theirs) + 1e-6, (what, error / np.linalg.norm(theirs))


@narrow
@pytest.mark.parametrize("name", CASES)
def test_layer(rng: Any, name: str, dtype: Any) -> None:
    make, forward, back = CASES[name]
    layer = _shaken(make(dtype=np.float32, rng=np.random.default_rng(0)), rng)
    twin = _twin(make, layer, dtype)
    x = rng.standard_normal((3, 9, 16)).astype(dtype)
    y, backward = layer(x, ctx=CTX)
    want, backward64 = twin(x.astype(np.float64), ctx=CTX)
    assert y.dtype == dtype
    _close(y, want, forward, dtype, "y")
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, dx64 = backward(dy), backward64(dy.astype(np.float64))
    assert dx.dtype == dtype
    _close(dx, dx64, back, dtype, "dx")
    largest = max(np.linalg.norm(p.grad) for p in twin.parameters())
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        assert ours.grad.dtype == np.float32, ours.name
        error = np.linalg.norm(ours.grad - theirs.grad)
        # The bias of keys has no gradient in exact arithmetic: an error is one of what it was summed from.
        assert error <= 2 * back * u(dtype) * max(np.linalg.norm(theirs.grad), 0.1 * largest), (ours.name, error)


@narrow
def test_gradients_of_weights_are_not_rounded(rng: Any, dtype: Any) -> None:
    """One map, no rounding between: its gradients have errors of float32, and the second one is added to the first."""
    layer = _shaken(nn.Linear(16, 11, rng=np.random.default_rng(0)), rng)
    x, dy = (rng.standard_normal((300, n)).astype(dtype) for n in (16, 11))
    for _ in range(2):
        layer(x)[1](dy)
    want = 2 * x.T.astype(np.float64) @ dy.astype(np.float64)
    size = 2 * np.abs(x.T.astype(np.float64)) @ np.abs(dy.astype(np.float64))
    assert (np.abs(layer.weight.grad - want) <= 110 * 2.0**-24 * size).all(), "6 sqrt(300) + some roundings of float32"
    assert layer.bias is not None
    want = 2 * dy.astype(np.float64).sum(axis=0)
    assert (np.abs(layer.bias.grad - want) <= 110 * 2.0**-24 * 2 * np.abs(dy.astype(np.float64)).sum(axis=0)).all()


@narrow
@pytest.mark.parametrize("scale", [1.0, 3.7])
def test_embedding(rng: Any, scale: float, dtype: Any) -> None:
    """Rows are rounded once, scaled or not, whether a copy is kept or not; gradients are sums in float32."""
    layer = nn.Embedding(13, 16, scale=scale, padding=2, rng=np.random.default_rng(0))
    ids = rng.integers(0, 13, (5, 7))
    ctx = nn.Context(dtype=dtype)
    y, backward = layer(ids, ctx=ctx)
    want = (layer.weight.value[ids] * np.float32(scale)).astype(dtype)
    np.testing.assert_array_equal(y.view(np.uint16), want.view(np.uint16))
    dy = rng.standard_normal(y.shape).astype(dtype)
    backward(dy)
    exact = np.zeros((13, 16))
    np.add.at(exact, ids, scale * dy.astype(np.float64))
    exact[2] = 0
    assert layer.weight.grad.dtype == np.float32
    np.testing.assert_allclose(layer.weight.grad, exact, rtol=1e-5, atol=1e-5)
    layer.weight.keep(dtype)
    for _ in range(2):
        layer.weight.read(dtype)  # as the output layer of a tied table does
        np.testing.assert_array_equal(layer(ids, ctx=ctx)[0].view(np.uint16), want.view(np.uint16))


@narrow
def test_loss_over_an_output_layer(rng: Any, dtype: Any) -> None:
    """A weighted loss: what is scaled is scaled in float32, so a weight that 16 bits cannot hold does no harm."""
    head = _shaken(nn.Linear(16, 29, transposed=True, rng=np.random.default_rng(0)), rng)
    x, targets = rng.standard_normal((40, 16)).astype(dtype), rng.integers(0, 29, 40)
    loss, backward = nn.LinearCrossEntropy()(head, x, targets)
    dx = backward(0.3)
    twin = nn.Linear(16, 29, transposed=True, dtype=np.float64)
    twin.weight.value[...] = head.weight.value.astype(dtype)
    assert head.bias is not None and twin.bias is not None
    twin.bias.value[...] = head.bias.value
    want, backward64 = nn.LinearCrossEntropy()(twin, x.astype(np.float64), targets)
    dx64 = backward64(0.3)
    assert abs(loss - want) <= 1e-5 * want, "logits and loss are float32"
    _close(dx, dx64, 3, dtype, "dx")
    for ours, theirs in zip(head.parameters(), twin.parameters(), strict=True):
        assert ours.grad.dtype == np.float32
        _close(ours.grad, theirs.grad, 1, dtype, ours.name)


@narrow
def test_a_kept_copy_follows_its_value(rng: Any, dtype: Any) -> None:
    parameter = nn.Parameter(rng.standard_normal((7, 5)).astype(np.float32))

    def check() -> Array:
        read = parameter.read(dtype)
        np.testing.assert_array_equal(read.view(np.uint16), parameter.value.astype(dtype).view(np.uint16))
        return read

    assert check() is not check(), "nothing is kept, so nothing can be stale"
    parameter.value[...] += 1
    check()
    parameter.keep(dtype)
    kept = check()
    assert check() is kept
    parameter.value = parameter.value * 2
    assert check() is kept, "another value"
    parameter.value[...] += 1
    parameter.changed()
    check()
    other = NARROW[0] if dtype == NARROW[1] else NARROW[1]
    assert parameter.read(other).dtype == other
    parameter.keep(None)
    assert parameter.copy is None
    check()
    vector = nn.Parameter(np.ones(3, np.float32))
    vector.keep(dtype)
    assert vector.read(dtype) is vector.value, "kernels take float32 vectors beside 16 bits"


def test_16_bit_weights_beside_wider_arrays(rng: Any) -> None:
    """A model that was read in bfloat16 computes in float32 where that is asked for."""
    layer = nn.Linear(6, 4, rng=np.random.default_rng(0))
    layer.weight.value = layer.weight.value.astype(ml_dtypes.bfloat16)
    x = rng.standard_normal((3, 6)).astype(np.float32)
    np.testing.assert_allclose(layer.infer(x), x @ layer.weight.value.astype(np.float32), rtol=1e-5, atol=1e-6)
