"""Attention against its twin: lengths, heads, masks, what must not be read, gradients."""

import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, heavy, layouts, name, normal, same
from attention_judge import inputs, judge
from numformer import reference
from tolerance import check, rounded


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("causal", [False, True, "top_left"])
def test_lengths(rng, dtype, causal):
    sizes = [0, 1, 2, 7, 13, 14, 15, 16, 17, 31, 32, 33, 65]
    for n in sizes:
        for m in {*rng.choice(sizes, 4).tolist(), n}:
            q, k, v, dout = inputs(rng, dtype, n=n, m=m, d=int(rng.choice([8, 16, 20])))
            judge(q, k, v, f"N={n}, M={m}, causal={causal}", dout, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("n", "m"), [(111, 511), (112, 512), (113, 513), (225, 257), (300, 1100), (520, 40)])
def test_around_blocks(rng, dtype, n, m):
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=n, m=m, d=24)
    judge(q, k, v, f"N={n}, M={m}", dout)
    judge(q, k, v, f"N={n}, M={m}, causal", dout, causal=True)
    judge(q, k, v, f"N={n}, M={m}, window", dout, window=(100, 50))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    ("d", "dv"), [(1, 1), (7, 7), (64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (257, 257), (64, 33), (5, 130)]
)
def test_head_dimensions(rng, dtype, d, dv):
    q, k, v, dout = inputs(rng, dtype, n=19, m=45, d=d, dv=dv)
    judge(q, k, v, f"D={d}, Dv={dv}", dout, causal=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "lead"), [(6, 2, (2,)), (4, 1, ()), (3, 3, (2, 2)), (2, 2, (0,)), (0, 1, (1,))]
)
def test_heads_share_keys(rng, dtype, heads, kv_heads, lead):
    q, k, v, dout = inputs(rng, dtype, lead=lead, heads=heads, kv_heads=kv_heads, n=21, m=37)
    judge(q, k, v, f"{heads} heads over {kv_heads}", dout, causal=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_two_axes_are_one_head(rng, dtype):
    q, k, v = normal(rng, 11, 8, dtype=dtype), normal(rng, 15, 8, dtype=dtype), normal(rng, 15, 6, dtype=dtype)
    judge(q, k, v, "two axes", normal(rng, 11, 6, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 18, 40), (1, 3, 18, 40), (2, 1, 18, 40), (18, 40), (1, 40), (18, 1), (2, 1, 1, 40), (1, 1), (3, 1, 1)],
)
def test_mask_shapes(rng, dtype, shape):
    q, k, v, dout = inputs(rng, dtype, heads=3, kv_heads=3, n=18, m=40)
    mask = rng.random(shape) < 0.6
    judge(q, k, v, f"mask {shape}", dout, mask=mask)
    judge(q, k, v, f"mask {shape}, causal", dout, mask=mask, causal=True)
    judge(q, k, v, "broadcast mask", dout, mask=np.broadcast_to(mask, (2, 3, 18, 40)))
    judge(q, k, v, "strided mask", dout, mask=np.repeat(mask, 2, axis=-1)[..., ::2])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("causal", [False, True, "top_left"])
@pytest.mark.parametrize("window", [(0, 0), (3, 0), (None, 2), (5, None), (40, 40), (0, 3)])
def test_windows(rng, dtype, causal, window):
    for n, m in ((20, 50), (50, 20), (33, 33)):
        q, k, v, dout = inputs(rng, dtype, lead=(), n=n, m=m)
        judge(q, k, v, f"N={n}, M={m}, window={window}", dout, window=window, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_first_keys_masked_later_ones_not(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, lead=(), n=40, m=700, d=8)
    mask = np.zeros((40, 700), bool)
    mask[:20, 600:] = True
    mask[20:30, 33:35] = True  # and the last rows see nothing
    judge(q, k, v, "late keys", dout, mask=mask)
    out, lse = nf.attention(q, k, v, mask=mask, return_lse=True)
    assert not out[:, 30:].any() and np.isneginf(lse[:, 30:]).all()
    dq, _, _ = nf.attention_backward(dout, q, k, v, out, lse, mask=mask)
    assert not dq[:, 30:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_keys_reach_nothing(rng, dtype, bad):
    for n, m, d in ((5, 40, 16), (40, 90, 24), (1, 70, 64)):
        q, k, v, dout = inputs(rng, dtype, n=n, m=m, d=d)
        mask = rng.random((2, 2, n, m)) < 0.7
        hidden = rng.choice(m, 5, replace=False)
        mask[..., hidden] = False
        for which, options in (
            ("mask", {"mask": mask}),
            ("causal", {"causal": "top_left"}),
            ("window", {"window": (3, 3)}),
        ):
            if which == "mask":
                keys = hidden
            else:  # keys that no query sees
                keys = np.arange(n, m) if which == "causal" else np.arange(0, max(m - n - 3, 0))
            k2, v2 = k.copy(), v.copy()
            k2[..., keys, :] = bad
            v2[..., keys, :] = bad
            want = reference.attention(q, k, v, return_lse=True, **options)
            got = nf.attention(q, k2, v2, return_lse=True, **options)
            bounds = tolerance.attention(q, k, v, dtype, **options)
            for what, g, r, e in zip(("out", "lse"), got, want, bounds, strict=True):
                check(g, r, rounded(e, np.nan_to_num(r), g.dtype), f"{what}, {which}, N={n}, M={m}")
            want = reference.attention_backward(dout, q, k, v, *got, **options)
            bounds = tolerance.attention_backward(dout, q, k, v, *got, dtype, **options)
            grads = nf.attention_backward(dout, q, k2, v2, *got, **options)
            for what, g, r, e in zip(("dq", "dk", "dv"), grads, want, bounds, strict=True):
                check(g, r, rounded(e, r, dtype), f"{what}, {which}, N={n}, M={m}")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_key_masked_for_some_rows_only(rng, dtype):
    """A NaN key reaches exactly the rows that see it, also within one tile and one causal strip."""
    for options in ({"causal": True}, {"mask": np.tri(40, 40, dtype=bool)}):
        q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=40, m=40)
        k[0, 21] = np.nan
        v[0, 30] = np.nan
        out, lse = nf.attention(q, k, v, return_lse=True, **options)
        assert np.isfinite(out[0, :21]).all() and np.isnan(out[0, 21:]).all()
        assert np.isfinite(lse[0, :21]).all() and np.isnan(lse[0, 21:]).all()
        dq, dk, dv = nf.attention_backward(dout, q, k, v, out, lse, **options)
        assert np.isfinite(dq[0, :21]).all() and np.isnan(dq[0, 21:]).all()
        # keys 22 and later are seen only by rows that are NaN already
        assert np.isnan(dk[0]).all(axis=-1).sum() == 40 and np.isnan(dv[0]).all(axis=-1).sum() == 40


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_query_reaches_its_row(rng, dtype):
    for n in (1, 3, 40):
        q, k, v, _ = inputs(rng, dtype, lead=(), n=n, m=33)
        clean = nf.attention(q, k, v)
        q[0, n // 2, 3] = np.nan
        out, lse = nf.attention(q, k, v, return_lse=True)
        assert np.isnan(out[0, n // 2]).all() and np.isnan(lse[0, n // 2])
        keep = np.ones(out.shape[:2], bool)
        keep[0, n // 2] = False
        assert same(out[keep], clean[keep])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_layouts(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, n=17, m=29)
    out, lse = nf.attention(q, k, v, causal=True, return_lse=True)
    grads = nf.attention_backward(dout, q, k, v, out, lse, causal=True)
    for (how, q2), (_, k2), (_, v2), (_, d2), (_, o2) in zip(*map(layouts, (q, k, v, dout, out)), strict=True):
        assert same(nf.attention(q2, k2, v2, causal=True), out), how
        assert same(nf.attention_backward(d2, q2, k2, v2, o2, lse, causal=True), grads), how
    packed = normal(rng, 2, 17, 3, 2, 16, dtype=dtype)  # as a layer makes them: (batch, position, which, head, dim)
    q, k, v = (packed[:, :, i].swapaxes(1, 2) for i in range(3))
    judge(q, k, v, "views of one array", causal=True)
    k, v = np.broadcast_to(k[:1, :1], (2, 2, 17, 16)), np.broadcast_to(v[:, :, :1], (2, 2, 17, 16))
    judge(q, k, v, "zero strides", normal(rng, 2, 2, 17, 16, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_writes_where_told(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=23, m=23)
    out, lse = nf.attention(q, k, v, return_lse=True)
    grads = nf.attention_backward(dout, q, k, v, out, lse)
    there = np.full((2, 23, 4, 16), 7, dtype)
    assert nf.attention(q, k, v, out=there.swapaxes(1, 2)).base is there
    assert same(there.swapaxes(1, 2), out)
    packed = np.full((2, 23, 8, 16), 7, dtype)
    views = packed[:, :, :4].swapaxes(1, 2), packed[:, :, 4:6].swapaxes(1, 2), packed[:, :, 6:].swapaxes(1, 2)
    nf.attention_backward(dout, q, k, v, out, lse, into=views)
    assert same(views, grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_batch_changes_nothing(rng, dtype):
    for n, m in ((1, 300), (70, 70)):
        q, k, v, dout = inputs(rng, dtype, lead=(5,), heads=4, kv_heads=2, n=n, m=m, d=32)
        out, lse = nf.attention(q, k, v, causal=True, return_lse=True)
        grads = nf.attention_backward(dout, q, k, v, out, lse, causal=True)
        i = int(rng.integers(5))
        alone = nf.attention(q[i], k[i], v[i], causal=True, return_lse=True)
        assert same(alone, (out[i], lse[i])), (n, m)
        assert same(
            nf.attention_backward(dout[i], q[i], k[i], v[i], *alone, causal=True), tuple(g[i] for g in grads)
        ), (n, m)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_heavy_tails_and_scale(rng, dtype):
    def make(rng, *shape, dtype):
        return heavy(rng, *shape, dtype=dtype, limit=20.0)

    q, k, v, dout = inputs(rng, dtype, n=30, m=60, make=make)
    judge(q, k, v, "heavy tails", dout)
    judge(q, k, v, "scale 2", dout, scale=2.0)
    judge(q, k, v, "scale 0", dout, scale=0.0)
    judge(q, k, v, "negative scale", dout, scale=-0.5, causal=True)


def test_large_scores_do_not_overflow():
    q, k = np.full((1, 3, 4), 1e15, np.float32), np.full((1, 5, 4), 1e15, np.float32)
    out, lse = nf.attention(q, k, np.ones((1, 5, 2), np.float32), return_lse=True)
    assert np.allclose(out, 1, rtol=1e-6) and np.isfinite(lse).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_padding_masks(rng, dtype, threads):
    """One row for all queries: what is masked at its ends is left out, a gap within is masked, all of it is nothing."""
    for n, m in ((9, 40), (60, 300), (5, 600)):
        q, k, v, dout = inputs(rng, dtype, lead=(4,), heads=2, kv_heads=1, n=n, m=m)
        mask = np.zeros((4, 1, 1, m), bool)
        mask[0, ..., : m // 3], mask[1, ..., m // 2 :], mask[2, ..., 3 : m - 5] = True, True, True
        mask[2, ..., m // 2] = False
        judge(q, k, v, f"N={n}, M={m}", dout, mask=mask)
        judge(q, k, v, f"N={n}, M={m}, causal", dout, mask=mask, causal=True)
        out = nf.attention(q, k, v, mask=mask)
        short = nf.attention(q[0], k[0, :, : m // 3], v[0, :, : m // 3])
        assert same(out[0], short) and not out[3].any()
        whole = nf.attention(q, k, v, mask=np.ascontiguousarray(np.broadcast_to(mask, (4, 2, n, m))))
        np.testing.assert_allclose(whole.astype(float), out.astype(float), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_masks_with_empty_and_whole_blocks(rng, dtype):
    """Tiles that a mask empties are skipped, whole ones are not masked: documents, holes, stripes, rows of nothing."""
    n, m = 130, 1100
    i, j = np.arange(n)[:, None], np.arange(m)
    documents = (i // 50) == (j // 420)
    blocks = np.kron(rng.random((10, 36)) < 0.3, np.ones((14, 32), bool))[:n, :m]
    sparse = np.zeros((n, m), bool)
    sparse[rng.integers(0, n, 40), rng.integers(0, m, 40)] = True
    late = np.broadcast_to(j >= 1056, (n, m)) & (i % 60 < 30)
    stripes = np.broadcast_to(j // 64 % 2 == 0, (1, m))
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=2, kv_heads=1, n=n, m=m, d=16)
    for what, mask in {
        "documents": documents,
        "blocks": blocks,
        "by head": np.stack([blocks, ~blocks]),
        "sparse": sparse,
        "late": late,
        "stripes": stripes,
        "all": np.ones((n, m), bool),
        "nothing": np.zeros((n, m), bool),
    }.items():
        judge(q, k, v, what, dout, mask=mask)
        judge(q, k, v, f"{what}, causal, sinks", dout, mask=mask, causal=True, sinks=normal(rng, 2, dtype=dtype))
        judge(q, k, v, f"{what}, strided", dout, mask=np.repeat(mask, 2, axis=-1)[..., ::2], window=(600, 500))
        judge(q[:, :3], k, v, f"{what}, few queries", dout[:, :3], mask=mask[..., :3, :])
    square = blocks[:, :n]
    tokens = rng.random(n) < 0.05
    k, v = k[:, :n], v[:, :n]
    judge(q, k, v, "global tokens", dout, mask=square, global_tokens=tokens, window=(9, 9))
    judge(q, k, v, "global keys", dout, mask=square, global_tokens=tokens, global_rows=False, window=(9, 9))


NOT_FINITE = {
    "causal": {"causal": True},
    "top_left": {"causal": "top_left"},
    "window": {"window": (20, 10)},
    "causal window": {"causal": True, "window": (50, None)},
    "mask": {"mask": "random"},
    "blocks": {"mask": "blocks"},
    "padding": {"mask": "padding"},
    "bias": {"bias": "masking"},
    "global": {"global_tokens": "some", "window": (9, 9)},
    "softcap": {"causal": True, "softcap": 3.0},
    "dropout": {"causal": True, "dropout": 0.3, "seed": 4},
    "sinks": {"causal": True, "sinks": "some"},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("which", NOT_FINITE)
@pytest.mark.parametrize("n", [3, 40, 300])
def test_nan_reaches_exactly_what_sees_it(rng, dtype, which, n):
    """One key and one value that are not finite: every result is NaN where the twin's is, and elsewhere as if both were
    finite. 300 rows have blocks with neither, and diagonal tiles with either."""
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=2, kv_heads=1, n=n, m=n, d=20)
    options = dict(NOT_FINITE[which])
    make = {
        "random": lambda: rng.random((n, n)) < 0.5,
        "blocks": lambda: np.kron(rng.random((22, 10)) < 0.4, np.ones((14, 32), bool))[:n, :n],
        "padding": lambda: np.broadcast_to(np.arange(n) < n // 2, (1, n)),
        "masking": lambda: np.where(rng.random((n, n)) < 0.5, -np.inf, 0.0).astype(dtype),
        "some": lambda: rng.random(n) < 0.1 if "global_tokens" in options else normal(rng, 2, dtype=dtype),
    }
    options = {name: make[x]() if isinstance(x, str) and x in make else x for name, x in options.items()}
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[0, rng.integers(n), 3] = np.nan
    bad_v[0, rng.integers(n), 5] = np.inf
    clean = reference.attention(q, k, v, return_lse=True, **options)
    bounds = tolerance.attention(q, k, v, dtype, **options)
    out, lse = nf.attention(q, bad_k, bad_v, return_lse=True, **options)

    def compare(got, spoiled, clean, bound, what):
        finite = np.isfinite(np.asarray(got, np.float64))
        assert (finite == np.isfinite(spoiled)).all(), f"{what}: {np.argwhere(finite != np.isfinite(spoiled))[:3]}"
        got, clean = np.where(finite, got, 0).astype(got.dtype), np.where(finite, clean, 0)
        check(got, clean, rounded(bound, clean, got.dtype), what)

    spoiled = reference.attention(q, bad_k, bad_v, return_lse=True, **options)
    empty = np.isneginf(clean[1])  # rows that see nothing
    assert (np.isneginf(lse) == empty).all()
    compare(out, spoiled[0], clean[0], bounds[0], "out")
    of_lse = (np.where(empty, np.zeros((), x.dtype), x) for x in (lse, spoiled[1], clean[1]))
    compare(*of_lse, bounds[1], "lse")
    got = nf.attention_backward(dout, q, bad_k, bad_v, out, lse, **options)
    spoiled = reference.attention_backward(dout, q, bad_k, bad_v, out, lse, **options)
    # From the same out and lse, where these are finite: a 16-bit out rounded to the other side moves a gradient.
    clean = nf.attention(q, k, v, return_lse=True, **options)
    start = [np.where(np.isfinite(x.astype(np.float64)), x, c) for x, c in zip((out, lse), clean, strict=True)]
    bounds = tolerance.attention_backward(dout, q, k, v, *start, dtype, **options)
    clean = reference.attention_backward(dout, q, k, v, *start, **options)
    for what, g, s, c, bound in zip(("dq", "dk", "dv"), got, spoiled, clean, bounds, strict=True):
        compare(g, s, c, bound, what)
