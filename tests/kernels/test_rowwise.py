"""Softmax, norms, activations, losses, embedding, dropout and sums against their twins."""

from itertools import pairwise

import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, SIZES, heavy, layouts, name, normal, same
from numformer import reference
from tolerance import check, f64, rounded, working

SHAPES = [*[(5, s) for s in (*SIZES, 511, 512, 513, 1031)], (0, 7), (2, 3, 17), (33,), (600, 1), (257, 3)]
MAKERS = [normal, heavy]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)


def each(rng, dtype, shapes=SHAPES):
    for shape in shapes:
        for make in MAKERS:
            yield shape, make(rng, *shape, dtype=dtype)


def everywhere(f, x, expected, what):
    """The values of x in other memory give the same bits."""
    if x.ndim > 1:
        for how, x2 in layouts(x):
            assert same(f(x2), expected), f"{what}: {how}"


@by_dtype
@pytest.mark.parametrize("axis", [-1, 0])
def test_softmax(rng, dtype, axis):
    for shape, x in each(rng, dtype):
        y = nf.softmax(x, axis=axis)
        want = reference.softmax(x, axis)
        check(y, want, rounded(tolerance.softmax(x, axis, dtype), want, dtype), f"softmax {shape}")
        dy = normal(rng, *shape, dtype=dtype)
        want = reference.softmax_backward(dy, y, axis)
        bound = tolerance.softmax_backward(dy, y, axis, dtype)
        check(nf.softmax_backward(dy, y, axis=axis), want, rounded(bound, want, dtype), f"softmax_backward {shape}")
        everywhere(lambda x: nf.softmax(x, axis=axis), x, y, "softmax")
    x = normal(rng, 3, 4, 5, dtype=dtype)
    want = reference.softmax(x, 1)
    check(nf.softmax(x, 1), want, rounded(tolerance.softmax(x, 1, dtype), want, dtype), "middle axis")


@by_dtype
def test_softmax_of_infinities(rng, dtype):
    x = normal(rng, 4, 37, dtype=dtype)
    x[0, ::3] = -np.inf
    x[1, 5] = np.nan
    y = nf.softmax(x)
    assert not y[0, ::3].any()
    assert np.isnan(y[1]).all()
    rest = [0, 2, 3]
    want = reference.softmax(x)[rest]
    check(y[rest], want, rounded(tolerance.softmax(x[rest], -1, dtype), want, dtype), "rows beside a NaN")


@by_dtype
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_layer_norm(rng, dtype, affine):
    for shape, x in each(rng, dtype, [s for s in SHAPES if s[-1]]):
        w = normal(rng, shape[-1], dtype=dtype) if affine else None
        b = normal(rng, shape[-1], dtype=dtype) if affine > 1 else None
        got = nf.layer_norm(x, w, b, return_stats=True)
        want = reference.layer_norm(x, w, b, return_stats=True)
        bounds = tolerance.layer_norm(x, w, b, 1e-5, dtype)
        for what, g, r, e in zip(("y", "mean", "rstd"), got, want, bounds, strict=True):
            check(g, r, rounded(e, r, g.dtype), f"layer_norm {shape} {what}")
        y, mean, rstd = got
        assert y.dtype == dtype and mean.dtype == rstd.dtype == working(dtype)
        assert same(nf.layer_norm(x, w, b), y)
        everywhere(lambda x: nf.layer_norm(x, w, b), x, y, "layer_norm")
        dy, residual = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
        for res in (None, residual):
            given = (dy, x, mean, rstd, w)
            grads = nf.layer_norm_backward(*given, bias=affine > 1, residual=res)
            wants = reference.layer_norm_backward(*given, bias=affine > 1, residual=res)
            bounds = tolerance.norm_backward(dy, x, mean, rstd, w, res, dtype)
            for what, g, r, e in zip(("dx", "dweight", "dbias"), grads, wants, bounds, strict=True):
                assert (g is None) == (r is None), what
                if g is not None:
                    check(g, r, rounded(e, r, g.dtype), f"layer_norm_backward {shape} {what}")


@by_dtype
def test_layer_norm_far_from_zero(rng, dtype):
    """The variance of numbers that differ little from a large mean: not E[x^2] - E[x]^2."""
    x = (300 + normal(rng, 9, 130, scale=4.0)).astype(dtype)
    got = nf.layer_norm(x, return_stats=True)
    want = reference.layer_norm(x, return_stats=True)
    for g, r, e in zip(got, want, tolerance.layer_norm(x, None, None, 1e-5, dtype), strict=True):
        check(g, r, rounded(e, r, g.dtype), "far from zero")


@by_dtype
@pytest.mark.parametrize("affine", [False, True])
def test_rms_norm(rng, dtype, affine):
    for shape, x in each(rng, dtype, [s for s in SHAPES if s[-1]]):
        w = normal(rng, shape[-1], dtype=dtype) if affine else None
        got = nf.rms_norm(x, w, return_stats=True)
        want = reference.rms_norm(x, w, return_stats=True)
        for what, g, r, e in zip(("y", "rstd"), got, want, tolerance.rms_norm(x, w, 1e-6, dtype), strict=True):
            check(g, r, rounded(e, r, g.dtype), f"rms_norm {shape} {what}")
        y, rstd = got
        everywhere(lambda x: nf.rms_norm(x, w), x, y, "rms_norm")
        dy, residual = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
        for res in (None, residual):
            grads = nf.rms_norm_backward(dy, x, rstd, w, residual=res)
            wants = reference.rms_norm_backward(dy, x, rstd, w, residual=res)
            bounds = tolerance.norm_backward(dy, x, None, rstd, w, res, dtype)
            for what, g, r, e in zip(("dx", "dweight"), grads, wants, bounds, strict=False):
                assert (g is None) == (r is None), what
                if g is not None:
                    check(g, r, rounded(e, r, g.dtype), f"rms_norm_backward {shape} {what}")


def activations(f):
    options = {"approximate": "tanh"} if f == "gelu_tanh" else {}
    base = f.removesuffix("_tanh")
    return base, options


@by_dtype
@pytest.mark.parametrize("f", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations(rng, dtype, f):
    base, options = activations(f)
    forward, backward = getattr(nf, base), getattr(nf, base + "_backward")
    for shape, x in [*each(rng, dtype), ("a grid", np.linspace(-15, 15, 3001).astype(dtype))]:
        y, want = forward(x, **options), getattr(reference, base)(x, **options)
        check(y, want, rounded(tolerance.activation(x, f, dtype), want, dtype), f"{f} {shape}")
        everywhere(lambda x: forward(x, **options), x, y, f)
        dy = normal(rng, *x.shape, dtype=dtype)
        want = getattr(reference, base + "_backward")(dy, x, **options)
        bound = tolerance.activation_backward(dy, x, f, dtype)
        check(backward(dy, x, **options), want, rounded(bound, want, dtype), f"{f}_backward {shape}")


@by_dtype
@pytest.mark.parametrize("f", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations_keep_nan(dtype, f):
    base, options = activations(f)
    x = np.array([0.5, np.nan, -0.5] * 7, dtype)
    y = getattr(nf, base)(x, **options)
    assert np.isnan(y[1::3]).all() and np.isfinite(y[::3]).all()


@by_dtype
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_cross_entropy(rng, dtype, label_smoothing, reduction, integer):
    for shape, x in each(rng, dtype, [*[(5, s) for s in (1, 2, 16, 17, 61, 513)], (0, 7), (2, 3, 17), (300, 3), (33,)]):
        targets = rng.integers(0, shape[-1], shape[:-1]).astype(integer)
        ignored = rng.random(targets.shape) < 0.3
        targets = np.where(ignored, -100, targets).astype(integer)
        options = {"label_smoothing": label_smoothing, "reduction": reduction}
        loss, lse = nf.cross_entropy(x, targets, return_lse=True, **options)
        want_loss, want_lse = reference.cross_entropy(x, targets, return_lse=True, **options)
        e_loss, e_lse = tolerance.cross_entropy(x, targets, label_smoothing, dtype)
        check(np.where(ignored, 0, lse), np.where(ignored, 0, want_lse), rounded(e_lse, want_lse, lse.dtype), "lse")
        e_loss = np.where(ignored, 0.0, e_loss)
        if reduction != "none":
            rows = reference.cross_entropy(x, targets, label_smoothing=label_smoothing, reduction="none")
            e_loss = e_loss.sum() + tolerance.gamma(rows.size, dtype) * np.abs(rows).sum()
            if reduction == "mean":
                e_loss = e_loss / max((~ignored).sum(), 1)
        check(loss, want_loss, rounded(e_loss, want_loss, working(dtype)), f"loss {shape}")
        assert np.asarray(loss).dtype == lse.dtype == working(dtype)
        dloss = rng.standard_normal(np.shape(loss)).astype(working(dtype))
        want = reference.cross_entropy_backward(dloss, x, targets, lse, **options)
        bound = tolerance.cross_entropy_backward(dloss, x, targets, lse, dtype, **options)
        got = nf.cross_entropy_backward(dloss, x, targets, lse, **options)
        check(got, want, rounded(bound, want, dtype), f"dlogits {shape}")
        x2 = x.copy()
        assert nf.cross_entropy_backward(dloss, x2, targets, lse, out=x2, **options) is x2
        assert same(x2, got), "into the logits themselves"


@by_dtype
def test_cross_entropy_ignores(rng, dtype):
    x, targets = normal(rng, 4, 9, dtype=dtype), np.full(4, -100)
    loss, lse = nf.cross_entropy(x, targets, return_lse=True)
    assert float(loss) == 0.0
    assert not nf.cross_entropy_backward(np.ones_like(loss), x, targets, lse).any()
    x[1] = np.nan
    targets = np.array([1, 7, 2, 3])
    loss, lse = nf.cross_entropy(x, targets, ignore_index=7, return_lse=True)
    assert np.isfinite(loss)
    assert np.isfinite(nf.cross_entropy_backward(np.ones_like(loss), x, targets, lse, ignore_index=7)).all()
    masked = normal(rng, 3, 20, dtype=dtype)
    masked[:, 4:] = -np.inf  # words that may not come
    want = reference.cross_entropy(masked, np.array([0, 1, 2]), reduction="none")
    bound, _ = tolerance.cross_entropy(masked, np.array([0, 1, 2]), 0.0, dtype)
    got = nf.cross_entropy(masked, np.array([0, 1, 2]), reduction="none")
    check(got, want, rounded(bound, want, got.dtype), "-inf logits")


@by_dtype
@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_embedding(rng, dtype, integer):
    for rows, width, shape in (
        (11, 7, (5,)),
        (1, 1, (3, 2)),
        (300, 65, (4, 33)),
        (5, 16, (0,)),
        (9, 31, ()),
        (3, 8, (1000,)),
    ):
        w, ids = normal(rng, rows, width, dtype=dtype), rng.integers(0, rows, shape).astype(integer)
        y = nf.embedding(w, ids)
        assert same(y, w[ids]), "a copy of rows is exact"
        for _, w2 in layouts(w):
            assert same(nf.embedding(w2, ids), y)
        dy = normal(rng, *shape, width, dtype=dtype)
        want = reference.embedding_backward(dy, ids, rows)
        bound = tolerance.embedding_backward(dy, ids, rows, dtype)
        check(nf.embedding_backward(dy, ids, rows), want, rounded(bound, want, dtype), f"dweight {shape}")
        start = normal(rng, rows, width, dtype=dtype)
        out = start.copy()
        assert nf.embedding_backward(dy, ids, rows, accumulate=True, out=out) is out
        most = max(np.bincount(ids.ravel(), minlength=1)) if ids.size else 0
        size = reference.embedding_backward(np.abs(f64(dy)), ids, rows) + np.abs(f64(start))
        check(
            out,
            want + f64(start),
            rounded(tolerance.gamma(most + 1, dtype) * size, want + f64(start), dtype),
            "accumulated",
        )
        fresh = np.full((rows, width), np.nan, dtype)
        nf.embedding_backward(dy, ids, rows, out=fresh)
        check(fresh, want, rounded(bound, want, dtype), "written over")


@by_dtype
def test_dropout(rng, dtype):
    for shape in ((1,), (3, 5), (4, 37, 19), (2, 0), (0, 3), (5, 1024), (7, 1, 1, 3)):
        x = normal(rng, *shape, dtype=dtype)
        for p in (0.0, 0.1, 0.5, 0.999):
            seed, layer, step, sample = (int(n) for n in rng.integers(0, 2**32, 4) // (1, 1, 1, 2))
            options = {"seed": seed, "layer": layer, "step": step, "sample": sample}
            y, want = nf.dropout(x, p, **options), reference.dropout(x, p, **options)
            assert same(y == 0, np.asarray(want == 0)), f"the mask of {options}"
            check(y, want, rounded(tolerance.dropout(want, dtype), want, dtype), f"dropout {shape} {p}")
            assert same(nf.dropout_backward(x, p, **options), y)
            res = normal(rng, *shape, dtype=dtype)
            got, want = nf.dropout(x, p, residual=res, **options), reference.dropout(x, p, residual=res, **options)
            e = tolerance.dropout(np.abs(want) + 2 * np.abs(f64(res)), dtype)
            check(got, want, rounded(e, want, dtype), "with residual")


@by_dtype
@pytest.mark.parametrize("width", [(), (1,), (7,), (64,), (3, 11)], ids=str)
def test_dropout_of_packed_samples(rng, dtype, width, threads):
    """Each sample has the mask that it has alone, wherever threads divide the elements of all."""
    lengths = [5, 0, 1, 400, 0, 33, 2]
    starts = np.append(0, np.cumsum(lengths))
    x, res = (normal(rng, starts[-1], *width, dtype=dtype) for _ in range(2))
    place = {"seed": 5, "layer": 2, "step": 3}
    y = nf.dropout(x, 0.3, sample=7, residual=res, cu_seqlens=starts, **place)
    for s, (a, b) in enumerate(pairwise(starts)):
        alone = nf.dropout(x[None, a:b], 0.3, sample=7 + s, residual=res[None, a:b], **place)[0]
        assert same(y[a:b], alone), f"sample {s}"
    dx = nf.dropout_backward(x, 0.3, sample=7, cu_seqlens=starts.astype(np.int32), **place)
    assert same(dx, nf.dropout(x, 0.3, sample=7, cu_seqlens=starts, **place))
    want = reference.dropout_backward(x, 0.3, sample=7, cu_seqlens=starts, **place)
    assert same(dx == 0, np.asarray(want == 0))
    want = reference.dropout(x, 0.3, sample=7, residual=res, cu_seqlens=starts, **place)
    e = tolerance.dropout(np.abs(want) + 2 * np.abs(f64(res)), dtype)
    check(y, want, rounded(e, want, dtype), "beside the twin")
    for count in (1, 2, 5):
        threads(count)
        assert same(nf.dropout(x, 0.3, sample=7, residual=res, cu_seqlens=starts, **place), y)


def test_dropout_is_a_function_of_place(rng):
    x = normal(rng, 6, 31, 17)
    whole = nf.dropout(x, 0.4, seed=1, layer=2, step=3, sample=10)
    parts = [nf.dropout(x[i : i + 2], 0.4, seed=1, layer=2, step=3, sample=10 + i) for i in (0, 2, 4)]
    assert same(whole, np.concatenate(parts)), "micro-batches change the mask"
    for other in ({"seed": 2}, {"layer": 3}, {"step": 4}, {"sample": 11}):
        options = {"seed": 1, "layer": 2, "step": 3, "sample": 10, **other}
        assert not same(nf.dropout(x, 0.4, **options) == 0, whole == 0), other
    kept = np.count_nonzero(nf.dropout(np.ones((20, 5000), np.float32), 0.3, seed=int(rng.integers(2**32))))
    assert abs(kept - 70_000) < 6 * np.sqrt(100_000 * 0.3 * 0.7), "six standard deviations of a binomial"


@by_dtype
def test_add_and_sum_rows(rng, dtype):
    for shape, x in each(rng, dtype):
        b = normal(rng, *shape, dtype=dtype)
        want = reference.add(x, b)
        check(nf.add(x, b), want, rounded(tolerance.add(x, b, dtype), want, dtype), f"add {shape}")
        everywhere(lambda x: nf.add(x, b), x, nf.add(x, b), "add")
        want, bound = reference.sum_rows(x), tolerance.sum_rows(x, dtype)
        got = nf.sum_rows(x)
        check(got, want, rounded(bound, want, dtype), f"sum_rows {shape}")
        everywhere(nf.sum_rows, x, got, "sum_rows")
        start = normal(rng, shape[-1], dtype=dtype)
        out = start.copy()
        assert nf.sum_rows(x, accumulate=True, out=out) is out
        e = (
            bound
            + tolerance.u(working(dtype)) * (np.abs(want) + np.abs(f64(start)))
            + np.abs(want) * tolerance.u(dtype)
        )
        check(out, want + f64(start), rounded(e, want + f64(start), dtype), "sum_rows, accumulated")
