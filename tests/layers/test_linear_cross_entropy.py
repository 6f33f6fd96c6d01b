"""The layer that makes its gradients in the forward pass, and the arrays in which it leaves them until the backward."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
from gradient import along
from numformer import nn
from numformer.models import GPT, GPTConfig
from numformer.ops import memory

F64 = np.dtype(np.float64)
Array = np.ndarray[Any, np.dtype[Any]]


def made(bias: bool = True, dtype: Any = F64, classes: int = 11) -> tuple[nn.Linear, Array, Array]:
    rng = np.random.default_rng(0)
    head = nn.Linear(8, classes, bias=bias, transposed=True, dtype=dtype, rng=rng)
    x, targets = rng.standard_normal((3, 7, 8)).astype(dtype), rng.integers(0, classes, (3, 7))
    targets[1, 2:5] = -100
    return head, x, targets


def grads(head: nn.Linear) -> list[Array]:
    return [p.grad.copy() for p in head.parameters() if p.grad is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradient(bias: bool, smoothing: float) -> None:
    rng = np.random.default_rng(1)
    head, x, targets = made(bias)
    layer = nn.LinearCrossEntropy(label_smoothing=smoothing)
    dloss = 0.7
    dx = layer(head, x, targets)[1](dloss)
    once = grads(head)

    def loss() -> float:
        return dloss * float(layer(head, x, targets)[0])

    along(loss, x, dx, rng)
    for parameter, gradient in zip(head.parameters(), once, strict=True):
        along(loss, parameter.value, gradient, rng)
    layer(head, x, targets)[1](2 * dloss)
    for twice, gradient in zip(grads(head), once, strict=True):
        np.testing.assert_allclose(twice, 3 * gradient, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_it_is_the_two_layers_that_it_replaces(dtype: Any) -> None:
    """Float32 parameters beside 16-bit arrays too, whose logits the two layers round."""
    head, x, targets = made(dtype=np.float32)
    x = x.astype(dtype)
    logits, head_backward = head(x)
    expected, entropy_backward = nn.CrossEntropy()(logits, targets)
    expected_dx = head_backward(entropy_backward(0.5))
    wanted = grads(head)
    for parameter in head.parameters():
        parameter.reset()
    loss, backward = nn.LinearCrossEntropy()(head, x, targets)
    dx = backward(0.5)
    tolerance = 16 * float(ml_dtypes.finfo(dtype).eps)
    for got, want in zip([loss, dx, *grads(head)], [expected, expected_dx, *wanted], strict=True):
        assert np.asarray(got).dtype == np.asarray(want).dtype
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_losses_before_their_backwards(order: tuple[int, int]) -> None:
    head, x, targets = made()
    layer = nn.LinearCrossEntropy()
    wanted = []
    for scale, part in ((1.0, x), (3.0, -x)):
        layer(head, part, targets)[1](scale)
        wanted.append(grads(head))
        for parameter in head.parameters():
            parameter.reset()
    backwards = [layer(head, part, targets)[1] for part in (x, -x)]
    for i in order:
        backwards[i]((1.0, 3.0)[i])
    for got, a, b in zip(grads(head), *wanted, strict=True):
        np.testing.assert_allclose(got, a + b, rtol=1e-13, atol=1e-15)


def test_another_gradient_in_between() -> None:
    """Someone else writes the first gradient of the step after the forward: neither is lost."""
    head, x, targets = made(bias=False)
    layer, weight = nn.LinearCrossEntropy(), head.weight
    layer(head, x, targets)[1]()
    own = grads(head)[0]
    weight.reset()
    backward = layer(head, x, targets)[1]
    weight.add(np.ones_like(weight.value))
    assert weight.grad is not None and (weight.grad == 1).all()
    backward()
    np.testing.assert_allclose(weight.grad, own + 1, rtol=1e-13)


def test_a_loss_without_its_backward_leaves_nothing() -> None:
    head, x, targets = made()
    layer = nn.LinearCrossEntropy()
    layer(head, x, targets)
    assert all(p.fresh for p in head.parameters())
    layer(head, x, targets)[1]()
    once = grads(head)
    layer(head, -x, targets)
    for kept, gradient in zip(grads(head), once, strict=True):
        np.testing.assert_array_equal(kept, gradient)


def test_the_gradient_is_made_where_it_belongs() -> None:
    """No second array of the size of the table, and no logits."""
    config = GPTConfig(vocab_size=20011, context=256, layers=1, heads=2, width=32)
    model, rng = GPT(config, rng=0), np.random.default_rng(2)
    ids, targets = rng.integers(0, config.vocab_size, (2, 8, 256))

    def peak(step: int) -> int:
        gc.collect()
        nf._core.pool_reset_peak()
        before = nf.info()["pool"]["bytes_in_use"]
        _, backward = model.loss((ids, targets))
        backward()
        model.zero_grad()
        return int(nf.info()["pool"]["peak_bytes"] - before)

    logits = ids.size * config.vocab_size * 4
    assert max(peak(step) for step in range(2)) < 0.7 * logits


def test_infer() -> None:
    head, x, targets = made()
    layer = nn.LinearCrossEntropy(label_smoothing=0.3)
    want = nn.CrossEntropy().infer(head.infer(x), targets)
    assert layer.infer(head, x, targets) == want


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        nn.LinearCrossEntropy(label_smoothing=1.5)
    _, x, targets = made()
    for head in (nn.Linear(8, 11, dtype=F64), nn.Linear(8, 11, transposed=True, activation="relu", dtype=F64)):
        with pytest.raises(ValueError, match="head must be transposed"):
            nn.LinearCrossEntropy()(head, x, targets)
        with pytest.raises(ValueError, match="head must be transposed"):
            nn.LinearCrossEntropy().infer(head, x, targets)


def test_empty() -> None:
    for shape in ((), (0, 3), (4,), (300, 301)):
        array = memory.empty(shape, np.float32)
        assert array.shape == shape and array.dtype == np.float32 and array.flags.writeable
    assert memory.empty((300, 301), ml_dtypes.bfloat16).base is not None, "large ones are the pool's"
    for shape, dtype, kind in (([3], "f4", TypeError), ((0.5,), "f4", TypeError), ((3,), "i8", TypeError)):
        with pytest.raises(kind, match="empty"):
            memory.empty(shape, dtype)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty: shape"):
        memory.empty((-1,), np.float32)
