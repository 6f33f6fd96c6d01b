"""What a call is said to do is what it does: the kernels tell it themselves, and a profile of the real call agrees."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
from numformer import _core
from numformer.profiling import ceilings
from numformer.profiling.ceilings import Ceilings

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
FLAT = lambda seed, *shape, dtype=np.float32: np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = nf.get_num_threads()
    nf.set_num_threads(request.param)
    yield request.param
    nf.set_num_threads(before)


def _explained_and_done(operation: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    """The plan of a call's last kernel, and its record, after the pool's peak was found to be the plan's."""
    plans = nf.explain(operation, *args, **options)
    kept = operation(*args, **options)  # results may lie in the pool: it holds them before and after
    nf.empty_pool()  # a block that is kept may be larger than what is asked for
    _core.pool_reset_peak()
    before = _core.pool_statistics()["peak_bytes"]
    with nf.profile() as p:
        operation(*args, **options)
    taken = _core.pool_statistics()["peak_bytes"] - before
    results = sum(a.nbytes * 1.125 + 128 for a in (kept if isinstance(kept, tuple) else (kept,)) if a is not None)
    records = p.records()
    assert [plan.operation for plan in plans] == records["name"].tolist()
    assert [plan.flops for plan in plans] == records["flops"].tolist()
    assert [plan.bytes for plan in plans] == records["bytes"].tolist()
    assert [plan.shape for plan in plans] == [tuple(shape) for shape in records["shape"]]
    assert [plan.dtype for plan in plans] == records["dtype"].tolist()
    if nf.get_num_threads() == 1:
        scratch = max(plan.scratch_bytes for plan in plans)
        assert taken >= scratch
        # The pool's blocks are up to an eighth larger; the lists of a kernel's parts are not counted.
        assert taken <= scratch * 1.125 + results + 8192
    return plans[-1], records[-1]


PRODUCTS = [
    ((), 32, 32, 32),
    ((), 1, 700, 900),
    ((), 7, 700, 901),
    ((), 16, 700, 2048),
    ((), 17, 700, 901),
    ((), 300, 1200, 65),
    ((), 1500, 600, 3000),
    ((), 5000, 8, 24),
    ((3,), 65, 70, 80),
    ((8,), 65, 70, 80),
    ((2, 2), 3, 300, 200),
    ((), 20, 0, 30),
    ((0,), 20, 5, 30),
]


@pytest.mark.parametrize(("batch", "m", "k", "n"), PRODUCTS)
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
def test_matmul(threads, batch, m, k, n, turned):
    dtype = DTYPES[(m + k + n + len(turned)) % len(DTYPES)]
    a = FLAT(0, *batch, k, m, dtype=dtype).swapaxes(-1, -2) if "a" in turned else FLAT(0, *batch, m, k, dtype=dtype)
    b = FLAT(1, *batch, n, k, dtype=dtype).swapaxes(-1, -2) if "b" in turned else FLAT(1, *batch, k, n, dtype=dtype)
    out = np.zeros((*batch, m, n), dtype)
    for options in ({}, {"bias": FLAT(2, n, dtype=dtype), "activation": "gelu"}):
        plan, record = _explained_and_done(nf.matmul, a, b, out=out, **options)
        assert plan.threads == record["threads"]
        assert plan.isa == nf.info()["isa"]
    few = m <= 16 and k and 0 not in batch
    assert ("few rows" in plan.path) == bool(few)
    if few:
        assert ("transposed" in plan.path) == (b.strides[-1] != b.itemsize and n > 1)


def test_nothing_is_computed_or_written():
    a = np.full((64, 64), np.nan, np.float32)
    out = np.full((64, 64), 3.0, np.float32)
    for options in ({}, {"accumulate": True}):
        nf.explain(nf.matmul, a, a, out=out, **options)
    nf.explain(nf.matmul, a, a, out=out.T)  # written by way of a copy
    q = np.full((2, 64, 64), 1.0, np.float32)
    nf.explain(nf.attention, q, q, q, out=np.broadcast_to(out, (1, 64, 64)).repeat(2, 0))
    dq = q.copy()
    y, lse = nf.attention(q, q, q, return_lse=True)
    nf.explain(nf.attention_backward, y, q, q, q, y, lse, into=(dq, None, None))
    assert (out == 3.0).all() and (dq == 1.0).all()
    assert (nf.matmul(q, q) == 64).all(), "and afterwards calls are done again"


SHAPES = [
    (4, 4, 4, 300, 300, 64, 64),  # batch, heads, kv heads, queries, keys, dim, value dim
    (1, 3, 3, 700, 700, 40, 24),
    (1, 1, 1, 1500, 1500, 32, 32),
    (2, 6, 2, 130, 800, 33, 33),
    (1, 4, 2, 1, 5000, 64, 64),
    (2, 2, 1, 4, 600, 16, 16),
    (2, 2, 2, 5, 600, 16, 16),
    (1, 2, 2, 12, 12, 8, 8),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(threads, shape, causal):
    batch, heads, kv_heads, queries, keys, dim, value_dim = shape
    dtype = DTYPES[(queries + keys + causal) % len(DTYPES)]
    q = FLAT(0, batch, heads, queries, dim, dtype=dtype)
    k, v = (FLAT(s, batch, kv_heads, keys, d, dtype=dtype) for s, d in ((1, dim), (2, value_dim)))
    plan, record = _explained_and_done(nf.attention, q, k, v, causal=causal)
    assert plan.threads == record["threads"]
    assert ("few queries" in plan.path) == (queries <= 4)
    out, lse = nf.attention(q, k, v, causal=causal, return_lse=True)
    plan, record = _explained_and_done(nf.attention_backward, out, q, k, v, out, lse, causal=causal)
    assert plan.threads == record["threads"]


def _pairs_of_tiles(queries: int, keys: int, rows: int, columns: int, allowed: np.ndarray) -> int:
    """Scores of the strips of rows, each from the panel of the first key that it may see to the last key."""
    total = 0
    for first in range(0, queries, rows):
        strip = allowed[first : first + rows]
        seen = np.flatnonzero(strip.any(0))
        if len(seen):
            total += len(strip) * (seen[-1] + 1 - seen[0] // columns * columns)
    return total


@pytest.mark.parametrize(("queries", "keys"), [(100, 100), (1100, 1100), (37, 900), (650, 640)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, (40, 40), (300, 0)])
def test_pairs_that_are_visited(queries, keys, causal, window):
    """Counted from the pattern and the size of a tile: blocks that the mask empties are left out."""
    q, k = np.empty((2, 3, queries, 8), np.float32), np.empty((2, 3, keys, 8), np.float32)
    (plan,) = nf.explain(nf.attention, q, k, k, causal=causal, window=window)
    i, j = np.ogrid[:queries, :keys]
    distance = j - (i + keys - queries)
    allowed = np.ones((queries, keys), bool)
    if causal:
        allowed &= distance <= 0
    if window:
        allowed &= (distance >= -window[0]) & (distance <= window[1])
    rows, columns = plan.facts["tile_rows"], plan.facts["tile_columns"]
    assert plan.pairs == 6 * _pairs_of_tiles(queries, keys, rows, columns, allowed)
    dout, lse = np.empty((2, 3, queries, 8), np.float32), np.empty((2, 3, queries), np.float32)
    (back,) = nf.explain(nf.attention_backward, dout, q, k, k, dout, lse, causal=causal, window=window)
    passes = 2 if "for dk and dv, then" in back.path else 1
    assert back.pairs == passes * 6 * _pairs_of_tiles(queries, keys, rows, columns, allowed)


def test_masks_and_packed_sequences():
    q = np.empty((2, 4, 256, 16), np.float32)
    padded = np.ones((2, 1, 1, 256), bool)
    padded[1, ..., 64:] = False
    (plan,) = nf.explain(nf.attention, q, q, q, mask=padded)
    assert plan.pairs == 4 * 256 * (256 + 64), "padding is left out"
    starts = np.array([0, 3, 100, 356])
    packed = np.empty((356, 4, 16), np.float32)
    (plan,) = nf.explain(nf.attention_varlen, packed, packed, packed, starts, starts)
    assert plan.operation == "attention_varlen" and plan.facts["heads_with_few_queries"] == 4
    assert plan.pairs == 4 * (3 * 3 + 97 * 97 + 256 * 256)


def test_a_backward_takes_several_kernels():
    a, b, dy = np.empty((600, 32), np.float32), np.empty((32, 48), np.float32), np.empty((600, 48), np.float32)
    plans = nf.explain(nf.matmul_backward, dy, a, b, bias=np.empty(48, np.float32))
    assert [plan.operation for plan in plans] == ["sum_rows", "matmul", "matmul"]
    assert str(plans).count("\n\n") == 2 and "transpose" in str(plans)


def test_the_least_time(monkeypatch):
    top = Ceilings(
        "p", nf.info()["isa"], 1, 100.0, 50.0, 200.0, {"L2": 50.0, "DRAM": 10.0}, {"L2": 1 << 20}, 1.0, "2026-01-01"
    )
    monkeypatch.setattr(ceilings, "load", lambda threads: None)
    a = np.empty((2000, 2000), np.float32)
    (plan,) = nf.explain(nf.matmul, a, a)
    assert plan.seconds is None and plan.bound is None
    assert "numformer bench --ceilings" in str(plan)
    monkeypatch.setattr(ceilings, "load", lambda threads: top)
    (plan,) = nf.explain(nf.matmul, a, a)
    assert plan.seconds == pytest.approx(16e9 / 100e9) and plan.bound == "arithmetic"
    (plan,) = nf.explain(nf.matmul, a[:1], a)
    assert plan.seconds == pytest.approx(4 * (2000 * 2000 + 2 * 2000) / 10e9) and plan.bound == "memory"
    assert "bound by memory" in str(plan) and "10 GB/s (DRAM)" in str(plan)


def test_mistakes():
    x = np.empty((4, 4), np.float32)
    for other in (nf.softmax, np.matmul, "matmul"):
        with pytest.raises(TypeError, match="explain: operation must be one of numformer's matmul, "):
            nf.explain(other, x, x)
    with pytest.raises(ValueError, match="matmul: b must have 4 rows"):
        nf.explain(nf.matmul, x, x[:3])
    assert np.isfinite(nf.matmul(np.ones_like(x), np.ones_like(x))).all(), "a mistake ends the explaining"


def test_beside_a_profile():
    """A profile that is on does not see what was not done, and goes on."""
    x = np.ones((8, 8), np.float32)
    with nf.profile() as p:
        nf.matmul(x, x)
        nf.explain(nf.matmul, x, x)
        nf.matmul(x, x)
    assert p.records()["name"].tolist() == ["matmul", "matmul"]
    assert len(nf.explain(nf.matmul, x, x)) == 1
