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
@pytest.mark.parametrize("rule", ["adam_update", "adamw_update"])
def test_adam(rng, dtype, step, weight_decay, rule):
    w, g, m, v = ([heavy(rng, n, dtype=dtype) for n in SIZES] for _ in range(4))
    v = [np.abs(x) for x in v]
    (w, g, m, v), (w64, g64, m64, v64) = both((w, g, m, v))
    size_w = [np.abs(x) for x in w64]
    size_g = [np.abs(a) + np.abs(b) for a, b in zip(g64, w64, strict=True)]
    size_m = [np.abs(a) + b for a, b in zip(m64, size_g, strict=True)]
    size_v = [a + b * b for a, b in zip(v64, size_g, strict=True)]
    options = {"lr": 0.01, "weight_decay": weight_decay, "step": step, "grad_scale": 0.7, "beta2": 0.95}
    getattr(nf, rule)(w, g, m, v, **options)
    getattr(reference, rule)(w64, g64, m64, v64, **options)
    # The step is m / sqrt(v): relative error as of m, whose terms may cancel, and half that of v, as those of g may.
    spread = [np.sqrt(x / (1 - 0.95**step)) + 1e-8 for x in v64]
    size_w = [
        a + 0.01 * b / (1 - 0.9**step) / c * (1 + d / np.maximum(x, 1e-300))
        for a, b, c, d, x in zip(size_w, size_m, spread, size_v, v64, strict=True)
    ]
    compare((w, m, v), (w64, m64, v64), (size_w, size_m, size_v), dtype, units=16)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adagrad(rng, dtype, weight_decay):
    w, g, s = ([normal(rng, n, dtype=dtype) for n in SIZES] for _ in range(3))
    s = [np.abs(x) + dtype.type(0.1) for x in s]
    (w, g, s), (w64, g64, s64) = both((w, g, s))
    size_g = [np.abs(a) + np.abs(b) for a, b in zip(g64, w64, strict=True)]
    size_s = [a + b * b for a, b in zip(s64, size_g, strict=True)]
    size_w = [np.abs(a) + 0.1 * b * (1 + c) for a, b, c in zip(w64, size_g, size_s, strict=True)]
    options = {"lr": 0.03, "weight_decay": weight_decay, "grad_scale": 0.7, "eps": 1e-9}
    nf.adagrad_update(w, g, s, **options)
    reference.adagrad_update(w64, g64, s64, **options)
    compare((w, s), (w64, s64), (size_w, size_s), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rmsprop(rng, dtype, centered, momentum, weight_decay):
    start = [[normal(rng, n, dtype=dtype) for n in SIZES] for _ in range(5)]
    start[2] = [np.abs(x) + 3 for x in start[2]]  # squares: above those of the means
    start[3] = [np.tanh(x) for x in start[3]]
    (w, g, s, m, b), (w64, g64, s64, m64, b64) = both(start)
    size_g = [np.abs(a) + np.abs(c) for a, c in zip(g64, w64, strict=True)]
    size_s = [a + c * c for a, c in zip(s64, size_g, strict=True)]
    size_m = [np.abs(a) + c for a, c in zip(m64, size_g, strict=True)]
    size_b = [np.abs(a) + c * (1 + d) for a, c, d in zip(b64, size_g, size_s, strict=True)]
    options = {"lr": 0.03, "alpha": 0.8, "momentum": momentum, "weight_decay": weight_decay, "grad_scale": 0.7}
    nf.rmsprop_update(w, g, s, m if centered else None, b if momentum else None, **options)
    reference.rmsprop_update(w64, g64, s64, m64 if centered else None, b64 if momentum else None, **options)
    size_w = [np.abs(a) + c for a, c in zip(w64, size_b, strict=True)]
    compare((w, s, m, b), (w64, s64, m64, b64), (size_w, size_s, size_m, size_b), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_centred_rmsprop_keeps_a_variance_above_zero(dtype):
    """A gradient that never changes has none, and rounding must not make the square root of less than nothing."""
    w, g, s, m = ([np.full(33, x, dtype)] for x in (1.0, 0.1, 0.0, 0.0))
    for _ in range(300):
        nf.rmsprop_update(w, g, s, m, lr=1e-9, alpha=0.9)
        assert np.isfinite(w[0]).all()
    g[0][3] = np.nan
    nf.rmsprop_update(w, g, s, m, lr=1e-9, alpha=0.9)
    assert np.isnan(w[0]).sum() == 1, "a NaN in the gradient is not hidden"


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
