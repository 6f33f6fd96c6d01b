"""Exact attention against torch.nn.functional.scaled_dot_product_attention, float32, forward and forward + backward.

Causal counts half the work; forward + backward counts 3.5 times the forward (7 products against 2).
"""

import pathlib

import numformer as nf
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import common

SHAPES = [(1, 8, 512, 64), (4, 12, 1024, 64), (1, 8, 4096, 64), (1, 8, 2048, 128)]
PEERS = ["torch"]


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """All shapes, causal and not, with each number of threads."""
    rng = np.random.default_rng()
    results = []
    common.print_header("attention", PEERS)
    for count in threads:
        common.set_threads(count)
        top = common.ceiling()
        for shape in SHAPES:
            for causal in (False, True):
                arrays = [rng.standard_normal(shape, np.float32) for _ in range(4)]
                for backward in (False, True):
                    results.append(_measure(shape, causal, backward, arrays, count, top))
                    common.print_result(results[-1], PEERS)
    return common.write("attention", results, folder)


def _measure(
    shape: tuple[int, ...], causal: bool, backward: bool, arrays: list[np.ndarray], count: int, top: float
) -> common.Result:
    q, k, v, dout = arrays
    tensors = [torch.from_numpy(x).requires_grad_(backward) for x in (q, k, v)]
    tout = torch.from_numpy(dout)

    def ours() -> list[np.ndarray]:
        out, lse = nf.attention(q, k, v, causal=causal, return_lse=True)
        return [out, *(nf.attention_backward(dout, q, k, v, out, lse, causal=causal) if backward else ())]

    def torchs() -> list[torch.Tensor]:
        out = scaled_dot_product_attention(*tensors, is_causal=causal)
        return [out, *(torch.autograd.grad(out, tensors, tout) if backward else ())]

    for mine, other in zip(ours(), torchs(), strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-3, atol=1e-4)
    batch, heads, length, width = shape
    flops = 4.0 * batch * heads * length * length * width * (0.5 if causal else 1.0) * (3.5 if backward else 1.0)
    name = f"{batch}, {heads}, {length}, {width}{' causal' if causal else ''} {'fwd+bwd' if backward else 'fwd'}"
    seconds = common.take_turns({"numformer": ours, "torch": torchs})
    return common.Result("attention", name, count, flops, seconds, top, 0.9 if backward else 1.0)
