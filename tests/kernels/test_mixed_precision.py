"""What mixed precision asks of the kernels: conversion, float32 beside 16 bits, and updates that write both."""

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, SIZES, heavy, layouts, name, normal, same
from numformer import reference
from tolerance import check, f64, rounded, u

F32 = DTYPES[0]
NARROW = DTYPES[2:]
narrow = pytest.mark.parametrize("dtype", NARROW, ids=name)


@pytest.mark.parametrize("to", DTYPES, ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_cast(rng, dtype, to):
    for shape in [*[(5, n) for n in SIZES], (33,), (), (3, 70_001)]:
        x = heavy(rng, *shape, dtype=dtype, limit=3e4)
        with np.errstate(over="ignore"):
            want = x.astype(np.float32).astype(to) if to.itemsize == 2 else x.astype(to)
        y = nf.cast(x, to)
        assert same(y, want), f"{shape}: nearest, ties to even"
        scaled = nf.cast(x, to, scale=0.3)
        product = reference.cast(x, to, scale=0.3)
        check(scaled, product, rounded(4 * u(np.float32) * np.abs(product), product, to), f"{shape} scaled")
        out = np.full(shape, 7, to)
        assert nf.cast(x, to, out=out) is out and same(out, want)
        if len(shape) > 1:
            for how, x2 in layouts(x):
                assert same(nf.cast(x2, to), want), how
            wide = np.zeros((*shape[:-1], 2 * shape[-1]), to)
            nf.cast(x, to, out=wide[..., ::2])
            assert same(wide[..., ::2].copy(), want) and not wide[..., 1::2].any()
    x = normal(rng, 1000, dtype=dtype)
    want = nf.cast(x, dtype, scale=2.0)
    assert same(nf.cast(x, dtype, scale=2.0, out=x), want), "in place"


@pytest.mark.parametrize("to", DTYPES, ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_cast_of_what_is_not_a_number(dtype, to):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0] * 5, dtype)
    y = nf.cast(x, to)
    assert np.isnan(y[::5]).all() and (y[1::5] == np.inf).all() and (y[2::5] == -np.inf).all()
    assert not y[3::5].any() and np.signbit(y[4::5].astype(np.float32)).all()


def test_cast_beyond_the_range():
    assert np.isinf(nf.cast(np.array([1e5, 65520], np.float32), np.float16)).all()
    assert nf.cast(np.array([65519], np.float32), np.float16)[0] == 65504
    tiny = nf.cast(np.array([2.0**-24, 2.0**-26], np.float32), np.float16)
    assert tiny[0] == 2.0**-24 and tiny[1] == 0, "subnormal numbers are kept"


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_add_along_the_first_axes(rng, dtype):
    for shape, last in (((3, 5, 7), 1), ((3, 5, 7), 2), ((4, 1, 33), 2), ((2, 0), 1), ((5, 70_001), 1), ((3, 4), 0)):
        a, b = normal(rng, *shape, dtype=dtype), normal(rng, *shape[len(shape) - last :], dtype=dtype)
        want = reference.add(a, b)
        check(nf.add(a, b), want, rounded(tolerance.add(a, np.broadcast_to(b, shape), dtype), want, dtype), f"{shape}")
        if dtype in NARROW:
            wide = normal(rng, *b.shape)
            want = reference.add(a, wide)
            y = nf.add(a, wide)
            assert y.dtype == dtype
            check(y, want, rounded(2 * u(F32) * (np.abs(f64(a)) + np.abs(wide)), want, dtype), "float32 beside 16 bits")


@narrow
def test_norms_with_float32_weights(rng, dtype):
    """Weights of float32 are not rounded, nor are their gradients: those have errors of float32 only."""
    for shape in [(5, 1), (5, 17), (300, 65), (2, 3, 512)]:
        x, dy, res = (normal(rng, *shape, dtype=dtype) for _ in range(3))
        w, b = normal(rng, shape[-1]), normal(rng, shape[-1])
        y, mean, rstd = nf.layer_norm(x, w, b, return_stats=True)
        want = reference.layer_norm(x, w, b)
        bound = tolerance.layer_norm(x, w, b, 1e-5, dtype)[0]
        check(y, want, rounded(bound, want, dtype), f"layer_norm {shape}")
        got = nf.layer_norm_backward(dy, x, mean, rstd, w, bias=True, residual=res)
        wants = reference.layer_norm_backward(dy, x, mean, rstd, w, bias=True, residual=res)
        bounds = tolerance.norm_backward(dy, x, mean, rstd, w, res, dtype)
        for what, g, r, e, kind in zip(("dx", "dw", "db"), got, wants, bounds, (dtype, F32, F32), strict=True):
            assert g.dtype == kind, what
            check(g, r, rounded(e, r, kind), f"layer_norm_backward {shape} {what}")
        y, rstd = nf.rms_norm(x, w, return_stats=True)
        want = reference.rms_norm(x, w)
        check(y, want, rounded(tolerance.rms_norm(x, w, 1e-6, dtype)[0], want, dtype), f"rms_norm {shape}")
        got = nf.rms_norm_backward(dy, x, rstd, w, residual=res)
        wants = reference.rms_norm_backward(dy, x, rstd, w, residual=res)
        bounds = tolerance.norm_backward(dy, x, None, rstd, w, res, dtype)
        for what, g, r, e, kind in zip(("dx", "dw"), got, wants, bounds, (dtype, F32), strict=False):
            assert g.dtype == kind, what
            check(g, r, rounded(e, r, kind), f"rms_norm_backward {shape} {what}")


def _rules():
    return {
        "sgd": (lambda w, g, s, c: nf.sgd_update(w, g, None, lr=0.1, weight_decay=0.1, copies=c), 0),
        "momentum": (lambda w, g, s, c: nf.sgd_update(w, g, s[0], lr=0.1, momentum=0.9, nesterov=True, copies=c), 1),
        "adam": (lambda w, g, s, c: nf.adam_update(w, g, *s, lr=0.1, step=2, copies=c), 2),
        "adamw": (lambda w, g, s, c: nf.adamw_update(w, g, *s, lr=0.1, step=2, copies=c), 2),
        "adagrad": (lambda w, g, s, c: nf.adagrad_update(w, g, *s, lr=0.1, copies=c), 1),
        "rmsprop": (lambda w, g, s, c: nf.rmsprop_update(w, g, *s, lr=0.1, momentum=0.9, copies=c), 3),
    }


@narrow
@pytest.mark.parametrize("rule", _rules())
def test_updates_store_copies(rng, dtype, rule, threads):
    """The copy is the new value, rounded to nearest; values are what they are without copies."""
    step, slots = _rules()[rule]
    sizes = [0, 1, 17, 1000, 70_001]
    start = [[np.abs(normal(rng, n)) + np.float32(0.1) for n in sizes] for _ in range(2 + slots)]
    plain, mixed = ([[x.copy() for x in xs] for xs in start] for _ in range(2))
    step(plain[0], plain[1], plain[2:], None)
    for count in (1, 2):
        threads(count)
        mixed = [[x.copy() for x in xs] for xs in start]
        copies = [np.zeros(n, dtype) for n in sizes]
        copies[3] = None
        step(mixed[0], mixed[1], mixed[2:], copies)
        for a, b, copy in zip(plain[0], mixed[0], copies, strict=True):
            assert same(a, b)
            with np.errstate(over="ignore"):
                assert copy is None or same(copy, a.astype(dtype))


def test_updates_store_copies_in_the_twin(rng):
    w, g, m, v = ([np.abs(rng.standard_normal(7))] for _ in range(4))
    copies = [np.zeros(7, ml_dtypes.bfloat16)]
    reference.adamw_update(w, g, m, v, lr=0.1, step=1, copies=copies)
    assert same(copies[0], w[0].astype(ml_dtypes.bfloat16))


@narrow
def test_products_are_added_to_float32(rng, dtype):
    """The gradient of a weight: 16-bit operands, sums in float32 that are never rounded to 16 bits."""
    for m, k, n in ((7, 5, 3), (130, 65, 33), (300, 128, 96)):
        x, dy = normal(rng, m, k, dtype=dtype), normal(rng, m, n, dtype=dtype)
        start = normal(rng, k, n)
        out = start.copy()
        nf.matmul(x.T, dy, out=out, accumulate=True)
        want = reference.matmul(x.T, dy) + start
        bound = tolerance.matmul(x.T, dy, F32) + 2 * u(F32) * (np.abs(want) + np.abs(start))
        check(out, want, rounded(bound, want, F32), f"{(m, k, n)}")
        weights = normal(rng, n)
        total = weights.copy()
        nf.sum_rows(dy, out=total, accumulate=True)
        want = f64(dy).sum(axis=0) + weights
        bound = tolerance.sum_rows(dy, F32) + 2 * u(F32) * (np.abs(want) + np.abs(weights))
        check(total, want, rounded(bound, want, F32), "of a bias")
