"""Cross-entropy of a linear map over chunks of rows, against its twin and against the operations that it is made of."""

import gc

import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, layouts, name, normal, same
from numformer import reference
from tolerance import check, f64, rounded, working

F32 = np.dtype(np.float32)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)
# Leading axes, D, V: nothing, one element, around the widths of vectors and tiles, few rows and many.
SHAPES = [
    *[((5,), d, v) for d, v in ((7, 13), (1, 1), (16, 1), (33, 65), (17, 513))],
    *[((0,), 4, 5), ((3,), 0, 4), ((), 6, 9), ((2, 3), 64, 32), ((90,), 15, 31), ((2, 40), 1, 3), ((300,), 9, 61)],
]


def drawn(rng, leading, width, classes, dtype, ignored=0.3):
    x, weight = normal(rng, *leading, width, dtype=dtype), normal(rng, classes, width, dtype=dtype, scale=0.3)
    targets = rng.integers(0, classes, leading)
    return x, weight, np.where(rng.random(leading) < ignored, -100, targets)


def judge(got, want, bounds, dtype, what):
    for label, one, expected, bound in zip(("loss", "dx", "dweight", "dbias"), got, want, bounds, strict=False):
        check(one, expected, rounded(bound, expected, np.asarray(one).dtype), f"{what}: {label}")
    assert np.asarray(got[0]).dtype == working(dtype) and got[1].dtype == got[2].dtype == dtype


@by_dtype
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_against_the_twin(rng, dtype, label_smoothing, reduction):
    for leading, width, classes in SHAPES:
        x, weight, targets = drawn(rng, leading, width, classes, dtype)
        options = {"label_smoothing": label_smoothing, "reduction": reduction, "dloss": float(rng.normal())}
        for chunk in (None, 1, 7, 33):
            got = nf.linear_cross_entropy(x, weight, targets, chunk=chunk, **options)
            want = reference.linear_cross_entropy(x, weight, targets, **options)
            bounds = tolerance.linear_cross_entropy(x, weight, targets, dtype, **options)
            judge(got, want, bounds, dtype, f"{leading} {width} {classes}, chunk {chunk}")
        bias = normal(rng, classes, dtype=dtype)
        for given in (bias, bias.astype(np.float32)) if dtype.itemsize == 2 else (bias,):
            options["bias"] = given
            got = nf.linear_cross_entropy(x, weight, targets.astype(np.int32), chunk=20, **options)
            want = reference.linear_cross_entropy(x, weight, targets, **options)
            bounds = tolerance.linear_cross_entropy(x, weight, targets, dtype, **options)
            judge(got, want, bounds, dtype, f"{leading} {width} {classes}, bias {given.dtype}")
            assert got[3].dtype == given.dtype


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name)
def test_the_bits_of_what_it_is_made_of(rng, dtype):
    """One chunk in which every row counts is the three products and the two halves of cross_entropy."""
    x, weight, targets = drawn(rng, (70,), 40, 333, dtype, ignored=0.0)
    bias = normal(rng, 333, dtype=dtype)
    loss, dx, dweight, dbias = nf.linear_cross_entropy(x, weight, targets, bias=bias, label_smoothing=0.1, dloss=0.3)
    logits = nf.matmul(x, weight.T, bias=bias)
    expected, lse = nf.cross_entropy(logits, targets, label_smoothing=0.1, return_lse=True)
    dlogits = nf.cross_entropy_backward(0.3, logits, targets, lse, label_smoothing=0.1)
    assert same(loss, expected)
    if dtype == np.float64:  # 0.3 / 70 is rounded once here, twice there
        np.testing.assert_allclose(dx, nf.matmul(dlogits, weight), rtol=1e-13, atol=1e-16)
    loss, dx, dweight, dbias = nf.linear_cross_entropy(x, weight, targets, bias=bias, label_smoothing=0.1)
    dlogits = nf.cross_entropy_backward(1.0, logits, targets, lse, label_smoothing=0.1)
    assert same((dx, dweight), (nf.matmul(dlogits, weight), nf.matmul(dlogits.T, x)))
    bound = tolerance.gamma(70, dtype) * np.abs(dlogits).sum(axis=0)
    check(dbias, dlogits.sum(axis=0, dtype=np.float64), rounded(bound, dbias, dtype), "dbias")


@by_dtype
def test_a_row_has_its_bits_in_any_chunk(rng, dtype):
    x, weight, targets = drawn(rng, (120,), 40, 77, dtype, ignored=0.2)
    # Some 100 rows count, so no part has 16 or fewer, whose products are of another class.
    results = [nf.linear_cross_entropy(x, weight, targets, reduction="sum", chunk=n) for n in (33, 45, 120)]
    for loss, dx, _ in results[1:]:
        assert same((loss, dx), results[0][:2])


@by_dtype
def test_the_loss_alone(rng, dtype):
    x, weight, targets = drawn(rng, (2, 35), 12, 50, dtype)
    options = {"bias": normal(rng, 50, dtype=dtype), "label_smoothing": 0.1, "chunk": 20}
    loss = nf.linear_cross_entropy(x, weight, targets, **options)[0]
    alone = nf.linear_cross_entropy(x, weight, targets, gradients=False, **options)
    assert same(alone, loss) and np.asarray(alone).dtype == working(dtype)


@by_dtype
def test_rows_that_do_not_count(rng, dtype):
    x, weight, targets = drawn(rng, (6,), 8, 11, dtype, ignored=0.0)
    few = np.where(np.arange(6) % 2, -1, targets)
    clean = nf.linear_cross_entropy(x, weight, few, ignore_index=-1)
    dirty = x.copy()
    dirty[1::2] = np.nan
    assert same(nf.linear_cross_entropy(dirty, weight, few, ignore_index=-1), clean)
    assert not clean[1][1::2].any() and clean[1][::2].any()
    bias, none = normal(rng, 11, dtype=dtype), np.full(6, -100)
    dweight, dbias = np.full_like(weight, np.nan), np.full_like(bias, np.nan)
    loss, dx, *_ = nf.linear_cross_entropy(x, weight, none, bias=bias, dweight=dweight, dbias=dbias)
    assert loss == 0 and not dx.any() and not dweight.any() and not dbias.any()
    dweight[:], dbias[:] = 2, 3
    nf.linear_cross_entropy(x, weight, none, bias=bias, dweight=dweight, dbias=dbias, accumulate=True)
    assert (dweight == 2).all() and (dbias == 3).all()


@by_dtype
def test_into_given_arrays(rng, dtype):
    x, weight, targets = drawn(rng, (50,), 20, 41, dtype)
    bias = normal(rng, 41, dtype=dtype)
    fresh = nf.linear_cross_entropy(x, weight, targets, bias=bias, chunk=17)
    want = reference.linear_cross_entropy(x, weight, targets, bias=bias)
    bounds = tolerance.linear_cross_entropy(x, weight, targets, dtype, bias=bias)
    for kind in {dtype, F32} if dtype.itemsize == 2 else {dtype}:
        start = [normal(rng, *shape, dtype=kind) for shape in ((41, 20), (41,))]
        given = [a.copy() for a in start]
        options = {"bias": bias, "chunk": 17, "dweight": given[0], "dbias": given[1]}
        result = nf.linear_cross_entropy(x, weight, targets, **options)
        assert result[2] is given[0] and result[3] is given[1]
        if kind == dtype:
            assert same(result, fresh)
        for i, bound in ((2, bounds[2]), (3, bounds[3])):
            check(result[i], want[i], rounded(bound, want[i], kind), "written")
        for a, b in zip(given, start, strict=True):
            a[...] = b
        nf.linear_cross_entropy(x, weight, targets, accumulate=True, **options)
        for a, b, expected, bound in zip(given, start, want[2:], bounds[2:], strict=True):
            total = expected + f64(b)
            more = tolerance.gamma(5, dtype) * (np.abs(expected) + np.abs(f64(b)))
            check(a, total, rounded(bound + more, total, kind), "added")


@by_dtype
def test_memory_layouts(rng, dtype):
    x, weight, targets = drawn(rng, (60,), 12, 30, dtype)
    want = nf.linear_cross_entropy(x, weight, targets)
    for how, x2 in layouts(x):
        assert same(nf.linear_cross_entropy(x2, weight, targets), want), how
    for how, weight2 in layouts(weight):
        assert same(nf.linear_cross_entropy(x, weight2, targets), want), how
    wide = np.zeros((30, 24), dtype)
    strided = wide[:, ::2]
    assert nf.linear_cross_entropy(x, weight, targets, dweight=strided)[2] is strided
    assert same(np.ascontiguousarray(strided), want[2]) and not wide[:, 1::2].any()
    shared = weight.copy()
    result = nf.linear_cross_entropy(x, shared, targets, dweight=shared)
    assert same(np.ascontiguousarray(shared), want[2]) and same(result[1], want[1]), "over the weight itself"


def peak(rows, classes, **options):
    """Bytes from the pool at once, those of the results included."""
    rng = np.random.default_rng(rows)
    x, weight, targets = drawn(rng, (rows,), 8, classes, F32, ignored=0.0)
    gc.collect()
    nf._core.pool_reset_peak()
    before = nf.info()["pool"]["bytes_in_use"]
    result = nf.linear_cross_entropy(x, weight, targets, **options)
    del result
    return nf.info()["pool"]["peak_bytes"] - before


def test_logits_are_never_held_whole(threads):
    threads(1)  # how many threads hold scratch at the same moment is not always the same
    classes = 4099
    short, long = (peak(rows, classes, chunk=32) for rows in (256, 2048))
    whole = 4 * 2048 * classes
    assert long - short < whole / 50, "memory grows with the rows"
    assert long < whole / 2
    whole = 4 * 1024 * 50257
    assert peak(1024, 50257) < whole / 2, "by default"
    assert peak(1024, 50257, gradients=False) < whole / 2, "for the loss alone"
