"""A GPT of three layers in plain PyTorch, with copied weights, as judge of loss, gradients and training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from numformer import nn  # noqa: E402
from numformer.models import GPT, GPTConfig  # noqa: E402
from numformer.optim import AdamW, decay_groups  # noqa: E402

from benchmarks.torch_gpt import TorchGPT  # noqa: E402
from benchmarks.torch_peer import TorchStep  # noqa: E402

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "untied": {"tie_weights": False},
    "no-bias-relu": {"bias": False, "activation": "relu"},
    "gelu": {"activation": "gelu", "hidden": 40},
    "silu": {"activation": "silu"},
}


def _pair(dtype: str, **options: Any) -> tuple[GPT, TorchGPT]:
    config = GPTConfig(vocab_size=37, context=24, layers=3, heads=4, width=32, dtype=dtype, **options)
    ours = GPT(config, rng=0)
    rng = np.random.default_rng(1)
    for parameter in ours.parameters():  # so that biases are not 0 and attention is not uniform
        parameter.value += 0.1 * rng.standard_normal(parameter.value.shape)
    return ours, TorchGPT(config).copy(ours.state_dict())


def _batch(step: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(step)
    ids, targets = rng.integers(0, 37, (5, 24)), rng.integers(0, 37, (5, 24))
    targets[rng.random(targets.shape) < 0.2] = -100
    return ids, targets


# float64: a few thousand roundings of 1e-16. float32: torch and we each make the same number of roundings of 6e-8, so
# both stand within the same distance of the float64 result; a gradient is a sum of 120 rows through three layers.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-5)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients(variant: str, dtype: str, tolerance: float) -> None:
    ours, theirs = _pair(dtype, **VARIANTS[variant])
    batch = _batch()
    loss, backward = ours.loss(batch)
    backward()
    peer = theirs.loss(*map(torch.from_numpy, batch))
    peer.backward()
    assert abs(loss - peer.item()) <= tolerance * peer.item()
    gradients = theirs.arrays(gradients=True)
    named = ours.named_parameters()
    assert named.keys() == gradients.keys()
    for name, parameter in named.items():
        error = np.linalg.norm(parameter.grad - gradients[name])
        # The bias of the keys has gradient 0 in exact arithmetic, so errors are measured against the largest of a
        # parameter's peers.
        assert error <= tolerance * max(np.linalg.norm(gradients[name]), 0.1), name


def test_logits() -> None:
    ours, theirs = _pair("float64")
    ids = _batch()[0]
    with torch.no_grad():
        np.testing.assert_allclose(ours.infer(ids), theirs(torch.from_numpy(ids)).numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 2e-3)])
def test_fifty_steps_stay_together(dtype: str, tolerance: float) -> None:
    ours, theirs = _pair(dtype)
    optimizer = AdamW(decay_groups(ours.parameters(), 0.1), lr=2e-3, clip_norm=1.0)
    step = TorchStep(theirs, lr=2e-3)
    start = {name: value.copy() for name, value in ours.state_dict().items()}
    for index in range(50):
        batch = _batch(index % 4)
        loss, backward = ours.loss(batch)
        backward()
        optimizer.step()
        peer = step(*map(torch.from_numpy, batch))
        assert abs(loss - peer) <= tolerance * peer, index
    arrays = theirs.arrays()
    for name, value in ours.state_dict().items():
        moved = np.linalg.norm(value - start[name])
        assert moved > 0
        if (
            dtype == "float64"
        ):  # Adam divides by the gradient's size, so noise in a gradient of 0 (keys' biases) moves float32 weights
            assert np.linalg.norm(value - arrays[name]) <= 1e-6 * moved, name


def test_mixed_precision_stays_beside_autocast() -> None:
    """Twenty steps in bfloat16 from the same weights: as near to PyTorch's float32 as PyTorch's autocast is.

    Both round products to 8 bits, at places of their own: autocast keeps the residual stream in float32, we in
    bfloat16. Distances from float32 are of one size, and so is the distance between the two.
    """
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    ours, exact = _pair("float32")
    theirs = TorchGPT(ours.config).copy(ours.state_dict())
    optimizer = AdamW(decay_groups(ours.parameters(), 0.1), lr=2e-3, clip_norm=1.0)
    for parameter in ours.parameters():
        parameter.keep(bfloat16)
    steps = TorchStep(exact, lr=2e-3), TorchStep(theirs, lr=2e-3, autocast=torch.bfloat16)
    losses = []
    for index in range(20):
        batch = _batch(index % 4)
        loss, backward = ours.loss(batch, ctx=nn.Context(dtype=bfloat16))
        backward()
        optimizer.step()
        losses.append([loss, *(step(*map(torch.from_numpy, batch)) for step in steps)])
    mixed, float32, autocast = np.array(losses).T
    assert float32[-4:].mean() < float32[:4].mean() - 0.3, "it learns"
    noise = np.sqrt(np.mean((autocast - float32) ** 2))
    assert 0 < noise < 0.02
    assert np.sqrt(np.mean((mixed - float32) ** 2)) <= 3 * noise
    assert np.sqrt(np.mean((mixed - autocast) ** 2)) <= 4 * noise
