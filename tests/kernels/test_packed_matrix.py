"""Matrices packed beforehand: many rows have the bits of the same product with an array; and what is stored."""

import itertools

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, name, normal, same
from numformer import reference
from processes import answer
from tolerance import check, rounded

BF16 = np.dtype(ml_dtypes.bfloat16)
STORED = [np.dtype(np.float32), np.dtype(np.float16), BF16, np.dtype(np.int8)]
SHAPES = [
    *[(m, 21, n) for m, n in itertools.product((1, 2, 3, 6, 7, 13, 14, 15, 16, 17, 29), (1, 15, 16, 33, 130))],
    *[(m, k, 40) for m, k in itertools.product((1, 4, 18), (1, 2, 511, 512, 513, 1024, 1027))],
    *[
        (m, 260, n) for m, n in itertools.product((1, 2, 3, 4, 8), (64, 144, 300))
    ],  # panels side by side, and what is left
    (8, 700, 500),
    (200, 600, 300),
    (1400, 30, 70),
    (0, 5, 4),
    (3, 0, 4),
    (20, 0, 4),
    (3, 4, 0),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_products_are_those_with_the_array_and_of_many_rows_their_bits(rng, dtype):
    for m, k, n in SHAPES:
        a, b = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype)
        packed = nf.PackedMatrix(b)
        assert packed.shape == (k, n) and packed.stored == np.dtype(dtype).name
        assert same(packed.unpack().astype(dtype), b), f"what is stored of {k} x {n}"
        got, transposed_a = nf.matmul(a, packed), np.asfortranarray(a)
        assert same(nf.matmul(a, nf.PackedMatrix(np.asfortranarray(b))), got), f"from a transpose, {m} x {k} x {n}"
        if m > 16:
            assert same(got, nf.matmul(a, b)), f"{m} x {k} x {n}"
            assert same(nf.matmul(transposed_a, packed), nf.matmul(transposed_a, b)), f"A.T, {m} x {k} x {n}"
        elif m:  # the sums of an array are divided along the depth, those of panels are not
            want = reference.matmul(a, b)
            check(got, want, rounded(tolerance.matmul(a, b, a.dtype), want, a.dtype), f"{m} x {k} x {n}")
            assert same(nf.matmul(transposed_a, packed), got), f"A.T, {m} x {k} x {n}"
            assert same(nf.matmul(a[-1:], packed), got[-1:]), f"the last row of {m} x {k} x {n}"


@pytest.mark.parametrize("stored", STORED, ids=name)
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != np.float64], ids=name)
def test_other_dtypes_are_widened(rng, dtype, stored):
    for m, k, n in [(1, 65, 200), (2, 33, 65), (5, 130, 40), (11, 64, 33), (16, 17, 16), (40, 1027, 70)]:
        a, b = normal(rng, m, k, dtype=dtype), normal(rng, k, n)
        packed = nf.PackedMatrix(b, stored)
        wide, kept = a.astype(np.float32), packed.unpack()
        want = reference.matmul(wide, kept)
        got = nf.matmul(a, packed, dtype=np.float32)
        check(got, want, tolerance.matmul(wide, kept, np.dtype(np.float32)), f"{m} x {k} x {n}")
        assert nf.matmul(a, packed).dtype == dtype


def test_int8_is_the_nearest_multiple_of_its_columns_factor(rng):
    b = normal(rng, 301, 45) * np.exp(3 * rng.standard_normal(45)).astype(np.float32)
    b[:, 7] = 0
    packed = nf.PackedMatrix(b, np.int8)
    kept, factor = packed.unpack(), np.abs(b).max(axis=0) / np.float32(127)
    assert (np.abs(kept - b) <= factor * np.float32(0.5001)).all()
    steps = np.divide(kept, factor, out=np.zeros_like(kept), where=factor > 0)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(steps).max() < 127.001
    assert packed.nbytes < b.nbytes / 2


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_column_that_int8_cannot_hold_gives_nan(rng, bad):
    b = normal(rng, 9, 20)
    b[4, 3] = bad
    y = nf.matmul(normal(rng, 2, 9), nf.PackedMatrix(b, "int8"))
    assert np.isnan(y[:, 3]).all()
    assert np.isfinite(np.delete(y, 3, axis=1)).all()


@pytest.mark.parametrize("stored", STORED, ids=name)
def test_epilogues(rng, stored):
    for m in (3, 30):
        a, b = normal(rng, 2, m, 50), normal(rng, 50, 70)
        packed = nf.PackedMatrix(b, stored)
        kept = packed.unpack()
        options = {"bias": normal(rng, 70), "activation": "gelu", "scale": 0.5}
        residual = normal(rng, 2, m, 70)
        want = reference.matmul(a, kept, **options) + residual
        bound = rounded(tolerance.matmul(a, kept, a.dtype, **options), want, a.dtype)
        check(nf.matmul(a, packed, residual=residual, **options), want, bound, f"{m} rows")
        out = normal(rng, 2, m, 70)
        want = out + reference.matmul(a, kept)
        bound = tolerance.matmul(a, kept, a.dtype)
        nf.matmul(a, packed, out=out, accumulate=True)
        check(out, want, rounded(bound, want, a.dtype), f"added to, {m} rows")
        y, z = nf.matmul(a, packed, activation="relu", save_preactivation=True)
        assert same(y, np.maximum(z, 0)), "preactivation"


def test_batches_and_vectors(rng):
    b = normal(rng, 20, 33)
    packed = nf.PackedMatrix(b)
    for shape in [(20,), (3, 20), (2, 3, 20), (4, 1, 20), (2, 2, 17, 20)]:
        a = normal(rng, *shape)
        assert same(nf.matmul(a, packed), nf.matmul(a, b)), str(shape)
    strided = normal(rng, 3, 40, 2, 20)[:, :, 0]
    assert same(nf.matmul(strided, packed), nf.matmul(strided, b)), "batches that are not one matrix"


@pytest.mark.parametrize("stored", STORED, ids=name)
def test_threads_change_nothing(rng, threads, stored):
    packed = nf.PackedMatrix(normal(rng, 700, 900), stored)
    for m in (1, 5, 16, 60):
        a = normal(rng, m, 700)
        threads(1)
        want = nf.matmul(a, packed)
        for count in (2, 5):
            threads(count)
            assert same(nf.matmul(a, packed), want), f"{m} rows, {count} threads"


def test_memory_is_given_back(rng):
    b = normal(rng, 300, 400)
    before = nf.info()["pool"]["bytes_in_use"]
    packed = nf.PackedMatrix(b, BF16)
    assert nf.info()["pool"]["bytes_in_use"] - before >= packed.nbytes >= b.nbytes / 2
    del packed
    assert nf.info()["pool"]["bytes_in_use"] == before


def test_matrices_side_by_side_in_memory(rng):
    # 1.4 MB each, so they share pieces of memory, and need more than one.
    arrays, x = [normal(rng, 512, 700) for _ in range(40)], normal(rng, 3, 512)
    before = nf.info()["pool"]["bytes_in_use"]
    packed = [nf.PackedMatrix(b) for b in arrays]
    want = [nf.matmul(x, matrix) for matrix in packed]
    assert nf.info()["pool"]["bytes_in_use"] - before >= sum(matrix.nbytes for matrix in packed)
    for i in range(0, 40, 2):
        packed[i] = None
    packed[20:40:2] = [nf.PackedMatrix(b) for b in arrays[20:40:2]]
    for i in (*range(1, 40, 2), *range(20, 40, 2)):
        assert same(nf.matmul(x, packed[i]), want[i]), f"matrix {i}"
    del packed
    assert nf.info()["pool"]["bytes_in_use"] == before


def test_bad_calls(rng):
    b = normal(rng, 4, 5)
    with pytest.raises(TypeError, match="PackedMatrix: b must be"):
        nf.PackedMatrix([[1.0]])
    with pytest.raises(TypeError, match="PackedMatrix: b must"):
        nf.PackedMatrix(np.ones((2, 2), np.int64))
    with pytest.raises(ValueError, match=r"PackedMatrix: b must have 2 axes, got shape \(4,\)"):
        nf.PackedMatrix(b[:, 0])
    with pytest.raises(TypeError, match="PackedMatrix: dtype must be float32"):
        nf.PackedMatrix(b, np.int64)
    for given, stored in [(b, np.float64), (b.astype(np.float64), np.float32), (b.astype(np.float64), np.int8)]:
        with pytest.raises(TypeError, match="PackedMatrix: dtype must be float64 for a float64 b"):
            nf.PackedMatrix(given, stored)
    packed = nf.PackedMatrix(b)
    with pytest.raises(TypeError, match="matmul: float64 is not mixed"):
        nf.matmul(np.ones((2, 4)), packed)
    with pytest.raises(ValueError, match="matmul: b must have 3 rows"):
        nf.matmul(np.ones((2, 3), np.float32), packed)
    with pytest.raises(TypeError, match=r"matmul_backward: b must be a .*, got PackedMatrix"):
        nf.matmul_backward(normal(rng, 2, 5), normal(rng, 2, 4), packed)


def test_bfloat16_by_name_in_a_process_that_has_not_used_it():
    """NumPy learns the name from ml_dtypes, which importing numformer does not import."""
    code = "import sys, numpy as np, numformer as nf; before = 'ml_dtypes' in sys.modules; "
    code += "print(before, nf.PackedMatrix(np.ones((2, 3), np.float32), 'bfloat16').stored)"
    assert answer(code) == "False bfloat16"
