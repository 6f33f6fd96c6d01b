"""Global tokens: what they see and who sees them, across panels and blocks of keys."""

import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, name, normal, same
from attention_judge import inputs, judge


def some(rng, *shape, count=3):
    """A few global tokens in each sequence."""
    tokens = np.zeros(shape, bool)
    for row in tokens.reshape(-1, shape[-1]):
        row[rng.choice(shape[-1], min(count, shape[-1]), replace=False)] = True
    return tokens


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("causal", [False, True])
def test_global_tokens(rng, dtype, rows, causal):
    for n, window, count in ((1, (0, 0), 1), (40, (2, 3), 2), (130, (5, 5), 3), (130, None, 3), (70, (3, 3), 70)):
        q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=n, m=n)
        options = {"global_tokens": some(rng, 2, n, count=count), "global_rows": rows, "causal": causal}
        judge(q, k, v, f"N={n}, window={window}", dout, window=window, **options)
        options["mask"] = rng.random((n, n)) < 0.8
        judge(q, k, v, f"N={n}, window={window}, mask", dout, window=window, **options)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name)
@pytest.mark.parametrize("rows", [True, False])
def test_around_blocks(rng, dtype, rows):
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=1100, m=1100, d=8)
    tokens = np.zeros(1100, bool)
    tokens[[0, 255, 256, 511, 512, 1099]] = True
    bias = normal(rng, 1, 1100, dtype=dtype)
    judge(q, k, v, "few", dout, window=(20, 20), global_tokens=tokens, global_rows=rows, bias=bias, grads=("bias",))
    judge(q, k, v, "causal", dout, window=(20, 0), causal=True, global_tokens=tokens, global_rows=rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_none_are_global(rng, dtype):
    q, k, v, dout = inputs(rng, dtype, n=90, m=90)
    plain = nf.attention(q, k, v, window=(4, 4), return_lse=True)
    tokens = np.zeros((2, 90), bool)
    got = nf.attention(q, k, v, window=(4, 4), global_tokens=tokens, return_lse=True)
    assert np.allclose(got[0].astype(float), plain[0].astype(float), rtol=0.02, atol=0.02)
    options = {"window": (4, 4), "global_tokens": tokens, "global_rows": False}
    tokens[:, 7] = True
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    dq, _, _ = nf.attention_backward(dout, q, k, v, out, lse, **options)
    assert not out[..., 7, :].any() and np.isneginf(lse[..., 7]).all() and not dq[..., 7, :].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("rows", [True, False])
def test_what_nobody_sees_reaches_nothing(rng, dtype, rows):
    """A NaN in keys and values masked for all but the queries of the window and the global ones."""
    q, k, v, dout = inputs(rng, dtype, n=100, m=100)
    tokens, mask = some(rng, 2, 100), np.ones((100, 100), bool)
    mask[:, [3, 50]] = False
    poison = {"k": k.copy(), "v": v.copy()}
    for x in poison.values():
        x[..., [3, 50], :] = np.nan
    options = {"global_tokens": tokens, "global_rows": rows, "window": (6, 2), "mask": mask}
    judge(q, k, v, "poison", dout, poison=poison, **options)
    v[0, 0, 60, 0] = np.nan
    out = nf.attention(q, k, v, **options)
    sees = (np.arange(100) >= 58) & (np.arange(100) <= 66) | tokens[0, 60] | tokens[0]
    if not rows:
        sees &= ~tokens[0]
    assert (np.isnan(out[0, 0, :, 0]) == sees).all() and np.isfinite(out[1]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_threads_change_nothing(rng, dtype, threads):
    q, k, v, dout = inputs(rng, dtype, lead=(3,), heads=1, kv_heads=1, n=300, m=300)
    options = {"global_tokens": some(rng, 3, 300), "window": (9, 9)}

    def run():
        out, lse = nf.attention(q, k, v, return_lse=True, **options)
        return out, lse, *nf.attention_backward(dout, q, k, v, out, lse, **options)

    threads(1)
    want = run()
    for count in (2, 5):
        threads(count)
        assert same(run(), want)
