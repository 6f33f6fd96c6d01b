"""Optimiser steps, in place, against their twins."""

import numformer as nf
import numpy as np
import pytest
from arrays import heavy, name, normal
from numformer import reference
from tolerance import check, u

SIZES = [0, 1, 3, 7, 16, 17, 33, 1000, 70_001]
FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]


def both(arrays):
    return [[x.copy() for x in xs] for xs in arrays], [[x.astype(np.float64) for x in xs] for xs in arrays]


def compare(got, want, sizes, dtype, units=12):
    """Each update is a short expression: at most `units` roundings of numbers no larger than its largest term."""
    for xs, ys, size in zip(got, want, sizes, strict=True):
        for x, y, s in zip(xs, ys, size, strict=True):
            check(x, y, units * u(dtype) * (np.abs(y) + s) + np.finfo(dtype).tiny, "update")


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd(rng, dtype, momentum, nesterov, weight_decay):
    start = [[heavy(rng, n, dtype=dtype) for n in SIZES] for _ in range(3)]
    (w, g, m), (w64, g64, m64) = both(start)
    options = {"lr": 0.03, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "grad_scale": 0.7}
    nf.sgd_update(w, g, m if momentum else None, **options)
    reference.sgd_update(w64, g64, m64 if momentum else None, **options)
    size = [np.abs(a) + np.abs(b) + np.abs(c) for a, b, c in zip(*both(start)[1], strict=True)]
    compare((w, m), (w64, m64), (size, size), dtype)
    assert all((a == b).all() for a, b in zip(g, start[1], strict=True)), "gradients are only read"


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw(rng, dtype, step, weight_decay):
    w, g, m, v = ([heavy(rng, n, dtype=dtype) for n in SIZES] for _ in range(4))
    v = [np.abs(x) for x in v]
    (w, g, m, v), (w64, g64, m64, v64) = both((w, g, m, v))
    size_w = [np.abs(x) for x in w64]
    size_m = [np.abs(a) + np.abs(b) for a, b in zip(m64, g64, strict=True)]
    size_v = [a + b * b for a, b in zip(v64, g64, strict=True)]
    options = {"lr": 0.01, "weight_decay": weight_decay, "step": step, "grad_scale": 0.7, "beta2": 0.95}
    nf.adamw_update(w, g, m, v, **options)
    reference.adamw_update(w64, g64, m64, v64, **options)
    # The step is m / sqrt(v): relative error as of m, whose terms may cancel.
    spread = [np.sqrt(x / (1 - 0.95**step)) + 1e-8 for x in v64]
    size_w = [a + 0.01 * b / (1 - 0.9**step) / c for a, b, c in zip(size_w, size_m, spread, strict=True)]
    compare((w, m, v), (w64, m64, v64), (size_w, size_m, size_v), dtype, units=16)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_global_norm(rng, dtype):
    arrays = [normal(rng, n, dtype=dtype) for n in SIZES] + [normal(rng, 33, 65, dtype=dtype)]
    want = reference.global_norm(arrays)
    n = sum(a.size for a in arrays)
    got = nf.global_norm(arrays)
    assert isinstance(got, float)
    assert abs(got - want) <= want * (6 * np.sqrt(n) + 4) * u(dtype)
    assert nf.global_norm([]) == 0.0
    assert np.isnan(nf.global_norm([np.array([1, np.nan], dtype)]))
