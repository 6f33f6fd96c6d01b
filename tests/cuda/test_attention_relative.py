"""Transformer-XL's relative positions in attention's kernels for a GPU, run on the host, beside their twin."""

import numpy as np
import pytest
from arrays import DTYPES, bits, name, normal
from attention_judge import inputs, relative
from cuda_attention import FEW, judge, run, run_backward
from tolerance import working

pytestmark = pytest.mark.usefixtures("fragments")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("causal", [False, True, "top_left"])
def test_lengths(gpu, rng, dtype, causal):
    for n, m in ((1, 1), (7, 65), (66, 31), (70, 129), (rng.integers(1, 90), rng.integers(1, 90)), (5, 0), (0, 5)):
        d = int(rng.choice([1, 8, 16, 20]))
        q, k, v, dout = inputs(rng, dtype, lead=(), n=n, m=m, d=d)
        rel = relative(rng, dtype, n, m, d=d, causal=causal, spare=(3, 5))
        judge(gpu, q, k, v, dout, f"N={n}, M={m}, causal={causal}", causal=causal, rel=rel, grads=("rel",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("d", "dv"), [(64, 64), (65, 33), (130, 200), (5, 70)])
def test_head_dimensions(gpu, rng, dtype, d, dv):
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=19, m=37, d=d, dv=dv)
    rel = relative(rng, dtype, 19, 37, heads=1, d=d)
    judge(gpu, q, k, v, dout, f"D={d}, Dv={dv}", rel=rel, grads=("rel",))


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize(("heads", "kv_heads", "lead"), [(6, 2, (2,)), (2, 2, (2, 2)), (2, 2, (0,)), (0, 1, (1,))])
def test_heads_share_keys(gpu, rng, dtype, heads, kv_heads, lead):
    q, k, v, dout = inputs(rng, dtype, lead=lead, heads=heads, kv_heads=kv_heads, n=21, m=37)
    rel = relative(rng, dtype, 21, 37, heads=heads)
    judge(gpu, q, k, v, dout, f"{heads} heads over {kv_heads}", rel=rel, grads=("rel",))


@pytest.mark.parametrize("dtype", FEW, ids=name)
def test_two_axes_are_one_head(gpu, rng, dtype):
    q, k, v, dout = (normal(rng, *shape, dtype=dtype) for shape in ((11, 8), (15, 8), (15, 6), (11, 6)))
    judge(gpu, q, k, v, dout, "two axes", rel=relative(rng, dtype, 11, 15, heads=1, d=8), grads=("rel",))


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize("window", [(0, 0), (70, 3), (None, 2), (5, None)])
def test_windows_need_fewer_rows(gpu, rng, dtype, window):
    for n, m, causal in ((70, 70, False), (80, 20, True), (20, 100, "top_left")):
        q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=n, m=m)
        options = {"window": window, "causal": causal}
        rel = relative(rng, dtype, n, m, heads=1, **options)
        judge(gpu, q, k, v, dout, f"N={n}, M={m}, {options}", rel=rel, grads=("rel",), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_options_together(gpu, rng, dtype):
    n, m = 40, 75
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=n, m=m)
    wide = lambda *shape: normal(rng, *shape, dtype=rng.choice([dtype, working(dtype)]))
    r, u, w, origin = relative(rng, dtype, n, m, heads=4)
    rel = r, u.astype(working(dtype)), w.astype(working(dtype)), origin
    options = {
        "bias": wide(4, 1, m),
        "mask": rng.random((2, 1, n, m)) < 0.8,
        "softcap": 3.0,
        "scale": 0.3,
        "alibi_slopes": np.abs(wide(4)),
        "sinks": wide(4),
        "dropout": 0.25,
        "seed": (1, 2, 3, 4),
    }
    dlse = normal(rng, 2, 4, n, dtype=working(dtype))
    judge(gpu, q, k, v, dout, "all", rel=rel, dlse=dlse, grads=("bias", "sinks", "rel"), **options)


@pytest.mark.parametrize("dtype", FEW, ids=name)
def test_global_tokens(gpu, rng, dtype):
    q, k, v, dout = inputs(rng, dtype, lead=(1,), n=90, m=90, d=8)
    tokens = np.zeros((1, 90), bool)
    tokens[0, [0, 70]] = True
    rel = relative(rng, dtype, 90, 90, d=8)  # a global token may be at any distance
    options = {"global_tokens": tokens, "window": (5, 9)}
    judge(gpu, q, k, v, dout, "global tokens", rel=rel, grads=("rel",), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_seen_reaches_nothing(gpu, rng, dtype, bad):
    n, m = 40, 90
    q, k, v, dout = inputs(rng, dtype, n=n, m=m)
    r, u, w, origin = relative(rng, dtype, n, m)
    mask = rng.random((n, m)) < 0.7
    mask[:, 17] = mask[11] = False
    mask &= np.arange(n)[:, None] + m - n - np.arange(m) != 9
    poison = {"q": q.copy(), "k": k.copy(), "v": v.copy(), "rel": (r.copy(), u, w, origin)}
    poison["q"][..., 11, :] = poison["k"][..., 17, :] = poison["v"][..., 17, :] = poison["rel"][0][:, origin + 9] = bad
    judge(gpu, q, k, v, dout, "poison", mask=mask, rel=(r, u, w, origin), grads=("rel",), poison=poison)


@pytest.mark.parametrize("dtype", FEW, ids=name)
def test_strides_and_the_same_bits_again(gpu, rng, dtype):
    q, k, v, dout = inputs(rng, dtype, n=30, m=70)
    r, u, w, origin = relative(rng, dtype, 30, 70)
    apart = np.full((r.shape[1], 2, 24), np.nan, dtype)
    apart[:, :, :16] = r.swapaxes(0, 1)
    results = []
    for rel in ((r, u, w, origin), (apart[:, :, :16].swapaxes(0, 1), u, w, origin)):
        out, lse = run(gpu, q, k, v, rel=rel)
        dq, dk, dv, more = run_backward(gpu, dout, q, k, v, out, lse, grads=("rel",), rel=rel)
        results.append([bits(x) for x in (out, lse, dq, dk, dv, *more["rel"])])
    assert results[0] == results[1]
