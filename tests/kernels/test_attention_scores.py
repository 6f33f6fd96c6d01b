"""What changes scores and probabilities: bias, softcap, ALiBi, sinks, dropout; alone, and combined at random."""

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, name, normal, same
from attention_judge import inputs, judge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numformer import reference


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 18, 40), (1, 3, 18, 40), (2, 1, 18, 40), (18, 40), (1, 40), (18, 1), (40,), (3, 1, 1), (2, 1, 1, 1), ()],
)
def test_bias_shapes(rng, dtype, shape):
    q, k, v, dout = inputs(rng, dtype, heads=3, kv_heads=3, n=18, m=40)
    for bias_dtype in {dtype, np.dtype(np.float32) if dtype.itemsize == 2 else dtype}:
        bias = np.asarray(normal(rng, *shape, dtype=bias_dtype))
        judge(q, k, v, f"bias {shape} {bias_dtype}", dout, bias=bias, grads=("bias",))
    bias[rng.random(shape) < 0.3] = -np.inf
    judge(q, k, v, f"masking bias {shape}", dout, bias=bias, causal=True, grads=("bias",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_bias_layouts(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=30, m=23)
    bias = normal(rng, 4, 30, 23, dtype=dtype)
    out, lse = nf.attention(q, k, v, bias=bias, return_lse=True)
    want = nf.attention_backward(dout, q, k, v, out, lse, bias=bias, grads=("bias",))
    last = np.ascontiguousarray(bias.transpose(1, 2, 0)).transpose(2, 0, 1)  # heads last, as T5 keeps them
    for how, other in (("heads last", last), ("strided", np.repeat(bias, 2, axis=-1)[..., ::2])):
        assert same(nf.attention(q, k, v, bias=other, return_lse=True), (out, lse)), how
        got = nf.attention_backward(dout, q, k, v, out, lse, bias=other, grads=("bias",))
        assert same(got[:3], want[:3]) and same(got[3]["bias"], want[3]["bias"]), how
    wide = np.broadcast_to(bias[:, :, :1], (2, 4, 30, 23))
    judge(q, k, v, "zero strides", dout, bias=wide, grads=("bias",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("n", "m"), [(112, 512), (225, 257), (120, 1030), (1, 300)])
def test_around_blocks(rng, dtype, n, m):
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=2, kv_heads=1, n=n, m=m, d=24)
    bias, sinks = normal(rng, n, m, dtype=dtype), normal(rng, 2, dtype=dtype)
    slopes = np.array([0.5, 0.0625], dtype)
    options = {"bias": bias, "sinks": sinks, "alibi_slopes": slopes, "softcap": 3.0, "dropout": 0.2, "seed": 5}
    dlse = normal(rng, 2, n, dtype=np.float64 if dtype == np.float64 else np.float32)
    judge(q, k, v, f"N={n}, M={m}", dout, **options, dlse=dlse, grads=("sinks", "bias"))
    judge(q, k, v, f"N={n}, M={m}, window", dout, **options, dlse=dlse, window=(100, 50), grads=("bias", "sinks"))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_softcap(rng, dtype):
    for cap in (0.01, 1.0, 50.0):
        q, k, v, dout = inputs(rng, dtype, n=33, m=45)
        judge(q, k, v, f"softcap {cap}", dout, softcap=cap, causal=True)
        judge(q * 30, k, v, f"large scores, softcap {cap}", dout, softcap=cap)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("causal", [False, True, "top_left"])
def test_alibi(rng, dtype, causal):
    for n, m in ((20, 50), (50, 20), (33, 33)):
        q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=n, m=m)
        slopes = np.array([0.5, 0.25, 0.0, -0.125], dtype)
        judge(q, k, v, f"N={n}, M={m}", dout, alibi_slopes=slopes, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_sinks(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=40, m=25)
    sinks = np.array([0.5, -3.0, 40.0, -np.inf], dtype)
    dlse = normal(rng, 2, 4, 40, dtype=np.float64 if dtype == np.float64 else np.float32)
    # Causal: the first 15 queries see no key, and lse is the sink.
    judge(q, k, v, "causal", dout, sinks=sinks, causal=True, grads=("sinks",))
    judge(q, k, v, "with dlse", dout, sinks=sinks, causal=True, dlse=dlse, grads=("sinks",))
    out, lse = nf.attention(q, k, v, sinks=sinks, causal=True, return_lse=True)
    assert not out[:, :, :15].any() and np.allclose(lse[:, :3, :15], sinks[:3, None].astype(lse.dtype), rtol=1e-6)
    assert np.isneginf(lse[:, 3, :15]).all()
    for bad in (np.nan, np.inf):
        sinks[1] = bad
        out, lse = nf.attention(q, k, v, sinks=sinks, return_lse=True)
        assert np.isnan(out[:, 1]).all() and np.isnan(lse[:, 1]).all() and np.isfinite(out[:, [0, 2, 3]]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_dlse(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=40, m=25)
    dlse = normal(rng, 2, 4, 40, dtype=np.float64 if dtype == np.float64 else np.float32)
    judge(q, k, v, "dlse", dout, dlse=dlse, causal=True)
    bad = dlse.copy()
    bad[:, :, :15] = np.nan  # of rows that see nothing
    judge(q, k, v, "NaN in dlse of empty rows", dout, dlse=dlse, poison={"dlse": bad}, causal=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_bias_that_is_not_finite(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, heads=2, kv_heads=2, n=40, m=60)
    bias = normal(rng, 40, 60, dtype=dtype)
    bias[:, 17] = -np.inf
    poison = {"k": k.copy(), "v": v.copy(), "bias": bias.copy()}
    poison["k"][..., 17, :] = np.nan  # masked by the bias: reaches nothing
    poison["v"][..., 17, :] = np.inf
    poison["bias"][5, 30:] = np.nan  # masked by causal (5 sees keys to 25)
    poison["bias"][6, 29] = np.inf
    judge(q, k, v, "masked", dout, bias=bias, causal=True, grads=("bias",), poison=poison)
    k, v, clean, bias = poison["k"], poison["v"], bias, poison["bias"]
    bias[9], bias[10, 3], bias[11, 3] = -np.inf, np.inf, np.nan
    out, lse = nf.attention(q, k, v, bias=bias, causal=True, return_lse=True)
    bad = np.isin(np.arange(40), (10, 11))
    assert (np.isnan(out) == bad[:, None]).all() and (np.isnan(lse) == bad).all()
    assert not out[..., 9, :].any() and np.isneginf(lse[..., 9]).all()
    dq, dk, _, more = nf.attention_backward(dout, q, k, v, out, lse, bias=bias, causal=True, grads=("bias",))
    assert (np.isnan(dq) == bad[:, None]).all()
    assert not dk[..., 17, :].any() and not more["bias"][:, 17].any() and not more["bias"][9].any()
    good = nf.attention(q, k, v, bias=np.where(np.arange(40)[:, None] == 9, bias, clean), causal=True)
    assert same(out[..., ~bad, :], good[..., ~bad, :])


def test_largest_negative_bias_is_a_number(rng):
    """Many models mask with the lowest float: a row of nothing else is the mean of its values."""
    for dtype in DTYPES:
        q, k, v, _ = inputs(rng, dtype, n=5, m=30)
        lowest = np.full((5, 30), ml_dtypes.finfo(dtype).min, dtype)
        lowest[2, 3:7] = 0
        out, lse = nf.attention(q, k, v, bias=lowest, return_lse=True)
        assert np.isfinite(out).all() and np.isfinite(lse).all()
        some = nf.attention(q, k[..., 3:7, :], v[..., 3:7, :])
        np.testing.assert_allclose(out[..., 2, :].astype(float), some[..., 2, :].astype(float), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_dropout(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=41, m=67)
    for p in (0.1, 0.5, 1.0):
        judge(q, k, v, f"dropout {p}", dout, dropout=p, seed=int(rng.integers(2**32)), causal=True)
    judge(q, k, v, "place in the seed", dout, dropout=0.3, seed=(1, 2, 3, 4))
    out, lse = nf.attention(q, k, v, dropout=0.3, seed=9, return_lse=True)
    assert same(nf.attention(q, k, v, dropout=0.3, seed=(9, 0, 0, 0)), out)
    assert same(nf.attention(q, k, v, alibi_slopes=np.zeros(4, dtype), return_lse=True)[1], lse), "before dropout"
    alone = nf.attention(q[1], k[1], v[1], dropout=0.3, seed=(9, 0, 0, 1))
    assert same(alone, out[1]), "the second sample"
    assert not same(nf.attention(q, k, v, dropout=0.3, seed=10), out)


def test_dropout_is_that_of_the_function():
    """Equal probabilities, and values that show which of them were kept."""
    n, m = 6, 64
    q, k = np.zeros((2, 3, n, 4), np.float32), np.zeros((2, 3, m, 4), np.float32)
    v = np.broadcast_to(np.eye(m, dtype=np.float32), (2, 3, m, m))
    got = nf.attention(q, k, v, dropout=0.25, seed=(7, 1, 2, 3)) * m
    want = nf.dropout(np.ones((2, 3, n, m), np.float32), 0.25, seed=7, layer=1, step=2, sample=3)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_batch_and_threads_change_nothing(rng, dtype, threads):
    for heads, n, m in ((2, 1, 300), (6, 70, 70)):
        q, k, v, dout = inputs(rng, dtype, lead=(3,), heads=heads, kv_heads=2, n=n, m=m, d=32)
        bias, sinks = normal(rng, 1, n, m, dtype=dtype), normal(rng, heads, dtype=dtype)
        options = {"bias": bias, "sinks": sinks, "softcap": 4.0, "alibi_slopes": np.full(heads, 0.25, dtype)}
        options |= {"dropout": 0.2, "causal": True}

        def run(i, options=options, arrays=(q, k, v, dout)):
            q, k, v, dout = (x[i] for x in arrays)
            seed = (3, 1, 4, i if isinstance(i, int) else 0)
            out, lse = nf.attention(q, k, v, seed=seed, return_lse=True, **options)
            *grads, more = nf.attention_backward(
                dout, q, k, v, out, lse, seed=seed, grads=("bias", "sinks"), dlse=lse, **options
            )
            return out, lse, *grads, more["bias"], more["sinks"]

        threads(1)
        want = run(slice(None))
        alone = run(1)
        assert same(alone[:5], tuple(x[1] for x in want[:5]))
        for count in (2, 5):
            threads(count)
            assert same(run(slice(None)), want) and same(run(1), alone), count


FLOATS = st.sampled_from(DTYPES)


@st.composite
def calls(draw):
    """Sizes, options and a seed for the arrays."""
    group, kv_heads = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    lead = draw(st.sampled_from([(), (2,), (1, 2)]))
    n = draw(st.integers(0, 40))
    m = draw(st.one_of(st.just(n), st.integers(0, 70)))
    return {
        "dtype": draw(FLOATS),
        "lead": lead,
        "heads": group * kv_heads,
        "kv_heads": kv_heads,
        "n": n,
        "m": m,
        "d": draw(st.sampled_from([1, 5, 16, 32])),
        "dv": draw(st.sampled_from([1, 8, 19])),
        "causal": draw(st.sampled_from([False, True, "top_left"])),
        "window": draw(st.sampled_from([None, (3, 2), (None, 5), (10, None)])),
        "softcap": draw(st.sampled_from([None, 2.0])),
        "dropout": draw(st.sampled_from([0.0, 0.3])),
        "scale": draw(st.sampled_from([None, 0.7])),
        "with": draw(st.sets(st.sampled_from(["mask", "bias", "alibi_slopes", "sinks", "dlse"]))),
        "globals": draw(st.sampled_from([None, True, False])),
        "pairs": draw(st.lists(st.booleans(), min_size=3, max_size=3)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls())
def test_combinations(call):
    rng = np.random.default_rng(call["seed"])
    dtype, heads, n, m = call["dtype"], call["heads"], call["n"], call["m"]
    sizes = {key: call[key] for key in ("lead", "heads", "kv_heads", "n", "m", "d", "dv")}
    q, k, v, dout = inputs(rng, dtype, **sizes)
    options = {key: call[key] for key in ("causal", "window", "softcap", "dropout", "scale")}
    options["seed"] = (call["seed"], 1, 2, 3)
    pairs = tuple(s if whole else 1 for s, whole in zip((heads, n, m), call["pairs"], strict=True))
    if "mask" in call["with"]:
        options["mask"] = rng.random(pairs) < 0.7
    if "bias" in call["with"]:
        options["bias"] = np.where(rng.random(pairs) < 0.1, -np.inf, rng.standard_normal(pairs)).astype(dtype)
    for which in {"alibi_slopes", "sinks"} & call["with"]:
        options[which] = normal(rng, heads, dtype=dtype)
    if call["globals"] is not None and n == m:
        options |= {"global_tokens": rng.random((*call["lead"], n)) < 0.2, "global_rows": call["globals"]}
    dlse = None
    if "dlse" in call["with"]:
        dlse = normal(rng, *call["lead"], heads, n, dtype=np.float64 if dtype == np.float64 else np.float32)
    grads = tuple(sorted({"bias", "sinks"} & call["with"]))
    judge(q, k, v, str(call), dout, dlse=dlse, grads=grads, **options)


def test_reference_by_hand():
    """One query, two keys, scores 0 and log 3; a sink of log 4 is half of the denominator."""
    q, k, v = np.array([[1.0]]), np.array([[0.0], [np.log(3)]]), np.array([[0.0], [4.0]])
    out, lse = reference.attention(q, k, v, sinks=np.array([np.log(4.0)]), return_lse=True)
    assert abs(out[0, 0] - 1.5) < 1e-14 and abs(lse[0] - np.log(8)) < 1e-14
    out = reference.attention(q, k, v, bias=np.array([np.log(3), 0.0]))
    assert abs(out[0, 0] - 2.0) < 1e-14
    out = reference.attention(q, k, v, alibi_slopes=np.array([np.log(3)]))  # the last key is on the diagonal
    assert abs(out[0, 0] - 4 * 9 / 10) < 1e-14
