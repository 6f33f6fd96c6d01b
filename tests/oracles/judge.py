"""Models of Hugging Face's Transformers, small and with random weights, as judges of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

# float64: some thousand roundings of 1e-16 each. float32: sums of a few hundred products, through a handful of layers.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
DTYPES = ("float64", "float32")


def peer(kind: Any, config: Any, dtype: str, *, attention: str = "sdpa") -> Any:
    """Make one of their models with weights that hide nothing: no zeros, no ones, and large enough to matter."""
    config._attn_implementation = attention  # the eager one rounds to float32 here and there
    model = kind(config).to(getattr(torch, dtype)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (0.15 * noise).to(parameter.dtype)
    return model


def read(ours: Any, theirs: Any, folder: Path) -> Any:
    """Let them write a folder and us read it."""
    theirs.save_pretrained(folder)
    return ours.from_pretrained(folder)


def tensors(*arrays: Any) -> Any:
    found = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return found[0] if len(found) == 1 else found


def close(got: Any, want: Any, dtype: str, what: str) -> None:
    """Assert that arrays are equal, relative to the largest element."""
    want = want.detach().numpy() if isinstance(want, torch.Tensor) else np.asarray(want)
    assert np.shape(got) == want.shape, (what, np.shape(got), want.shape)
    error = np.abs(np.asarray(got, np.float64) - want).max()
    assert error <= TOLERANCE[dtype] * max(1.0, np.abs(want).max()), (what, error)


def gradients(ours: Any, theirs: Any, dtype: str) -> None:
    """Assert that every parameter has the gradient that theirs has under the same name."""
    expected = {n: p.grad.numpy().astype(np.float64) for n, p in theirs.named_parameters() if p.grad is not None}
    found = ours.gradients()
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    # The bias of keys has gradient 0 in exact arithmetic, so errors are measured against the largest of its peers.
    largest = max(np.linalg.norm(gradient) for gradient in expected.values())
    for name, gradient in expected.items():
        error = np.linalg.norm(found[name] - gradient)
        assert error <= TOLERANCE[dtype] * max(np.linalg.norm(gradient), 0.01 * largest), (name, error)


def same_weights(path: Path, theirs: Any, kind: Any, inputs: dict[str, Any], *, attention: str = "sdpa") -> None:
    """Assert that they read the folder that we wrote, miss nothing in it, and answer as before."""
    again, report = kind.from_pretrained(path, output_loading_info=True, attn_implementation=attention)
    for what, names in report.items():
        assert not names, (what, names)
    with torch.no_grad():
        for ours, before in zip(again.eval()(**inputs).to_tuple(), theirs(**inputs).to_tuple(), strict=True):
            if isinstance(before, torch.Tensor):
                np.testing.assert_array_equal(ours.numpy(), before.numpy())
