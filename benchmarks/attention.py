"""Exact attention against torch.nn.functional.scaled_dot_product_attention, forward and forward + backward.

Causal counts half the work; forward + backward counts 3.5 times the forward (7 products against 2). Then what torch is
weak at: an additive bias, windows, padding masks of short sequences, packed lengths, decoding; torch gets the mask, or
the padding, that says the same, made outside the timing. Windows, padding and decoding count useful work only. In
bfloat16 (``--dtype``) the shapes alone, with our float32 as one more contender.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numformer as nf
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import common
from benchmarks.torch_peer import tensor

SHAPES = [(1, 8, 128, 64), (8, 8, 128, 64), (1, 8, 512, 64), (4, 12, 1024, 64), (1, 8, 4096, 64), (1, 8, 2048, 128)]
PEERS = ["torch"]
FLOAT32 = "float32"  # ours, beside our bfloat16


def run(threads: list[int], folder: pathlib.Path, dtype: str = "float32") -> pathlib.Path:
    """All shapes, causal and not, with each number of threads."""
    rng = np.random.default_rng()
    results = []
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    subject = "attention" if dtype == "float32" else f"attention_{dtype}"
    peers = PEERS if dtype == "float32" else [*PEERS, FLOAT32]
    common.print_header(subject, peers)
    for count in threads:
        common.set_threads(count)
        top = common.ceiling(dtype)
        for shape in SHAPES:
            for causal in (False, True):
                arrays = [rng.standard_normal(shape, np.float32).astype(kind) for _ in range(4)]
                for backward in (False, True):
                    results.append(_measure(shape, causal, backward, arrays, count, top))
                    common.print_result(results[-1], peers)
        if dtype != "float32":
            continue
        for case in (_bias, _window, _short, _varlen, _decode):
            for result in case(rng, count, top):
                results.append(result)
                common.print_result(result, PEERS)
    return common.write(subject, results, folder)


def _measure(
    shape: tuple[int, ...], causal: bool, backward: bool, arrays: list[np.ndarray], count: int, top: float
) -> common.Result:
    *tensors, tout = (tensor(x) for x in arrays)
    for x in tensors:
        x.requires_grad_(backward)

    def ours(arrays: list[np.ndarray] = arrays) -> list[np.ndarray]:
        *qkv, dout = arrays
        out, lse = nf.attention(*qkv, causal=causal, return_lse=True)
        return [out, *(nf.attention_backward(dout, *qkv, out, lse, causal=causal) if backward else ())]

    def torchs() -> list[torch.Tensor]:
        out = scaled_dot_product_attention(*tensors, is_causal=causal)
        return [out, *(torch.autograd.grad(out, tensors, tout) if backward else ())]

    narrow = arrays[0].dtype != np.float32
    contenders: dict[str, Callable[[], Any]] = {"numformer": ours, "torch": torchs}
    wide = [x.astype(np.float32) for x in arrays]
    if narrow:
        contenders[FLOAT32] = lambda: ours(wide)
    # Probabilities and their gradients are rounded to bfloat16, and so are results: 2^-8 each, of sums of many.
    close = {"rtol": 3e-2, "atol": 3e-2} if narrow else {"rtol": 1e-3, "atol": 1e-4}
    for mine, other in zip(ours(), torchs(), strict=True):
        np.testing.assert_allclose(mine.astype(np.float32), other.detach().float().numpy(), **close)
    batch, heads, length, width = shape
    flops = 4.0 * batch * heads * length * length * width * (0.5 if causal else 1.0) * (3.5 if backward else 1.0)
    name = f"{batch}, {heads}, {length}, {width}{' causal' if causal else ''} {'fwd+bwd' if backward else 'fwd'}"
    seconds = common.take_turns(contenders)
    aim = 1.5 if length <= 128 else 0.9 if backward else 1.0
    return common.Result("attention", name, count, flops, seconds, top, aim)


def _both(
    name: str,
    arrays: list[np.ndarray],
    ours: tuple[Callable[..., Any], Callable[..., Any]],
    theirs: Callable[..., torch.Tensor],
    flops: float,
    count: int,
    top: float,
    aims: tuple[float, float],
) -> list[common.Result]:
    """Forward, and forward + backward. `ours`: (q, k, v) -> out, lse; (dout, q, k, v, out, lse) -> gradients."""
    *qkv, dout = arrays
    results = []
    for backward in (False, True):
        tensors = [torch.from_numpy(x).requires_grad_(backward) for x in qkv]

        def mine(backward: bool = backward) -> list[np.ndarray]:
            out, lse = ours[0](*qkv)
            return [out, *(ours[1](dout, *qkv, out, lse) if backward else ())]

        def other(backward: bool = backward, tensors: list[torch.Tensor] = tensors) -> list[torch.Tensor]:
            out = theirs(*tensors)
            return [out, *(torch.autograd.grad(out, tensors, torch.from_numpy(dout)) if backward else ())]

        for a, b in zip(mine(), other(), strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-3, atol=1e-3)
        seconds = common.take_turns({"numformer": mine, "torch": other})
        label = f"{name} {'fwd+bwd' if backward else 'fwd'}"
        work = flops * (3.5 if backward else 1.0)
        results.append(common.Result("attention", label, count, work, seconds, top, aims[backward]))
    return results


def _pair(**options: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return (
        lambda q, k, v: nf.attention(q, k, v, return_lse=True, **options),
        lambda dout, q, k, v, out, lse: nf.attention_backward(dout, q, k, v, out, lse, **options),
    )


def _arrays(rng: np.random.Generator, *shape: int) -> list[np.ndarray]:
    return [rng.standard_normal(shape, np.float32) for _ in range(4)]


def _bias(rng: np.random.Generator, count: int, top: float) -> list[common.Result]:
    bias = rng.standard_normal((8, 1024, 1024), np.float32)
    mask = torch.from_numpy(bias)

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    arrays = _arrays(rng, 1, 8, 1024, 64)
    return _both(
        "bias 1, 8, 1024, 64", arrays, _pair(bias=bias), theirs, 4.0 * 8 * 1024**2 * 64, count, top, (1.5, 1.5)
    )


def _window(rng: np.random.Generator, count: int, top: float) -> list[common.Result]:
    n, (left, right) = 4096, (256, 255)
    distance = torch.arange(n) - torch.arange(n)[:, None]
    mask = (distance >= -left) & (distance <= right)

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    flops = 4.0 * 4 * float(mask.sum()) * 64
    arrays = _arrays(rng, 1, 4, n, 64)
    return _both(f"window 1, 4, {n}, 64", arrays, _pair(window=(left, right)), theirs, flops, count, top, (1.5, 1.5))


def _short(rng: np.random.Generator, count: int, top: float) -> list[common.Result]:
    results = []
    for batch, heads, n, d in ((64, 8, 10, 64), (64, 8, 32, 64), (128, 4, 32, 32), (64, 8, 128, 64)):
        arrays = _arrays(rng, batch, heads, n, d)
        lengths = rng.integers(max(1, n // 2), n + 1, batch)
        padding = (np.arange(n) < lengths[:, None])[:, None, None]
        tensor = torch.from_numpy(padding)
        flops = 4.0 * batch * heads * n * d
        name = f"{batch}, {heads}, {n}, {d}"
        results += _both(
            f"short {name}", arrays, _pair(), scaled_dot_product_attention, flops * n, count, top, (1.5, 1.5)
        )

        def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor = tensor) -> torch.Tensor:
            return scaled_dot_product_attention(q, k, v, attn_mask=mask)

        work = flops * float(lengths.mean())
        results += _both(f"padded {name}", arrays, _pair(mask=padding), theirs, work, count, top, (1.5, 1.5))
    return results


def _varlen(rng: np.random.Generator, count: int, top: float) -> list[common.Result]:
    """32 sequences of 10 to 1000, packed, beside padding to the longest and a mask."""
    lengths = rng.integers(10, 1001, 32)
    starts, longest = np.concatenate([[0], np.cumsum(lengths)]), int(lengths.max())
    q, k, v = (rng.standard_normal((int(starts[-1]), 8, 64), np.float32) for _ in range(3))
    padded = [np.zeros((32, 8, longest, 64), np.float32) for _ in range(3)]
    for i, n in enumerate(lengths):
        for x, to in zip((q, k, v), padded, strict=True):
            to[i, :, :n] = x[starts[i] : starts[i + 1]].swapaxes(0, 1)
    mask = torch.from_numpy((np.arange(longest) < lengths[:, None])[:, None, None])
    tensors = [torch.from_numpy(x) for x in padded]
    contenders = {
        "numformer": lambda: nf.attention_varlen(q, k, v, starts, starts),
        "torch": lambda: scaled_dot_product_attention(*tensors, attn_mask=mask),
    }
    ours, other = (call() for call in contenders.values())
    np.testing.assert_allclose(
        ours[: lengths[0]].swapaxes(0, 1), other[0, :, : lengths[0]].numpy(), rtol=1e-3, atol=1e-4
    )
    flops = 4.0 * 8 * 64 * float((lengths.astype(float) ** 2).sum())
    seconds = common.take_turns(contenders)
    return [common.Result("attention", "varlen 32 x 10..1000, 8, 64 fwd", count, flops, seconds, top, 1.5)]


def _decode(rng: np.random.Generator, count: int, top: float) -> list[common.Result]:
    """One query; the ceiling is reading as many bytes, in turn with the others."""
    results = []
    for keys, kv_heads in ((4096, 12), (4096, 4), (32768, 12)):
        q = rng.standard_normal((1, 12, 1, 64), np.float32)
        both = rng.standard_normal((2, 1, kv_heads, keys, 64), np.float32)
        k, v = both
        tensors = [torch.from_numpy(x) for x in (q, k, v)]

        def ours(q: np.ndarray = q, k: np.ndarray = k, v: np.ndarray = v) -> np.ndarray:
            return nf.attention(q, k, v)

        def theirs(tensors: list[torch.Tensor] = tensors) -> torch.Tensor:
            return scaled_dot_product_attention(*tensors, enable_gqa=True)

        np.testing.assert_allclose(ours(), theirs().numpy(), rtol=1e-3, atol=1e-4)
        seconds, read = common.take_turns_with_read({"numformer": ours, "torch": theirs}, both.nbytes)
        extra = common.beside_read(both.nbytes, seconds["numformer"], read)
        flops = 4.0 * 12 * keys * 64
        bound = flops / both.nbytes * read  # GFLOP/s, where reading takes the whole time
        name, note = f"decode {keys} keys, 12 over {kv_heads}", f"{extra['GB/s']:.0f} of {read:.0f} GB/s"
        results.append(
            common.Result("attention", name, count, flops, seconds, bound, 1.8, extra, common.READ_CAP, note)
        )
    return results
