"""NaN, infinities, zeros of both signs and subnormal numbers in every kernel, beside its twin.

Run at each instruction set (NUMFORMER_ISA): what is a matter of course in NumPy is here a matter of the order of
operands of a minimum, of lanes behind a row's end, and of how a level converts.
"""

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, bits, name, normal, same
from attention_judge import inputs, relative
from numformer import reference
from tolerance import check, f64, rounded, u, working

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)
# inf - inf, 0 * inf and all the like are what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BF16 = np.dtype(ml_dtypes.bfloat16)
# Products of bfloat16 at these levels count subnormal numbers as zero (docs/numerics.md).
FLUSHES = nf.info()["isa"] not in ("v2", "v3", "v4", "neon")


def subnormal(dtype):
    info = ml_dtypes.finfo(dtype)
    least, most = float(info.smallest_subnormal), float(info.tiny) - float(info.smallest_subnormal)
    return [least, -least, most, -most, float(info.tiny), -float(info.tiny)]


KINDS = {
    "zeros": lambda dtype: [0.0, -0.0],
    "subnormal": subnormal,
    "infinite": lambda dtype: [np.inf, -np.inf],
    "nan": lambda dtype: [np.nan],
    "not finite": lambda dtype: [np.nan, np.inf, -np.inf, -0.0],
}
by_kind = pytest.mark.parametrize("kind", KINDS)


def everything(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, *subnormal(dtype), largest, -largest, 1.0, -1.5, 3.0]
    return np.array(values, dtype)


def spoiled(rng, *shape, dtype, kind, share=0.02):
    """Random numbers, some of which are special: one at least."""
    x = np.asarray(normal(rng, *shape, dtype=dtype))
    flat = x.reshape(-1)
    if flat.size:
        places = rng.random(flat.size) < share
        places[rng.integers(flat.size)] = True
        flat[places] = rng.choice(KINDS[kind](dtype), np.count_nonzero(places)).astype(dtype)
    return flat.reshape(shape)


def subnormals_dropped(x):
    """What a product of bfloat16 sees of x at a level that knows no subnormal numbers."""
    if x.dtype == BF16 and FLUSHES:
        return np.where(np.abs(f64(x)) < float(ml_dtypes.finfo(BF16).tiny), 0.0, f64(x)).astype(BF16)
    return x


def identical(got, want):
    """Equal bits, where a NaN is like any other."""
    missing = np.isnan(f64(got)) & np.isnan(f64(want))
    zero = np.zeros((), got.dtype)
    return got.dtype == want.dtype and same(np.where(missing, zero, got), np.where(missing, zero, want))


def grid(values):
    """Each value beside each."""
    a, b = np.meshgrid(values, values, indexing="ij")
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


# ---- element by element


@by_dtype
def test_add_is_exact(dtype):
    a, b = grid(everything(dtype))
    want = (a + b).astype(dtype) if dtype.itemsize > 2 else (a.astype(np.float32) + b.astype(np.float32)).astype(dtype)
    assert identical(nf.add(a, b), want)
    assert identical(nf.add(a, b[0]), nf.add(a, np.broadcast_to(b[0], a.shape).copy()))


@by_dtype
@pytest.mark.parametrize("to", DTYPES, ids=name)
def test_cast_is_exact(dtype, to):
    x = np.concatenate([everything(dtype), everything(to).astype(dtype)])
    x = np.resize(x, 3 * len(x) + 5)  # in whole vectors, and behind them
    want = x.astype(np.float32).astype(to) if to.itemsize == 2 else x.astype(to)
    assert identical(nf.cast(x, to), want)


@by_dtype
def test_embedding_copies_bits(rng, dtype):
    weight = np.ascontiguousarray(np.tile(everything(dtype), (7, 3)))
    ids = rng.integers(0, 7, 40)
    assert bits(nf.embedding(weight, ids)) == bits(weight[ids])


@by_dtype
@by_kind
def test_sums_over_rows(rng, dtype, kind):
    """Of a bias and of an embedding: a column is special where an element of it is."""
    for rows, columns in ((1, 5), (40, 67), (300, 33)):
        x = spoiled(rng, rows, columns, dtype=dtype, kind=kind)
        want = reference.sum_rows(x)
        check(nf.sum_rows(x), want, rounded(tolerance.sum_rows(x, dtype), want, dtype), "sum_rows")
        ids = rng.integers(0, 9, rows)
        want = reference.embedding_backward(x, ids, 9)
        bound = rounded(tolerance.embedding_backward(x, ids, 9, dtype), want, dtype)
        check(nf.embedding_backward(x, ids, 9), want, bound, "embedding_backward")
    each = np.arange(rows)
    alone = nf.embedding_backward(x, each, rows)
    assert ((alone == x) | (np.isnan(f64(alone)) & np.isnan(f64(x)))).all(), "one row each: subnormal numbers are kept"


@by_dtype
def test_dropout(dtype):
    x = np.resize(everything(dtype), (5, 61))
    for p in (0.0, 0.25, 1.0):
        y, want = nf.dropout(x, p, seed=5), reference.dropout(x, p, seed=5)
        check(y, want, rounded(tolerance.dropout(want, dtype), want, dtype), f"p = {p}")
        assert identical(nf.dropout_backward(x, p, seed=5), y)
        res = np.ascontiguousarray(x[:, ::-1])
        got, want = nf.dropout(x, p, seed=5, residual=res), reference.dropout(x, p, seed=5, residual=res)
        bound = tolerance.dropout(np.abs(want) + 2 * np.abs(f64(res)), dtype)
        check(got, want, rounded(bound, want, dtype), f"p = {p}, residual")
    assert identical(nf.dropout(x, 0.0, seed=5), x)


ACTIVATIONS = {
    "relu": (nf.relu, nf.relu_backward, reference.relu, reference.relu_backward, {}),
    "gelu": (nf.gelu, nf.gelu_backward, reference.gelu, reference.gelu_backward, {}),
    "gelu_tanh": (nf.gelu, nf.gelu_backward, reference.gelu, reference.gelu_backward, {"approximate": "tanh"}),
    "silu": (nf.silu, nf.silu_backward, reference.silu, reference.silu_backward, {}),
}


@by_dtype
@pytest.mark.parametrize("f", ACTIVATIONS)
def test_activations(dtype, f):
    forward, backward, twin, twin_backward, options = ACTIVATIONS[f]
    dy, x = grid(everything(dtype))
    y, want = forward(x, **options), twin(x, **options)
    bound = np.minimum(tolerance.activation(x, f, dtype), 16 * u(working(dtype)) * np.abs(want))  # of the largest, inf
    check(y, want, rounded(bound, want, dtype), f)
    want = twin_backward(dy, x, **options)
    bound = tolerance.activation_backward(dy, x, f, dtype)
    bound = np.where(np.isfinite(bound), bound, 16 * u(working(dtype)) * np.abs(want))
    check(backward(dy, x, **options), want, rounded(bound, want, dtype), f"{f}_backward")
    least = np.array(subnormal(dtype), dtype)
    if f == "relu":
        assert identical(nf.relu(np.abs(least)), np.abs(least))
        assert identical(nf.relu_backward(least, np.ones_like(least)), least)


# ---- rows


@by_dtype
@by_kind
@pytest.mark.parametrize("axis", [-1, 0])
def test_softmax(rng, dtype, kind, axis):
    for shape in ((9, 7), (40, 67), (3, 300)):
        x = spoiled(rng, *shape, dtype=dtype, kind=kind)
        if kind == "infinite":
            x[1], x[:, 1] = -np.inf, -np.inf  # a row and a column that see nothing
        y, want = nf.softmax(x, axis), reference.softmax(x, axis)
        check(y, want, rounded(tolerance.softmax(x, axis, dtype), want, dtype), f"softmax {shape}")
        dy, p = spoiled(rng, *shape, dtype=dtype, kind=kind), nf.softmax(normal(rng, *shape, dtype=dtype), axis)
        want = reference.softmax_backward(dy, p, axis)
        bound = rounded(tolerance.softmax_backward(dy, p, axis, dtype), want, dtype)
        check(nf.softmax_backward(dy, p, axis), want, bound, f"softmax_backward {shape}")
        want = reference.softmax_backward(p, y, axis)
        bound = rounded(tolerance.softmax_backward(p, y, axis, dtype), want, dtype)
        check(nf.softmax_backward(p, y, axis), want, bound, f"softmax_backward, y {shape}")


@by_dtype
@by_kind
@pytest.mark.parametrize("shape", [(5, 7), (23, 67), (140, 33)], ids=str)
def test_norms(rng, dtype, kind, shape):
    for where in ("x", "weight", "bias", "dy", "residual"):
        x, dy, res, w, b = (
            spoiled(rng, *size, dtype=dtype, kind=kind) if which == where else normal(rng, *size, dtype=dtype)
            for which, size in (
                ("x", shape),
                ("dy", shape),
                ("residual", shape),
                ("weight", shape[1:]),
                ("bias", shape[1:]),
            )
        )
        judge_norm("layer_norm", x, dy, res, w, b, dtype, f"{kind} in {where}")
        judge_norm("rms_norm", x, dy, res, w, None, dtype, f"{kind} in {where}")


def judge_norm(f, x, dy, res, w, b, dtype, what):
    """Layer norm or RMS norm, forward and backward from the statistics that the forward gave."""
    affine, with_bias = ((w,), {}) if b is None else ((w, b), {"bias": True})
    got, want = (getattr(where, f)(x, *affine, return_stats=True) for where in (nf, reference))
    bounds = tolerance.rms_norm(x, w, 1e-6, dtype) if b is None else tolerance.layer_norm(x, w, b, 1e-5, dtype)
    for i, (g, r, e) in enumerate(zip(got, want, bounds, strict=True)):
        check(g, r, rounded(e, r, g.dtype), f"{f}, result {i}, {what}")
    grads, wants = (
        getattr(where, f + "_backward")(dy, x, *got[1:], w, residual=res, **with_bias) for where in (nf, reference)
    )
    bounds = tolerance.norm_backward(dy, x, None if b is None else got[1], got[-1], w, res, dtype)
    for i, (g, r, e) in enumerate(zip(grads, wants, bounds, strict=False)):  # RMS norm has no bias
        check(g, r, rounded(e, r, dtype), f"gradient {i} of {f}, {what}")


@by_dtype
def test_norms_of_constant_rows(dtype):
    """No variance, also with eps = 0, where 0 / 0 is NaN; -0.0 is a zero."""
    for value in (0.0, -0.0, 2.5):
        x = np.full((3, 37), value, dtype)
        for eps in (0.0, 1e-5):
            want = reference.layer_norm(x, eps=eps)
            assert identical(np.abs(nf.layer_norm(x, eps=eps)), np.abs(want).astype(dtype)), (value, eps)
            want = reference.rms_norm(x, eps=eps)
            check(nf.rms_norm(x, eps=eps), want, rounded(4 * u(working(dtype)), want, dtype), f"rms_norm {value} {eps}")


@by_dtype
@by_kind
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy(rng, dtype, kind, label_smoothing):
    for shape in ((30, 5), (17, 67), (9, 300)):
        x, targets = spoiled(rng, *shape, dtype=dtype, kind=kind), rng.integers(0, shape[1], shape[0])
        targets[::4] = -100
        if kind == "infinite":
            x[1, targets[1]] = -np.inf  # an impossible target: a loss of inf
            x[2] = -np.inf  # nothing is possible
        options = {"label_smoothing": label_smoothing, "reduction": "none"}
        loss, lse = nf.cross_entropy(x, targets, return_lse=True, **options)
        want, want_lse = reference.cross_entropy(x, targets, return_lse=True, **options)
        e, e_lse = tolerance.cross_entropy(x, targets, label_smoothing, dtype)
        counts = targets != -100
        assert not loss[~counts].any(), "rows that do not count"
        check(loss, want, rounded(np.where(counts, e, 0.0), want, loss.dtype), f"loss {shape}")
        check(lse[counts], want_lse[counts], rounded(e_lse, want_lse, lse.dtype)[counts], f"lse {shape}")
        for reduction in ("mean", "sum"):
            whole = nf.cross_entropy(x, targets, label_smoothing=label_smoothing, reduction=reduction)
            twin = reference.cross_entropy(x, targets, label_smoothing=label_smoothing, reduction=reduction)
            assert np.isnan(whole) == np.isnan(twin) and np.isinf(whole) == np.isinf(twin), reduction
        dloss = spoiled(rng, shape[0], dtype=working(dtype), kind=kind)
        for given in (dloss, np.ones_like(dloss)):
            want = reference.cross_entropy_backward(given, x, targets, lse, **options)
            bound = tolerance.cross_entropy_backward(given, x, targets, lse, dtype, **options)
            got = nf.cross_entropy_backward(given, x, targets, lse, **options)
            check(got, want, rounded(bound, want, dtype), f"dlogits {shape}")


def judge_linear_cross_entropy(given, twin, targets, dtype, what, pick=lambda name, x: x):
    """`given`: x, weight, bias of ours; `twin`: those of the reference, whose results `pick` compares."""
    got = nf.linear_cross_entropy(given[0], given[1], targets, bias=given[2], chunk=16)
    want = reference.linear_cross_entropy(twin[0], twin[1], targets, bias=twin[2])
    bounds = tolerance.linear_cross_entropy(twin[0], twin[1], targets, dtype, bias=twin[2])
    for which, g, w, e in zip(("loss", "dx", "dweight", "dbias"), got, want, bounds, strict=True):
        g = pick(which, np.asarray(g))
        check(g, w, rounded(e, w, g.dtype), f"{what}: {which}")


@by_dtype
def test_linear_cross_entropy(rng, dtype):
    x, weight, bias = (normal(rng, *s, dtype=dtype) for s in ((60, 21), (37, 21), (37,)))
    targets = rng.integers(0, 36, 60)
    targets[::3] = -100
    # Rows that do not count may hold anything.
    dirty = x.copy()
    dirty[::3] = np.resize(everything(dtype), dirty[::3].shape)
    judge_linear_cross_entropy((dirty, weight, bias), (x, weight, bias), targets, dtype, "ignored rows")
    # A class that is impossible is as one that is not there, and gets no gradient.
    impossible = bias.copy()
    impossible[36] = -np.inf
    whole = nf.linear_cross_entropy(x, weight, targets, bias=impossible, chunk=16)
    assert not whole[2][36].any() and whole[3][36] == 0
    pick = lambda which, g: g[:36] if which in ("dweight", "dbias") else g
    judge_linear_cross_entropy(
        (x, weight, impossible), (x, weight[:36], bias[:36]), targets, dtype, "an impossible class", pick
    )
    # Subnormal weights and zeros are numbers.
    for kind in ("zeros", "subnormal"):
        given = [spoiled(rng, *s, dtype=dtype, kind=kind, share=0.3) for s in ((60, 21), (37, 21), (37,))]
        judge_linear_cross_entropy(given, given, targets, dtype, kind)
    # What is not finite reaches the loss, its own row of dx, and all of dweight.
    for bad in (np.nan, np.inf, -np.inf):
        broken = x.copy()
        broken[4, 3] = bad
        loss, dx, dweight, dbias = nf.linear_cross_entropy(broken, weight, targets, bias=bias, chunk=16)
        want = reference.linear_cross_entropy(broken, weight, targets, bias=bias)
        assert np.isnan(loss) and np.isnan(want[0])
        for which, g, w in zip(("dx", "dweight", "dbias"), (dx, dweight, dbias), want[1:], strict=True):
            assert (np.isfinite(f64(g)) == np.isfinite(w)).all(), f"{bad}, {which}"
        assert np.isnan(f64(dx[4])).all() and np.isfinite(f64(np.delete(dx, 4, axis=0))).all()


# ---- products

WAYS = {
    "plain": lambda b: b,
    "transposed": np.asfortranarray,
    "packed": nf.PackedMatrix,
    "packed transpose": lambda b: nf.PackedMatrix(np.asfortranarray(b)),
}


@by_dtype
@by_kind
@pytest.mark.parametrize("way", WAYS)
def test_matmul(rng, dtype, kind, way):
    for m, k, n in ((1, 33, 40), (5, 21, 35), (16, 530, 17), (40, 33, 50), (70, 9, 33)):
        plain = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
        special = [spoiled(rng, *x.shape, dtype=dtype, kind=kind, share=0.5 / k) for x in plain]
        for a, b in ((special[0], plain[1]), (plain[0], special[1]), special):
            for given in (a, np.asfortranarray(a)):
                got, want = nf.matmul(given, WAYS[way](b)), reference.matmul(a, b)
                check(got, want, rounded(tolerance.matmul(a, b, dtype), want, dtype), f"{m} x {k} x {n}")


@by_dtype
@pytest.mark.parametrize("way", WAYS)
def test_matmul_keeps_subnormal_numbers(rng, dtype, way):
    """Times one, they are what they are; of bfloat16 at the levels that say so, zero."""
    for m in (1, 4, 40):
        x = rng.choice(np.array(subnormal(dtype), dtype), (m, 37))
        one, plain = WAYS[way](np.eye(37, dtype=dtype)), f64(x)
        for y in (nf.matmul(x, one), nf.matmul(np.eye(m, dtype=dtype), WAYS[way](x))):
            kept = f64(y) == plain
            if dtype == BF16 and FLUSHES:
                kept |= (y == 0) & (np.abs(plain) < float(ml_dtypes.finfo(BF16).tiny))
            assert kept.all(), f"{m} rows"


@pytest.mark.parametrize("stored", [np.float32, np.float16, BF16, np.int8], ids=name)
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != np.float64], ids=name)
@by_kind
def test_packed_matrix_in_another_dtype(rng, dtype, stored, kind):
    for m, k, n in ((1, 33, 40), (7, 65, 35), (40, 33, 50)):
        a, b = (spoiled(rng, *s, dtype=d, kind=kind, share=0.02) for s, d in (((m, k), dtype), ((k, n), np.float32)))
        packed = nf.PackedMatrix(b, stored)
        kept = packed.unpack()
        wide = a.astype(np.float32)
        got, want = nf.matmul(a, packed, dtype=np.float32), reference.matmul(wide, kept)
        bound = rounded(tolerance.matmul(wide, kept, np.dtype(np.float32)), want, np.float32)
        check(got, want, bound, f"{m} x {k} x {n}")
        if stored == np.int8:  # a column with what has no largest value is NaN
            broken = ~np.isfinite(b).all(axis=0)
            assert np.isnan(got[:, broken]).all() and np.isfinite(kept[:, ~broken]).all()


@by_dtype
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("m", [3, 40])
def test_epilogue(rng, dtype, activation, m):
    """Special values of bias, residual and what is added to; each alone and met with each other."""
    a, b = normal(rng, m, 30, dtype=dtype), normal(rng, 30, 51, dtype=dtype)
    specials = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, *subnormal(dtype)], dtype)
    bias, residual, start = np.resize(specials, 51), rng.choice(specials, (m, 51)), rng.choice(specials, (m, 51))
    for options in ({}, {"bias": bias}):
        pre = reference.matmul(a, b, **options)
        bound = tolerance.matmul(a, b, dtype, activation=activation, **options)
        want = reference.matmul(a, b, activation=activation, residual=residual, **options)
        e = bound + u(working(dtype)) * np.abs(want)
        y, z = nf.matmul(a, b, activation=activation, residual=residual, save_preactivation=True, **options)
        check(y, want, rounded(e, want, dtype), f"residual, {list(options)}")
        check(z, pre, rounded(tolerance.matmul(a, b, dtype, **options), pre, dtype), "preactivation")
        out = start.copy()
        nf.matmul(a, b, activation=activation, out=out, accumulate=True, **options)
        want = reference.matmul(a, b, activation=activation, **options) + f64(start)
        check(out, want, rounded(bound + u(working(dtype)) * np.abs(want), want, dtype), "added to")


@by_dtype
@by_kind
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_matmul_backward(rng, dtype, kind, activation):
    for where in ("dy", "a", "b", "preactivation"):
        m, k, n = 40, 21, 33
        given = {
            name: (
                spoiled(rng, *s, dtype=dtype, kind=kind, share=0.01) if name == where else normal(rng, *s, dtype=dtype)
            )
            for name, s in (("dy", (m, n)), ("a", (m, k)), ("b", (k, n)), ("preactivation", (m, n)))
        }
        z = given.pop("preactivation")
        options = {"activation": activation, "preactivation": None if activation is None else z}
        bias = np.zeros(n, dtype)
        grads = nf.matmul_backward(**given, bias=bias, **options)
        wants = reference.matmul_backward(**given, bias=bias, **options)
        if activation == "relu":  # hides what it cuts off, a NaN too
            given["dy"] = np.where(z > 0, given["dy"], np.zeros((), dtype))
        bounds = tolerance.matmul_backward(*given.values(), dtype, activation=activation)
        for which, g, w, e in zip(("da", "db", "dbias"), grads, wants, bounds, strict=True):
            check(g, w, rounded(e, w, dtype), f"{which}, {kind} in {where}")


# ---- attention

OPTIONS = {
    "plain": lambda rng, dtype, n: {},
    "causal": lambda rng, dtype, n: {"causal": True},
    "window": lambda rng, dtype, n: {"causal": "top_left", "window": (9, 0)},
    "mask": lambda rng, dtype, n: {"mask": rng.random((n, n)) < 0.7},
    "bias": lambda rng, dtype, n: {"bias": spoiled(rng, n, n, dtype=dtype, kind="subnormal")},
    "softcap": lambda rng, dtype, n: {"softcap": 4.0, "causal": True},
    "alibi": lambda rng, dtype, n: {"alibi_slopes": np.array([0.25, -0.0], dtype), "causal": True},
    "sinks": lambda rng, dtype, n: {"sinks": np.array([-0.0, -np.inf], dtype)},
    "dropout": lambda rng, dtype, n: {"dropout": 0.3, "seed": 3},
    "global tokens": lambda rng, dtype, n: {"window": (4, 4), "global_tokens": rng.random(n) < 0.1},
    "rel": lambda rng, dtype, n: {"rel": relative(rng, dtype, n, n, d=20, causal=True), "causal": True},
}


def judge_attention(arrays, twins, options, dtype, what):
    """`arrays`: q, k, v, dout of ours; `twins`: those of the reference, whose results must be ours."""
    q, k, v, dout = arrays
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    wants = reference.attention(*twins[:3], return_lse=True, **options)
    bounds = tolerance.attention(*twins[:3], dtype, **options)
    for which, g, w, e in zip(("out", "lse"), (out, lse), wants, bounds, strict=True):
        check(g, w, rounded(e, np.nan_to_num(w), g.dtype), f"{which}, {what}")
    grads = nf.attention_backward(dout, q, k, v, out, lse, **options)
    wants = reference.attention_backward(twins[3], *twins[:3], out, lse, **options)
    bounds = tolerance.attention_backward(twins[3], *twins[:3], out, lse, dtype, **options)
    for which, g, w, e in zip(("dq", "dk", "dv"), grads, wants, bounds, strict=True):
        check(g, w, rounded(e, w, dtype), f"{which}, {what}")


@by_dtype
@pytest.mark.parametrize("which", OPTIONS)
@pytest.mark.parametrize("n", [2, 40, 270])
def test_attention_of_zeros_and_subnormal_numbers(rng, dtype, which, n):
    for kind in ("zeros", "subnormal"):
        options = OPTIONS[which](rng, dtype, n)
        arrays = [x.copy() for x in inputs(rng, dtype, lead=(), kv_heads=1, n=n, m=n, d=20)]
        for x in arrays:
            x[...] = np.where(rng.random(x.shape) < 0.2, spoiled(rng, *x.shape, dtype=dtype, kind=kind, share=1.0), x)
            x[0, 0] = rng.choice(KINDS[kind](dtype), x.shape[-1])
        judge_attention(arrays, arrays, options, dtype, kind)


@by_dtype
@pytest.mark.parametrize("which", OPTIONS)
@pytest.mark.parametrize("n", [2, 40, 270])
def test_attention_of_what_is_not_finite(rng, dtype, which, n):
    """NaN, inf or -inf in one array: results are NaN or infinite where the twin's are."""
    options = OPTIONS[which](rng, dtype, n)
    arrays = inputs(rng, dtype, lead=(), kv_heads=1, n=n, m=n, d=20)
    for where, name_of in enumerate(("q", "k", "v", "dout")):
        given, value = [x.copy() for x in arrays], rng.choice([np.nan, np.inf, -np.inf])
        given[where][rng.integers(len(given[where])), rng.integers(n), rng.integers(20)] = value
        q, k, v, dout = given
        out, lse = nf.attention(q, k, v, return_lse=True, **options)
        want = reference.attention(q, k, v, return_lse=True, **options)
        grads = nf.attention_backward(dout, q, k, v, out, lse, **options)
        wants = reference.attention_backward(dout, q, k, v, out, lse, **options)
        for what, g, w in zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *grads), (*want, *wants), strict=True):
            for test in (np.isnan, np.isposinf, np.isneginf):
                wrong = np.argwhere(test(f64(g)) != test(w))
                assert not len(wrong), f"{value} in {name_of}: {what} at {wrong[:3].tolist()}: {test.__name__}"


@by_dtype
@pytest.mark.parametrize("n", [1, 3, 40, 270])
def test_a_key_that_is_infinitely_far_is_as_one_that_is_masked(rng, dtype, n):
    """A score of -inf has probability 0; one of inf makes its row NaN."""
    q, k, v, _ = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=n, m=n + 30, d=20)
    q, k = np.abs(q) + dtype.type(0.1), k.copy()
    clean = k.copy()
    far = rng.choice(n + 30, 7, replace=False)
    k[0, far, 3] = -np.inf
    mask = ~np.isin(np.arange(n + 30), far)
    got = nf.attention(q, k, v, return_lse=True)
    want = reference.attention(q, clean, v, mask=mask, return_lse=True)
    bounds = tolerance.attention(q, clean, v, dtype, mask=mask)
    for what, g, w, e in zip(("out", "lse"), got, want, bounds, strict=True):
        check(g, w, rounded(e, w, g.dtype), what)
    k[0, far[0], 3] = np.inf
    assert all(np.isnan(f64(x)).all() for x in nf.attention(q, k, v, return_lse=True))


@by_dtype
@pytest.mark.parametrize("n", [2, 40])
def test_varlen_keeps_special_values_in_their_sequence(rng, dtype, n):
    lengths = np.array([n, 3, 2 * n])
    starts = np.append(0, np.cumsum(lengths))
    q, k, v = (normal(rng, starts[-1], 2, 20, dtype=dtype) for _ in range(3))
    clean, _ = nf.attention_varlen(q, k, v, starts, starts, causal=True, return_lse=True)
    for x in (q, k, v):
        broken = [y.copy() if y is x else y for y in (q, k, v)]
        next(y for y, z in zip(broken, (q, k, v), strict=True) if y is not z)[n + 1, 1] = np.nan
        out, lse = nf.attention_varlen(*broken, starts, starts, causal=True, return_lse=True)
        others = np.r_[: n + 1, n + 3 : starts[-1]]
        assert same(out[others], clean[others]) and np.isnan(f64(out[n + 1, 1])).all(), "the rows before and the others"
        assert np.isfinite(lse[0]).all()


# ---- optimisers

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
RULES = {
    "sgd": (nf.sgd_update, reference.sgd_update, 3, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "adam": (nf.adam_update, reference.adam_update, 4, {"step": 3, "weight_decay": 0.1}),
    "adamw": (nf.adamw_update, reference.adamw_update, 4, {"step": 3}),
    "adagrad": (nf.adagrad_update, reference.adagrad_update, 3, {"weight_decay": 0.1}),
    "rmsprop": (nf.rmsprop_update, reference.rmsprop_update, 5, {"momentum": 0.9, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("rule", RULES)
def test_updates(dtype, rule):
    """Each special value beside each, in value, gradient and state; the others are as good as before."""
    ours, twin, count, options = RULES[rule]
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, *subnormal(dtype)[::2], 1.0, -2.0], dtype)
    arrays = [x.reshape(-1).copy() for x in np.meshgrid(*[values] * min(count, 3), indexing="ij")]
    arrays += [np.zeros_like(arrays[0]) for _ in range(count - len(arrays))]
    for i in range(2, count) if rule != "sgd" else ():  # sums of squares are not negative
        if (i, rule) not in ((2, "adam"), (2, "adamw")):
            arrays[i] = np.abs(arrays[i])
    given = [[x.copy()] for x in arrays]
    wants = [[x.astype(np.float64)] for x in arrays]
    ours(*given, lr=0.03, grad_scale=0.5, **options)
    twin(*wants, lr=0.03, grad_scale=0.5, **options)
    for which, (got, want) in enumerate(zip(given, wants, strict=True)):
        # Where a sum of squares is tiny a step is up to 1 / eps: errors are relative to it.
        check(got[0], want[0], 64 * u(dtype) * (np.abs(want[0]) + 4) + np.finfo(dtype).tiny, f"array {which}")


@by_dtype
def test_global_norm(dtype):
    plain = np.ones(40, dtype)
    for bad, want in ((np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan)):
        spoilt = plain.copy()
        spoilt[17] = bad
        assert same(nf.global_norm([plain, spoilt]), want) or (np.isnan(want) and np.isnan(nf.global_norm([spoilt])))
    least = np.full(1000, float(ml_dtypes.finfo(dtype).smallest_subnormal), dtype)
    want = reference.global_norm([least])
    assert abs(nf.global_norm([least]) - want) <= 1e-12 * want, "subnormal numbers count"
    assert nf.global_norm([np.full(5, -0.0, dtype)]) == 0.0
