"""What surrounds the product on a GPU (the product itself is cuBLASLt's, and a plain loop here), beside its twin."""

import cuda_host
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, name, normal
from numformer import reference
from tolerance import check, rounded, working


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_matmul(gpu, rng, dtype, activation, lead):
    m, n, k = rng.integers(1, 12, 3).tolist()
    to, narrow = rng.choice([dtype, working(dtype)]), 0.0
    a, b = normal(rng, *lead, m, k, dtype=dtype), normal(rng, *lead, k, n, dtype=dtype)
    if rng.random() < 0.5:
        a = np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)
    if rng.random() < 0.5 and lead:
        b = np.broadcast_to(b[:1], b.shape)
    wide = lambda *shape: normal(rng, *shape, dtype=rng.choice([dtype, working(dtype)]))
    bias = wide(n) if rng.random() < 0.6 else None
    residual = normal(rng, *lead, m, n + 3, dtype=to)[..., :n] if rng.random() < 0.4 else None
    before = np.full((*lead, m, n), np.nan, to) if rng.random() < 0.5 else None
    accumulate = bool(rng.random() < 0.4)
    out = normal(rng, *lead, m, n + 2, dtype=to)[..., :n]
    start = out.astype(np.float64)
    gpu.matmul(out, a, b, bias, activation, residual, before, 0.7, accumulate, scratch=True)
    want = reference.matmul(a, b, bias=bias, activation=activation, scale=0.7)
    bound = tolerance.matmul(a, b, dtype, scale=0.7, bias=bias, activation=activation)
    if cuda_host.TRUE and activation == "gelu_tanh" and to.itemsize == 2:  # cuBLASLt's own, docs/cuda.md
        bound = bound + 1.2 * tolerance.u(dtype) * np.abs(reference.matmul(a, b, bias=bias, scale=0.7))
    if bias is not None and bias.dtype != to and to.itemsize == 2:
        narrow = tolerance.u(to) * np.abs(bias.astype(np.float64))  # the product's library has no wide bias beside it
        bound = bound + 1.2 * narrow
    w = tolerance.u(working(dtype))
    if residual is not None:
        want = want + residual.astype(np.float64)
        bound = bound + w * np.abs(want)
    if accumulate:
        want = want + start
        bound = bound + w * np.abs(want)
    what = f"{activation}, bias {bias is not None}, residual {residual is not None}, accumulate {accumulate}"
    check(out, want, rounded(bound, want, to), what)
    if before is not None:
        want = reference.matmul(a, b, bias=bias, scale=0.7)
        bound = tolerance.matmul(a, b, dtype, scale=0.7, bias=bias) + narrow
        check(before, want, rounded(bound, want, to), f"preactivation, {what}")


def test_no_depth_and_no_rows(gpu, rng):
    out, bias = np.full((2, 3), np.nan, np.float32), normal(rng, 3)
    gpu.matmul(
        out,
        np.empty((2, 0), np.float32),
        np.empty((0, 3), np.float32),
        bias,
        "relu",
        None,
        None,
        1.0,
        False,
        scratch=True,
    )
    assert np.array_equal(out, np.maximum(np.stack([bias, bias]), 0))
    empty = np.empty((0, 3), np.float32)
    gpu.matmul(
        empty,
        np.empty((0, 4), np.float32),
        np.empty((4, 3), np.float32),
        None,
        None,
        None,
        None,
        1.0,
        False,
        scratch=True,
    )


def test_bad_matrices(gpu, rng):
    a, b, out = normal(rng, 2, 4), normal(rng, 4, 3), np.empty((2, 3), np.float32)
    rest = (None, None, None, None, 1.0, False)
    for error, words, arguments in (
        (ValueError, r"matmul: b must have shape \(4, 2\), got \(3, 2\)", (out, a, normal(rng, 3, 2))),
        (ValueError, r"matmul: out must have shape \(2, 3\), got \(3, 3\)", (np.empty((3, 3), np.float32), a, b)),
        (TypeError, "matmul: b must have dtype float32, got float64", (out, a, b.astype(float))),
        (ValueError, "matmul: a must have unit stride on its last axis or", (out, normal(rng, 4, 8)[::2, ::2], b)),
    ):
        with pytest.raises(error, match=words):
            gpu.matmul(*arguments, *rest, scratch=True)
