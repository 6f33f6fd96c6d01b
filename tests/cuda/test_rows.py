"""Kernels over rows and elements, run on the host, beside their twins."""

import numpy as np
import pytest
import tolerance
from arrays import DTYPES, bits, heavy, name, normal
from numformer import reference
from tolerance import check, rounded, working

# Rows in registers, of 2 to 8 packs a lane, whole and not, with more rows than a block has; a row for the whole
# block, with packs and without; none at all.
ROWS = [(0, 5), (1, 1), (3, 33), (2, 5, 70), (9, 256), (2, 67, 40), (5, 528), (3, 768), (2, 1024), (2, 1928), (3, 2500)]
ROWS += [(3, 2051), (0, 8)]


def pick(rng, shape, dtype):
    """Weights of rows: of the dtype, or float32."""
    return normal(rng, shape, dtype=rng.choice([dtype, np.dtype(np.float32)]) if dtype.itemsize == 2 else dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", ROWS)
def test_layer_norm(gpu, rng, dtype, shape):
    make = rng.choice([normal, heavy])
    x = (make(rng, *shape).astype(np.float64) + rng.choice([0, 30])).astype(dtype)
    weight = pick(rng, shape[-1], dtype) if rng.random() < 0.8 else None
    bias = normal(rng, shape[-1], dtype=weight.dtype if weight is not None else dtype) if rng.random() < 0.8 else None
    y = np.empty_like(x)
    mean, rstd = np.empty((2, *shape[:-1]), working(dtype))
    gpu.layer_norm(y, mean, rstd, x, weight, bias, 1e-5)
    want, want_mean, want_rstd = reference.layer_norm(x, weight, bias, eps=1e-5, return_stats=True)
    e_y, e_mean, e_rstd = tolerance.layer_norm(x, weight, bias, 1e-5, dtype)
    check(y, want, rounded(e_y, want, dtype), f"y, {shape}")
    check(mean, want_mean, rounded(e_mean, want_mean, mean.dtype), f"mean, {shape}")
    check(rstd, want_rstd, rounded(e_rstd, want_rstd, rstd.dtype), f"rstd, {shape}")

    dy = normal(rng, *shape, dtype=dtype)
    residual = normal(rng, *shape, dtype=dtype) if rng.random() < 0.5 else None
    dx, wide = np.empty_like(x), weight.dtype if weight is not None else dtype
    dweight, dbias = (np.full(shape[-1], np.nan, wide) for _ in range(2))
    gpu.layer_norm_backward(dx, dweight, dbias, dy, x, mean, rstd, weight, residual, scratch=True)
    ones = np.ones(shape[-1])
    want = reference.layer_norm_backward(
        dy, x, mean, rstd, ones if weight is None else weight, bias=True, residual=residual
    )
    bound = tolerance.norm_backward(dy, x, mean, rstd, weight, residual, dtype)
    for which, got, w, b in zip(("dx", "dweight", "dbias"), (dx, dweight, dbias), want, bound, strict=True):
        check(got, w, rounded(b, w, got.dtype), f"{which}, {shape}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", ROWS)
def test_rms_norm(gpu, rng, dtype, shape):
    x, weight = normal(rng, *shape, dtype=dtype), pick(rng, shape[-1], dtype)
    y, rstd = np.empty_like(x), np.empty(shape[:-1], working(dtype))
    gpu.rms_norm(y, rstd, x, weight, 1e-6)
    want, want_rstd = reference.rms_norm(x, weight, eps=1e-6, return_stats=True)
    e_y, e_rstd = tolerance.rms_norm(x, weight, 1e-6, dtype)
    check(y, want, rounded(e_y, want, dtype), f"y, {shape}")
    check(rstd, want_rstd, rounded(e_rstd, want_rstd, rstd.dtype), f"rstd, {shape}")
    dy, dx, dweight = normal(rng, *shape, dtype=dtype), np.empty_like(x), np.empty_like(weight)
    gpu.rms_norm_backward(dx, dweight, dy, x, rstd, weight, None, scratch=True)
    want = reference.rms_norm_backward(dy, x, rstd, weight)
    bound = tolerance.norm_backward(dy, x, None, rstd, weight, None, dtype)
    for which, got, w, b in zip(("dx", "dweight"), (dx, dweight), want, bound, strict=False):
        check(got, w, rounded(b, w, got.dtype), f"{which}, {shape}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("columns", [35, 40, 264])
def test_sums_over_many_rows(gpu, rng, dtype, columns):
    """More rows than one chunk; added to what is there; a run repeats its bits."""
    x = normal(rng, 2, 300, columns, dtype=dtype)
    out = normal(rng, columns, dtype=working(dtype))
    before, again = out.copy(), out.copy()
    gpu.sum_rows(out, x, True, scratch=True)
    gpu.sum_rows(again, x, True, scratch=True)
    want = before + reference.sum_rows(x)
    size = np.abs(x.astype(np.float64)).sum(axis=(0, 1)) + np.abs(before)
    check(out, want, rounded(tolerance.gamma(601, dtype) * size, want, out.dtype), "sum_rows")
    assert bits(out) == bits(again)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_sums_over_few_rows(gpu, rng, dtype, rows):
    """Of one chunk, whose sum is written or added to what is there; `out` of either type."""
    x = normal(rng, rows, 264, dtype=dtype)
    size = np.abs(x.astype(np.float64)).sum(axis=0)
    for kind in (working(dtype), dtype):
        out, added = np.full(264, np.nan, kind), np.zeros(264, kind)
        gpu.sum_rows(out, x, False, scratch=True)
        gpu.sum_rows(added, x, True, scratch=True)
        want = reference.sum_rows(x)
        check(out, want, rounded(tolerance.gamma(rows, dtype) * size, want, kind), f"{rows} rows, {kind}")
        assert bits(out) == bits(added)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_what_is_not_aligned_has_the_same_bits(gpu, rng, dtype):
    """Whole packs or element by element, by the pointers: the sums are the same."""

    def shifted(x):
        memory = np.full(x.size + 1, np.nan, x.dtype)
        memory[1:] = x.reshape(-1)
        return memory[1:].reshape(x.shape)

    x, dy, residual = (normal(rng, 70, 264, dtype=dtype) for _ in range(3))
    weight, bias = normal(rng, 264, dtype=working(dtype)), normal(rng, 264, dtype=working(dtype))
    mean, rstd = np.empty((2, 70), working(dtype))
    found = []
    for at in (lambda x: x, shifted):
        given, y, dx, z = (at(one) for one in (x, np.empty_like(x), np.empty_like(x), np.empty_like(x)))
        gpu.layer_norm(y, mean, rstd, given, weight, bias, 1e-5)
        dweight, dbias, total = np.empty_like(weight), np.empty_like(weight), np.empty_like(weight)
        gpu.layer_norm_backward(dx, dweight, dbias, at(dy), given, mean, rstd, weight, residual, scratch=True)
        gpu.sum_rows(total, given, False, scratch=True)
        gpu.activation_backward(z, at(dy), given, "gelu_tanh")
        wide = np.empty(x.shape, working(dtype))
        gpu.cast(wide, given, 0.5)
        found.append([bits(np.ascontiguousarray(one)) for one in (y, dx, dweight, dbias, total, z, wide)])
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_sums_over_rows_that_are_apart(gpu, rng, dtype):
    for columns in (17, 24):
        x = normal(rng, 70, 64, dtype=dtype)[:, :columns]
        out, want = np.empty(columns, dtype), np.empty(columns, dtype)
        gpu.sum_rows(out, x, False, scratch=True)
        gpu.sum_rows(want, np.ascontiguousarray(x), False, scratch=True)
        assert bits(out) == bits(want)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations(gpu, rng, dtype, activation):
    x = np.concatenate([normal(rng, 300, scale=3.0), [0.0, -0.0, 30.0, -30.0, np.inf, -np.inf, np.nan]]).astype(dtype)
    function = activation.removesuffix("_tanh")
    options = {"approximate": "tanh" if activation.endswith("tanh") else "none"} if function == "gelu" else {}
    y = np.empty_like(x)
    gpu.activation(y, x, activation)
    with np.errstate(all="ignore"):
        want = getattr(reference, function)(x, **options)
        finite = np.isfinite(x.astype(np.float64))
        bound = np.zeros(x.shape)
        bound[finite] = tolerance.activation(x[finite], activation, dtype)
        check(y, want, rounded(bound, np.nan_to_num(want), dtype), activation)
        dy = normal(rng, len(x), dtype=dtype)
        dx = dy.copy()
        gpu.activation_backward(dx, dx, x, activation)
        want = getattr(reference, f"{function}_backward")(dy, x, **options)
        bound[finite] = tolerance.activation_backward(dy[finite], x[finite], activation, dtype)
        check(dx, want, rounded(bound, np.nan_to_num(want), dtype), f"{activation} backward")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", [(3, 1), (5, 40), (0, 4), (2, 3, 2100)])
def test_softmax(gpu, rng, dtype, shape):
    x, dy = heavy(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
    y, dx = np.empty_like(x), np.empty_like(x)
    gpu.softmax(y, x)
    want = reference.softmax(x, -1)
    check(y, want, rounded(tolerance.softmax(x, -1, dtype), want, dtype), f"softmax {shape}")
    gpu.softmax_backward(dx, dy, y)
    want = reference.softmax_backward(dy, y, -1)
    check(dx, want, rounded(tolerance.softmax_backward(dy, y, -1, dtype), want, dtype), f"softmax backward {shape}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_add_and_cast(gpu, rng, dtype):
    a = normal(rng, 4, 5, 33, dtype=dtype)
    for b in (
        normal(rng, 5, 33, dtype=dtype),
        normal(rng, 33, dtype=working(dtype)),
        normal(rng, 4, 5, 33, dtype=dtype),
    ):
        out = np.empty_like(a)
        gpu.add(out, a, b)
        want = reference.add(a, b)
        exact = tolerance.u(working(dtype)) * np.abs(want)  # the sum is rounded before it is stored
        check(out, want, rounded(exact, want, dtype), "add")
    for to in DTYPES:
        out = np.empty(a.shape, to)
        gpu.cast(out, a, 0.75)
        want = 0.75 * a.astype(np.float64)
        check(out, want, rounded(tolerance.u(working(dtype)) * np.abs(want), want, to) * 2, f"cast to {to}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_dropout_has_the_bits_of_the_cpu(gpu, rng, dtype):
    import numformer as nf

    x, residual = normal(rng, 3, 7, 11, dtype=dtype), normal(rng, 3, 7, 11, dtype=dtype)
    out = np.empty_like(x)
    seed, layer, step, sample = rng.integers(0, 2**32 - 4, 4).tolist()
    gpu.dropout(out, x, None, 0.3, seed, layer, step, sample, 3, None)
    assert bits(out) == bits(nf.dropout(x, 0.3, seed=seed, layer=layer, step=step, sample=sample))
    gpu.dropout(out, x, residual, 0.3, seed, layer, step, sample, 3, None)
    assert bits(out) == bits(nf.dropout(x, 0.3, seed=seed, layer=layer, step=step, sample=sample, residual=residual))
    packed = x.reshape(21, 11)
    starts = np.array([0, 4, 4, 21])
    gpu.dropout(out, x, None, 0.3, seed, layer, step, sample, 3, starts * 11)
    want = nf.dropout(packed, 0.3, seed=seed, layer=layer, step=step, sample=sample, cu_seqlens=starts)
    assert bits(out) == bits(want)


def test_bad_arrays(core, gpu):
    x = np.ones((3, 4), np.float32)
    for error, words, arguments in (
        (
            ValueError,
            r"layer_norm: weight must have shape \(4,\), got \(3,\)",
            (x, None, None, x, x[:, 0].copy(), None),
        ),
        (ValueError, "layer_norm: x must be in C order", (x, None, None, x.T, None, None)),
        (
            TypeError,
            "layer_norm: out must have dtype float32, got float64",
            (x.astype(float), None, None, x, None, None),
        ),
        (
            TypeError,
            "layer_norm: x must have a float dtype, got int32",
            (x, None, None, x.astype(np.int32), None, None),
        ),
    ):
        with pytest.raises(error, match=words):
            gpu.layer_norm(*arguments, 1e-5)
    with pytest.raises(TypeError, match=r"softmax: x must be \(pointer, shape, strides, dtype\), got int"):
        core.softmax(3, 3, 0)
    with pytest.raises(ValueError, match=r"activation: name must be 'relu'.*, got 'tanh'"):
        gpu.activation(x, x, "tanh")
