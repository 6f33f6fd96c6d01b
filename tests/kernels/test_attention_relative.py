"""Transformer-XL's relative positions: against the twin, by explicit matrices, and what they must not read."""

import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, name, normal, same
from attention_judge import inputs, judge, relative
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numformer import reference


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("causal", [False, True, "top_left"])
def test_lengths(rng, dtype, causal):
    sizes = [1, 2, 4, 5, 7, 13, 14, 15, 31, 32, 33, 65]
    for n in sizes:
        for m in {*rng.choice(sizes, 3).tolist(), n}:
            d = int(rng.choice([1, 8, 16, 20]))
            q, k, v, dout = inputs(rng, dtype, n=n, m=m, d=d)
            rel = relative(rng, dtype, n, m, d=d, causal=causal)
            judge(q, k, v, f"N={n}, M={m}, causal={causal}", dout, causal=causal, rel=rel, grads=("rel",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("n", "m"), [(111, 511), (112, 512), (113, 513), (225, 257), (130, 1100), (520, 40)])
def test_around_blocks(rng, dtype, n, m):
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=n, m=m, d=24)
    for options in ({}, {"causal": True}, {"window": (100, 50)}, {"window": (100, 50), "causal": "top_left"}):
        rel = relative(rng, dtype, n, m, heads=1, d=24, **options, spare=(3, 5))
        judge(q, k, v, f"N={n}, M={m}, {options}", dout, rel=rel, grads=("rel",), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 600), (2, 513), (3, 1), (4, 1030)])
def test_few_queries(rng, dtype, n, m):
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=n, m=m, d=20)
    for options in ({}, {"causal": True}, {"window": (70, 1)}, {"softcap": 3.0}):
        pattern = {which: options[which] for which in ("causal", "window") if which in options}
        rel = relative(rng, dtype, n, m, heads=4, d=20, **pattern)
        judge(q, k, v, f"N={n}, M={m}, {options}", dout, rel=rel, grads=("rel",), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "lead"), [(6, 2, (2,)), (4, 1, ()), (3, 3, (2, 2)), (2, 2, (0,)), (0, 1, (1,))]
)
def test_heads_share_keys(rng, dtype, heads, kv_heads, lead):
    q, k, v, dout = inputs(rng, dtype, lead=lead, heads=heads, kv_heads=kv_heads, n=21, m=37)
    judge(q, k, v, f"{heads} on {kv_heads}", dout, rel=relative(rng, dtype, 21, 37, heads=heads), grads=("rel",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_two_axes_are_one_head(rng, dtype):
    q, k, v = normal(rng, 11, 8, dtype=dtype), normal(rng, 15, 8, dtype=dtype), normal(rng, 15, 6, dtype=dtype)
    rel = relative(rng, dtype, 11, 15, heads=1, d=8)
    judge(q, k, v, "two axes", normal(rng, 11, 6, dtype=dtype), rel=rel, grads=("rel",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nothing_to_attend_to(rng, dtype):
    for n, m, options in (
        (5, 0, {}),
        (0, 5, {}),
        (6, 9, {"window": (0, 0), "causal": "top_left", "mask": np.zeros((6, 9), bool)}),
    ):
        q, k, v, dout = inputs(rng, dtype, n=n, m=m)
        rel = relative(rng, dtype, n, m, spare=(1, 1))
        judge(q, k, v, f"N={n}, M={m}", dout, rel=rel, grads=("rel",), **options)
    q, k, v, dout = inputs(rng, dtype, n=40, m=10)  # causal: the first 30 queries see nothing
    judge(q, k, v, "late", dout, causal=True, rel=relative(rng, dtype, 40, 10, causal=True), grads=("rel",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_layouts(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, n=30, m=45)
    r, u, w, origin = relative(rng, dtype, 30, 45)
    out, lse = nf.attention(q, k, v, rel=(r, u, w, origin), return_lse=True)
    want = nf.attention_backward(dout, q, k, v, out, lse, rel=(r, u, w, origin), grads=("rel",))
    by_row = np.ascontiguousarray(r.swapaxes(0, 1)).swapaxes(0, 1)
    one = np.ascontiguousarray(u.T).T
    backwards = np.ascontiguousarray(r[:, ::-1])[:, ::-1]
    for how, rel in {
        "heads beside": (by_row, one, w, origin),
        "strided": (np.repeat(r, 2, axis=-1)[..., ::2], u, np.repeat(w, 2, axis=-1)[..., ::2], origin),
        "negative strides": (backwards, u, w, np.int32(origin)),
    }.items():
        assert same(nf.attention(q, k, v, rel=rel, return_lse=True), (out, lse)), how
        got = nf.attention_backward(dout, q, k, v, out, lse, rel=rel, grads=("rel",))
        assert same(got[:3], want[:3]) and same(got[3]["rel"], want[3]["rel"]), how
    # More rows than are needed have gradient 0, and those that are needed the bits that they have alone.
    longer = (np.concatenate([r[:, :2], r, r[:, :3]], axis=1), u, w, origin + 2)
    assert same(nf.attention(q, k, v, rel=longer), out)
    dr = nf.attention_backward(dout, q, k, v, out, lse, rel=longer, grads=("rel",))[3]["rel"][0]
    assert same(dr[:, 2:-3], want[3]["rel"][0]) and not dr[:, :2].any() and not dr[:, -3:].any()
    same_for_all = np.broadcast_to(r[:1], r.shape)
    judge(q, k, v, "zero strides", dout, rel=(same_for_all, u, w, origin), grads=("rel",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_biases_in_float32(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, n=19, m=23)
    r, u, w, origin = relative(rng, dtype, 19, 23)
    wide = np.float32 if dtype.itemsize == 2 else dtype
    judge(q, k, v, "biases", dout, rel=(r, u.astype(wide), w.astype(wide), origin), grads=("rel",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masked_keys_and_distances_reach_nothing(rng, dtype, bad):
    for n, m in ((3, 40), (40, 90), (130, 300)):
        q, k, v, dout = inputs(rng, dtype, n=n, m=m, d=16)
        r, u, w, origin = relative(rng, dtype, n, m)
        mask = rng.random((n, m)) < 0.7
        mask[:, 17] = False
        distance = np.arange(n)[:, None] + m - n - np.arange(m)
        mask &= distance != 9
        bad_k, bad_v, bad_r = k.copy(), v.copy(), r.copy()
        bad_k[..., 17, :], bad_v[..., 17, :], bad_r[:, origin + 9] = bad, bad, bad
        poison = {"k": bad_k, "v": bad_v, "rel": (bad_r, u, w, origin)}
        judge(q, k, v, f"N={n}, M={m}", dout, mask=mask, rel=(r, u, w, origin), grads=("rel",), poison=poison)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_nan_reaches_what_sees_it(rng, dtype):
    n = 60
    q, k, v, dout = inputs(rng, dtype, lead=(), n=n, m=n)
    r, u, w, origin = relative(rng, dtype, n, n, causal=True)
    r[1, origin + 20] = np.nan  # of head 1: queries from 20 on
    options = {"causal": True, "rel": (r, u, w, origin)}
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    seen = np.arange(n) >= 20
    assert (
        np.isfinite(out[0]).all() and (np.isnan(out[1]).all(axis=-1) == seen).all() and np.isfinite(lse[1, :20]).all()
    )
    dq, *_, more = nf.attention_backward(dout, q, k, v, out, lse, grads=("rel",), **options)
    assert np.isfinite(dq[0]).all() and (np.isnan(dq[1]).any(axis=-1) == seen).all()
    assert all(np.isfinite(x[0]).all() for x in more["rel"])


@pytest.mark.parametrize("options", [{}, {"softcap": 4.0}, {"softcap": 4.0, "dropout": 0.2, "seed": 5}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_what_memory_held_before_changes_nothing(rng, dtype, options, threads):
    """Behind the last key that a strip sees, scratch of the pool is added, masked, and multiplied by 0: no NaN."""
    threads(1)
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=4, kv_heads=2, n=520, m=600, d=16)
    rel = relative(rng, dtype, 520, 600, heads=4, causal=True, spare=(2, 1))

    def results(held):
        nf.empty_pool()
        sizes = 2 ** np.arange(14, 21)  # results of 64 KiB and more are blocks of the pool
        blocks = [nf.relu(np.full(size, held, np.float32)) for size in (*sizes, *sizes * 3 // 2) for _ in range(3)]
        del blocks
        given = {"causal": True, "rel": rel, **options}
        out, lse = nf.attention(q, k, v, return_lse=True, **given)
        *grads, more = nf.attention_backward(dout, q, k, v, out, lse, grads=("rel",), **given)
        return out, lse, *grads, *more["rel"]

    assert same(results(np.nan), results(1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_batch_and_threads_change_nothing(rng, dtype, threads):
    for heads, n, m in ((2, 3, 300), (6, 130, 200), (1, 300, 500)):
        q, k, v, dout = inputs(rng, dtype, lead=(3,), heads=heads, kv_heads=1, n=n, m=m, d=32)
        rel = relative(rng, dtype, n, m, heads=heads, d=32, causal=True)

        def run(i, arrays=(q, k, v, dout), rel=rel):
            q, k, v, dout = (x[i] for x in arrays)
            out, lse = nf.attention(q, k, v, causal=True, rel=rel, return_lse=True)
            *grads, more = nf.attention_backward(dout, q, k, v, out, lse, causal=True, rel=rel, grads=("rel",))
            return out, lse, *grads, *more["rel"]

        threads(1)
        want = run(slice(None))
        alone = run(1)
        assert same(alone[:5], tuple(x[1] for x in want[:5]))
        for count in (2, 5, 8):
            threads(count)
            assert same(run(slice(None)), want) and same(run(1), alone), count


@st.composite
def calls(draw):
    """Sizes, options and a seed for the arrays."""
    n = draw(st.integers(1, 40))
    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "heads": draw(st.sampled_from([(1, 1), (2, 2), (4, 2)])),
        "n": n,
        "m": draw(st.one_of(st.just(n), st.integers(1, 70))),
        "d": draw(st.sampled_from([1, 5, 16, 32])),
        "causal": draw(st.sampled_from([False, True, "top_left"])),
        "window": draw(st.sampled_from([None, (3, 2), (None, 5), (10, None)])),
        "softcap": draw(st.sampled_from([None, 2.0])),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
        "scale": draw(st.sampled_from([None, 0.7])),
        "with": draw(st.sets(st.sampled_from(["mask", "bias", "alibi_slopes", "sinks", "globals", "dlse"]))),
        "spare": draw(st.sampled_from([(0, 0), (4, 1)])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls())
def test_combinations(call):
    rng = np.random.default_rng(call["seed"])
    dtype, (heads, kv_heads), n, m = call["dtype"], call["heads"], call["n"], call["m"]
    q, k, v, dout = inputs(rng, dtype, heads=heads, kv_heads=kv_heads, n=n, m=m, d=call["d"])
    options = {key: call[key] for key in ("causal", "window", "softcap", "dropout", "scale")}
    options["seed"] = (call["seed"], 1, 2, 3)
    window = options["window"]
    if "globals" in call["with"] and n == m:
        options["global_tokens"] = rng.random((2, n)) < 0.2
        window = None  # global tokens need all distances
    options["rel"] = relative(
        rng, dtype, n, m, heads=heads, d=call["d"], causal=call["causal"], window=window, spare=call["spare"]
    )
    if "mask" in call["with"]:
        options["mask"] = rng.random((n, m)) < 0.7
    if "bias" in call["with"]:
        options["bias"] = np.where(rng.random((heads, 1, m)) < 0.1, -np.inf, rng.standard_normal((heads, 1, m))).astype(
            dtype
        )
    for which in {"alibi_slopes", "sinks"} & call["with"]:
        options[which] = normal(rng, heads, dtype=dtype)
    dlse = None
    if "dlse" in call["with"]:
        dlse = normal(rng, 2, heads, n, dtype=np.float64 if dtype == np.float64 else np.float32)
    grads = (*sorted({"bias", "sinks"} & call["with"]), "rel")
    judge(q, k, v, str(call), dout, dlse=dlse, grads=grads, **options)


def test_is_a_bias(rng):
    """Relative positions are a bias that is linear in the query: in float64 the two are the same to rounding."""
    n, m = 21, 34
    q, k, v, _ = inputs(rng, np.dtype(np.float64), n=n, m=m)
    r, u, w, origin = relative(rng, np.float64, n, m)
    rows = origin + np.arange(n)[:, None] + m - n - np.arange(m)
    terms = np.einsum("bhid,hijd->bhij", q + w[:, None], r[:, rows])
    bias = 0.25 * (terms + np.einsum("hd,bhjd->bhj", u, k)[:, :, None])
    got = nf.attention(q, k, v, rel=(r, u, w, origin), scale=0.25)
    np.testing.assert_allclose(got, nf.attention(q, k, v, bias=bias, scale=0.25), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        reference.attention(q, k, v, rel=(r, u, w, origin), scale=0.25), got, rtol=1e-12, atol=1e-13
    )


def test_rows_out_of_range(rng):
    q, k, v, _ = inputs(rng, np.dtype(np.float32), n=5, m=8)
    r, u, w, origin = relative(rng, np.float32, 5, 8)
    nf.attention(q, k, v, rel=(r, u, w, origin))
    for given_rel, options in (
        ((r, u, w, origin + 1), {}),
        ((r, u, w, origin - 1), {}),
        ((r[:, 1:], u, w, origin), {}),
        ((r[:, :0], u, w, origin), {}),
        ((r, u, w, 2**63 - 1), {}),
        ((r, u, w, -(2**63)), {}),
        ((r, u, w, 0), {"window": (7, 1)}),
    ):
        for of in (nf, reference):
            if of is reference and abs(given_rel[3]) > 2**40:
                continue
            with pytest.raises(ValueError, match="rel's r must have a row"):
                of.attention(q, k, v, rel=given_rel, **options)
    # Within causal the nearest distance is 0, within a window of 2 the farthest is 2.
    short = r[:, :3]
    assert nf.attention(q, k, v, causal=True, window=(2, None), rel=(short, u, w, 0)).shape == q.shape
