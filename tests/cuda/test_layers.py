"""Layers on the device give what they give on the host, and copy nothing."""

import copy

import gpu
import gpu_twin
import numpy as np
import pytest
from arrays import normal
from numformer import nn
from numformer.nn.dropout import number_dropouts

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")

CTX = nn.Context(seed=3, step=2, sample=5)
LAYERS = {
    "linear": lambda **c: nn.Linear(8, 8, **c),
    "linear-transposed": lambda **c: nn.Linear(8, 8, transposed=True, bias=False, activation="relu", **c),
    "learned": lambda **c: nn.LearnedPositions(9, 8, **c),
    "sines": lambda **c: nn.SinusoidalPositions(9, 8, halves=True),
    "layer-norm": lambda **c: nn.LayerNorm(8, dtype=c["dtype"]),
    "rms-norm": lambda **c: nn.RMSNorm(8, dtype=c["dtype"]),
    "dropout": lambda **c: nn.Dropout(0.4),
    "feed-forward": lambda **c: nn.FeedForward(8, activation="silu", dropout=0.3, **c),
    "attention": lambda **c: nn.MultiHeadAttention(8, 4, num_kv_heads=2, causal=True, dropout=0.2, **c),
    "pre-norm": lambda **c: nn.PreNormBlock(8, 2, norm="rms", dropout=0.3, bias=False, **c),
    "post-norm": lambda **c: nn.PostNormBlock(8, 2, activation="gelu_tanh", transposed=True, **c),
    "cross": lambda **c: nn.CrossAttention(8, 2, dropout=0.3, **c),
    "pre-norm-decoder": lambda **c: nn.PreNormDecoderBlock(8, 2, activation="gelu", dropout=0.3, **c),
    "post-norm-decoder": lambda **c: nn.PostNormDecoderBlock(8, 4, activation="gelu_tanh", **c),
}
WITH_MEMORY = ("cross", "pre-norm-decoder", "post-norm-decoder")
UNPACKED = ("learned", "sines")


@pytest.fixture
def device():
    with gpu.standing_in(gpu_twin.core) as found:
        yield found


def layer_of(name, dtype, rng):
    layer = LAYERS[name](dtype=dtype, rng=rng)
    number_dropouts(layer)
    for parameter in layer.parameters():  # away from zeros and ones
        parameter.value += 0.1 * rng.standard_normal(parameter.value.shape).astype(dtype)
    return layer


def close(found, expected, rtol):
    """Up to `rtol` of the largest number of all: some gradients are zero but for roundings, which are of that size."""
    largest = max((abs(np.asarray(other, np.float64)).max(initial=0) for other in expected), default=0.0)
    for one, other in zip(found, expected, strict=True):
        wide = np.asarray(gpu.got(one), np.float64), np.asarray(other, np.float64)
        assert gpu.got(one).dtype == other.dtype
        np.testing.assert_allclose(*wide, rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_layer(device, rng, name, dtype):
    # Devices add up in orders of their own, so that some numbers are rounded to the other neighbour in 16 bits, and
    # what is made of them differs by a few of these roundings, 2^-8 each. No ReLU is behind other maps: where that
    # changes the sign of its argument, a gradient jumps.
    rtol = {"float32": 1e-5, "float64": 1e-13, "bfloat16": 4e-2}[dtype]
    here = layer_of(name, np.float64 if dtype == "float64" else np.float32, rng)
    there = copy.deepcopy(here).to("cuda")
    inputs = [normal(rng, 2, n, 8).astype(dtype) for n in ((6, 5) if name in WITH_MEMORY else (6,))]
    y, backward = here(*inputs, ctx=CTX)
    dy = normal(rng, *y.shape).astype(dtype)
    gradients = backward(dy)
    arrays = gpu.put(inputs)
    device.counts.clear()
    found, backward = there(*arrays, ctx=CTX)
    results = backward(gpu.put(dy))
    assert set(device.counts) <= ({"to_device"} if name == "sines" else set())
    close([found], [y], rtol)
    if isinstance(gradients, tuple):
        close(results, gradients, rtol)
    else:
        close([results], [gradients], rtol)
    close([p.grad for p in there.parameters()], [p.grad for p in here.parameters()], rtol)
    close([there.infer(*arrays)], [here.infer(*inputs)], rtol)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in UNPACKED])
def test_packed(device, rng, name):
    here = layer_of(name, np.float32, rng)
    there = copy.deepcopy(here).to("cuda")
    starts, others = np.array([0, 2, 2, 7]), np.array([0, 1, 3, 4])
    inputs = [normal(rng, 7, 8), *([normal(rng, 4, 8)] if name in WITH_MEMORY else [])]
    lengths = {}
    if name in ("attention", "pre-norm", "post-norm", "feed-forward", "dropout", *WITH_MEMORY):
        lengths = {"cu_seqlens": starts} | ({"memory_cu_seqlens": others} if name in WITH_MEMORY else {})
    y, backward = here(*inputs, ctx=CTX, **lengths)
    found, backward_there = there(*gpu.put(inputs), ctx=CTX, **lengths)
    close([found], [y], 1e-5)
    gradients, results = backward(y), backward_there(gpu.put(y))
    pairs = (results, gradients) if isinstance(gradients, tuple) else ([results], [gradients])
    close(*pairs, 1e-4)


def test_embedding_with_padding(device, rng):
    here = nn.Embedding(7, 4, scale=2.0, padding=3, rng=rng)
    there = copy.deepcopy(here).to("cuda")
    ids = rng.integers(0, 7, (2, 5))
    ids[0, 1] = 3
    y, backward = here(ids)
    found, backward_there = there(gpu.put(ids))
    close([found], [y], 1e-6)
    backward(y)
    backward_there(gpu.put(y))
    close([there.weight.grad], [here.weight.grad], 1e-6)
    assert (gpu.got(there.weight.grad)[3] == 0).all()


def test_losses(device, rng):
    head, x = nn.Linear(8, 11, transposed=True, rng=rng), normal(rng, 3, 4, 8)
    targets = rng.integers(0, 11, (3, 4))
    there = copy.deepcopy(head).to("cuda")
    loss, backward = nn.LinearCrossEntropy(label_smoothing=0.1)(head, x, targets)
    found, backward_there = nn.LinearCrossEntropy(label_smoothing=0.1)(there, gpu.put(x), gpu.put(targets))
    close([found], [np.asarray(loss)], 1e-5)
    close([backward_there(0.5)], [backward(0.5)], 1e-5)
    close([there.weight.grad, there.bias.grad], [head.weight.grad, head.bias.grad], 1e-5)
    logits = normal(rng, 3, 4, 11)
    loss, backward = nn.CrossEntropy()(logits, targets)
    found, backward_there = nn.CrossEntropy()(gpu.put(logits), gpu.put(targets))
    close([found, backward_there()], [np.asarray(loss), backward()], 1e-5)


def test_decoding_with_a_cache(device, rng):
    here = nn.PreNormBlock(8, 2, causal=True, rng=rng)
    there = copy.deepcopy(here).to("cuda")
    caches = nn.KVCache(4), nn.KVCache(4)
    for n in (3, 1, 1, 5):
        x = normal(rng, 3, n, 8)
        close([there.infer(gpu.put(x), cache=caches[1])], [here.infer(x, cache=caches[0])], 1e-5)
    for cache in caches:
        cache.select(np.array([2, 0, 0]))
    x = normal(rng, 3, 1, 8)
    close([there.infer(gpu.put(x), cache=caches[1])], [here.infer(x, cache=caches[0])], 1e-5)


def test_an_embedding_of_a_long_text_piece_by_piece(device, rng):
    here = nn.FeedForward(4, rng=rng)
    there = copy.deepcopy(here).to("cuda")
    x = normal(rng, 3000, 4)
    close([there.infer(gpu.put(x), residual=gpu.put(x))], [here.infer(x, residual=x)], 1e-5)
