"""Matrix product against its twin: sizes around tiles and blocks, layouts, epilogues, gradients."""

import itertools

import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, SIZES, heavy, layouts, name, normal, same
from numformer import reference
from tolerance import check, f64, rounded, u, working

ACTIVATIONS = [None, "relu", "gelu", "gelu_tanh", "silu"]
SHAPES = [
    *[(s, 17, 33) for s in SIZES],
    *[(29, s, 31) for s in SIZES],
    *[(19, 23, s) for s in SIZES],
    *[(s, s, s) for s in SIZES],
    *[(m, 37, n) for m, n in itertools.product((15, 16, 17), (31, 32, 33))],
    *[(m, k, 35) for m, k in itertools.product((5, 18), (511, 512, 513, 1025))],
    *[(m, 21, n) for m, n in itertools.product((4, 30), (383, 384, 385, 769))],
    *[(m, 37, n) for m, n in itertools.product((1, 3), (127, 128, 300))],  # groups of columns of few rows
    *[(m, 520, n) for m, n in itertools.product((17, 29, 43), (7, 16, 33, 65))],  # too deep to be read where it lies
    *[(m, k, n) for m, k, n in itertools.product((17, 31, 65), (63, 64, 65, 129, 257), (32, 64, 127))],
    (2049, 5, 9),
]


def judge(a, b, what, **options):
    got = nf.matmul(a, b, **options)
    want = reference.matmul(a, b, **options)
    bound = tolerance.matmul(a, b, a.dtype, **options)
    check(got, want, rounded(bound, want, a.dtype), what)
    assert got.dtype == a.dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_sizes(rng, dtype):
    for m, k, n in SHAPES:
        a, b = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
        judge(a, b, f"{m} x {k} x {n}")
        if m * k * n < 40_000:
            transposed_a, transposed_b = np.asfortranarray(a), np.asfortranarray(b)
            judge(transposed_a, b, f"A.T, {m} x {k} x {n}")
            judge(a, transposed_b, f"B.T, {m} x {k} x {n}")
            judge(transposed_a, transposed_b, f"A.T B.T, {m} x {k} x {n}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("m", "k", "n"), [(3, 29, 37), (39, 29, 37)])
def test_layouts(rng, dtype, m, k, n):
    a, b = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
    for (how_a, a2), (how_b, b2) in itertools.product(layouts(a), layouts(b)):
        judge(a2, b2, f"{how_a} @ {how_b}")
    stretched = np.broadcast_to(normal(rng, 1, k, dtype=dtype), (m, k))
    judge(stretched, b, "zero stride between rows")
    judge(np.broadcast_to(normal(rng, m, 1, dtype=dtype), (m, k)), b, "zero stride along a row")
    judge(a[::-1], b[::-1], "reversed rows")


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=name)
def test_operands_read_where_they_lie_give_the_bits_of_packed_ones(rng, dtype):
    for m, k, n in [(17, 64, 64), (64, 64, 64), (33, 128, 32), (45, 100, 150), (97, 30, 71), (65, 256, 96)]:
        a, b = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
        want = nf.matmul(a, nf.PackedMatrix(b))
        (plan,) = nf.explain(nf.matmul, a, b)
        assert plan.path.startswith("short depth") or k > 128
        for (how_a, a2), (how_b, b2) in itertools.product(layouts(a), layouts(b)):
            assert same(nf.matmul(a2, b2), want), f"{m} x {k} x {n}, {how_a} @ {how_b}"


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_few_rows_of_a_matrix_beyond_the_caches(rng, threads, dtype):
    k = 37
    n = (17 << 20) // (k * dtype.itemsize) + 5
    a, b = normal(rng, 16, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
    near = nf.matmul(a, b[:, :1000])
    for m in (1, 3, 8, 16):
        got = nf.matmul(a[:m], b)
        part = np.r_[0:1000, n - 1000 : n]
        judge(a[:m], b[:, part], f"{m} rows, by themselves")
        assert same(got[:, :1000], near[:m]), m
        want = reference.matmul(a[:m], b[:, part])
        check(got[:, part], want, rounded(tolerance.matmul(a[:m], b[:, part], dtype), want, dtype), f"{m} rows")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("k", "n"), [(255, 1601), (256, 1600), (771, 530), (1026, 3075)])
def test_bits_of_few_rows_depend_on_neither_their_number_nor_the_threads(rng, threads, dtype, k, n):
    a, b = normal(rng, 16, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
    threads(1)
    want = nf.matmul(a, b)
    judge(a, b, "on one thread")
    for count in (1, 2, 3, 4, 8):
        threads(count)
        if dtype == np.float32:
            (plan,) = nf.explain(nf.matmul, a[:1], b)
            assert plan.facts["threads_divide_the_depth"] == (k >= 256 and count % 2 == 0)
        for m in (1, 2, 3, 5, 9, 16):
            assert same(nf.matmul(a[:m], b), want[:m]), f"{m} rows on {count} threads"


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_batches_of_small_matrices(rng, threads, dtype):
    for batch, m, k, n in [(203, 5, 6, 7), (67, 16, 16, 16), (33, 32, 32, 32), (9, 64, 64, 64), (6, 70, 64, 130)]:
        a, b = normal(rng, batch, m, k, dtype=dtype), normal(rng, batch, k, n, dtype=dtype)
        got = nf.matmul(a, b)
        for count in (1, 3):
            threads(count)
            assert same(nf.matmul(a, b), got), f"{batch} of {m} x {k} x {n} on {count} threads"
        for index in range(0, batch, max(1, batch // 7)):
            assert same(got[index], nf.matmul(a[index], b[index])), f"product {index} of {m} x {k} x {n}"
            judge(a[index], b[index], f"product {index} of {m} x {k} x {n}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_heavy_tails(rng, dtype):
    judge(heavy(rng, 45, 300, dtype=dtype), heavy(rng, 300, 50, dtype=dtype), "heavy tails")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [
        ((7,), (7,)),
        ((7,), (7, 5)),
        ((4, 7), (7,)),
        ((3, 4, 7), (7,)),
        ((7,), (3, 7, 5)),
        ((3, 4, 7), (7, 5)),
        ((4, 7), (3, 7, 5)),
        ((3, 1, 20, 7), (2, 7, 5)),
        ((3, 1, 4, 7), (1, 2, 7, 5)),
        ((2, 3, 1, 7), (7, 5)),
        ((0, 4, 7), (7, 5)),
        ((2, 0, 7), (7, 5)),
        ((2, 4, 0), (0, 5)),
        ((2, 4, 7), (7, 0)),
        ((0,), (0,)),
    ],
)
def test_batches_and_vectors(rng, dtype, shape_a, shape_b):
    a, b = normal(rng, *shape_a, dtype=dtype), normal(rng, *shape_b, dtype=dtype)
    got = nf.matmul(a, b)
    want = reference.matmul(a, b)
    bound = rounded(tolerance.matmul(a, b, dtype), want, dtype)
    check(got, want, bound, "product")
    dy = normal(rng, *want.shape, dtype=dtype)
    grads = nf.matmul_backward(dy, a, b, scale=0.3)
    wants = reference.matmul_backward(dy, a, b, scale=0.3)
    matrices = want.ndim > 1 and len(shape_b) > 1
    bounds = tolerance.matmul_backward(np.asarray(dy), a, b, dtype, scale=0.3) if matrices else None
    for which, (g, r) in enumerate(zip(grads[:2], wants[:2], strict=True)):
        if bounds is None:  # of vectors: few products, of sizes that the matrix bound of the absolute values covers
            size = reference.matmul_backward(np.abs(f64(dy)), np.abs(f64(a)), np.abs(f64(b)), scale=0.3)[which]
            limit = tolerance.gamma(max(dy.size, 1), dtype) * size
        else:
            limit = bounds[which]
        assert g.dtype == dtype
        check(g, r, rounded(limit, r, dtype), f"gradient {which}")
    assert grads[2] is None


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(rng, dtype, activation):
    for m, k, n in ((1, 40, 37), (6, 40, 200), (35, 40, 37), (35, 600, 70)):
        a, b = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype, scale=k**-0.5)
        bias, residual = normal(rng, n, dtype=dtype), normal(rng, m, n, dtype=dtype)
        options = {"bias": bias, "activation": activation, "scale": 0.7}
        y, z = nf.matmul(a, b, residual=residual, save_preactivation=True, **options)
        want_y, want_z = reference.matmul(a, b, residual=residual, save_preactivation=True, **options)
        bound_z = tolerance.matmul(a, b, dtype, scale=0.7, bias=bias)
        check(z, want_z, rounded(bound_z, want_z, dtype), "preactivation")
        bound = tolerance.matmul(a, b, dtype, **options) + u(working(dtype)) * (np.abs(want_y) + np.abs(f64(residual)))
        check(y, want_y, rounded(bound, want_y, dtype), f"{m} x {k} x {n}")
        without = nf.matmul(a, b, residual=residual, **options)
        assert same(without, y), "saving z changes y"

        start = normal(rng, m, n, dtype=dtype)
        out = start.copy()
        assert nf.matmul(a, b, accumulate=True, out=out, **options) is out
        want = reference.matmul(a, b, **options) + f64(start)
        bound = tolerance.matmul(a, b, dtype, **options) + u(working(dtype)) * (np.abs(want) + np.abs(f64(start)))
        check(out, want, rounded(bound, want, dtype), "accumulated")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_out(rng, dtype):
    a, b = normal(rng, 2, 20, 33, dtype=dtype), normal(rng, 33, 40, dtype=dtype)
    y = nf.matmul(a, b)
    for how, out in layouts(np.zeros(y.shape, dtype)):
        if how in ("read-only", "misaligned"):
            continue
        assert nf.matmul(a, b, out=out) is out, how
        assert same(out, y), how
    square = normal(rng, 40, 40, dtype=dtype)
    want = nf.matmul(square, square)
    assert same(nf.matmul(square, square, out=square), want), "out is an operand"
    # out begins where the residual does, but its rows lie further apart: none may be written before it is read.
    memory = normal(rng, 40, 80, dtype=dtype)
    out, residual = memory[:, :40], memory.reshape(-1)[:1600].reshape(40, 40)
    a, b = normal(rng, 40, 20, dtype=dtype), normal(rng, 20, 40, dtype=dtype)
    want = nf.matmul(a, b, residual=residual)
    assert same(nf.matmul(a, b, residual=residual, out=out), want), "out's rows lie over other rows of the residual"
    residual = memory[:20].reshape(40, 40).copy()
    want = nf.matmul(a, b, residual=residual)
    assert same(nf.matmul(a, b, residual=residual, out=residual), want), "out is the residual"


def test_output_dtype(rng):
    a, b = (normal(rng, 20, 20, dtype=DTYPES[3]) for _ in range(2))
    y = nf.matmul(a, b, dtype=np.float32)
    assert y.dtype == np.float32
    want = reference.matmul(a, b)
    check(y, want, rounded(tolerance.matmul(a, b, DTYPES[3]), want, np.float32), "bfloat16 to float32")
    bias = normal(rng, 20)
    want = reference.matmul(a, b, bias=bias)
    bound = tolerance.matmul(a, b, DTYPES[3], bias=bias)
    check(nf.matmul(a, b, bias=bias), want, rounded(bound, want, DTYPES[3]), "float32 bias beside bfloat16")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_reaches_its_row_and_column(rng, dtype):
    for m in (5, 40):
        a, b = normal(rng, m, 30, dtype=dtype), normal(rng, 30, 40, dtype=dtype)
        a[3, 7] = np.nan
        b[8, 11] = np.inf
        judge(a, b, "NaN and inf")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_rows_are_equal_within_their_class(rng, dtype):
    for depth in (530, 2100):  # several blocks of depth, of bfloat16's longer ones too
        a, b = normal(rng, 150, depth, dtype=dtype), normal(rng, depth, 75, dtype=dtype)
        for low, high in ((1, 16), (17, 150)):
            for out in {dtype, np.dtype(np.float32)} if dtype == DTYPES[3] else {dtype}:
                whole = nf.matmul(a[:high], b, dtype=out)
                for m in rng.integers(low, high, 4):
                    assert same(nf.matmul(a[high - m : high], b, dtype=out), whole[high - m :]), (m, high, depth, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward(rng, dtype, activation):
    for shape_a, shape_b in (((30, 40), (40, 20)), ((3, 5, 21), (21, 33)), ((2, 18, 8), (2, 8, 19)), ((0, 8), (8, 3))):
        a, b = normal(rng, *shape_a, dtype=dtype), normal(rng, *shape_b, dtype=dtype)
        bias = normal(rng, shape_b[-1], dtype=dtype)
        dy, z = (normal(rng, *shape_a[:-1], shape_b[-1], dtype=dtype) for _ in range(2))
        options = {"activation": activation, "scale": 0.3}
        given = {"bias": bias, "preactivation": None if activation is None else z}
        grads = nf.matmul_backward(dy, a, b, **given, **options)
        wants = reference.matmul_backward(dy, a, b, **given, **options)
        bounds = tolerance.matmul_backward(dy, a, b, dtype, **options)
        for which, got, want, bound in zip(("da", "db", "dbias"), grads, wants, bounds, strict=True):
            check(got, want, rounded(bound, want, dtype), f"{which} of {shape_a} @ {shape_b}")


X, W, DY = (np.zeros(shape, np.float32) for shape in ((4, 8), (8, 5), (4, 5)))
NO_AXES = np.zeros((), np.float32)


@pytest.mark.parametrize(
    ("dy", "a", "b", "options", "error", "words"),
    [
        ("x", X, W, {}, TypeError, "dy must be a numpy.ndarray (or have __dlpack__ or __array__), got str"),
        (DY, "x", W, {}, TypeError, "a must be a numpy.ndarray (or have __dlpack__ or __array__), got str"),
        (DY, X, None, {}, TypeError, "b must be a numpy.ndarray (or have __dlpack__ or __array__), got NoneType"),
        (DY.astype(np.float64), X, W, {}, TypeError, "dy must have the dtype of a, float32, got float64"),
        (DY, X, W.astype(np.float64), {}, TypeError, "b must have the dtype of a, float32, got float64"),
        (DY, NO_AXES, W, {}, ValueError, "a must have 1 or more axes, got shape ()"),
        (DY, X, NO_AXES, {}, ValueError, "b must have 1 or more axes, got shape ()"),
        (
            DY[0],
            X,
            W,
            {},
            ValueError,
            "dy must have the shape of a @ b, got dy (5,) for a (4, 8) and b (8, 5)",
        ),
        (
            DY,
            X,
            W,
            {"activation": "relu"},
            ValueError,
            "preactivation is required with an activation, got None",
        ),
        (
            DY,
            X,
            W,
            {"activation": "tanh", "preactivation": DY},
            ValueError,
            "activation must be None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got 'tanh'",
        ),
    ],
)
def test_what_the_gradient_refuses(dy, a, b, options, error, words):
    """To the letter: these checks are in Python, not in the table that all other operations share."""
    with pytest.raises(error) as caught:
        nf.matmul_backward(dy, a, b, **options)
    assert str(caught.value) == f"matmul_backward: {words}"
