"""Few queries to many keys, and the cache that holds them."""

import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, layouts, name, normal, same
from attention_judge import inputs, judge


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("n", [1, 2, 4, 5])
@pytest.mark.parametrize("m", [1, 7, 33, 511, 513, 1300])
def test_lengths(rng, dtype, n, m):
    heads, kv_heads = ((6, 2), (2, 2), (3, 1))[int(rng.integers(3))]
    d, dv = int(rng.choice([1, 16, 33, 64])), int(rng.choice([1, 20, 64, 130]))
    q, k, v, dout = inputs(rng, dtype, heads=heads, kv_heads=kv_heads, n=n, m=m, d=d, dv=dv)
    what = f"{heads} over {kv_heads}, N={n}, M={m}, D={d}, Dv={dv}"
    judge(q, k, v, what, dout, causal=True)
    judge(q, k, v, f"window, {what}", dout, window=(40, 3))
    options = {"bias": normal(rng, heads, n, m, dtype=dtype), "sinks": normal(rng, heads, dtype=dtype)}
    options |= {"mask": rng.random((2, 1, 1, m)) < 0.7, "softcap": 3.0, "dropout": 0.1, "seed": 4}
    judge(q, k, v, f"all, {what}", dout, **options, alibi_slopes=normal(rng, heads, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_masked_keys_reach_nothing(rng, dtype):
    q, k, v, _ = inputs(rng, dtype, heads=4, kv_heads=2, n=2, m=700, d=24, dv=19)
    mask = rng.random((2, 700)) < 0.5
    mask[:, [3, 650]], mask[:, 10] = False, True
    poison = {"k": k.copy(), "v": v.copy()}
    for x in poison.values():
        x[..., [3, 650], :] = np.nan
    judge(q, k, v, "poison", poison=poison, mask=mask)
    v[..., 10, 2] = np.inf  # seen
    q[0, 0, 1] = np.nan
    out, lse = nf.attention(q, k, v, mask=mask, return_lse=True)
    assert np.isnan(out[0, 0, 1]).all() and np.isnan(lse[0, 0, 1])
    rest = np.ones(out.shape[:3], bool)
    rest[0, 0, 1] = False
    assert np.isinf(out[rest][:, 2]).all() and np.isfinite(out[rest][:, 3:]).all() and np.isfinite(lse[rest]).all()
    empty = nf.attention(q[..., :1, :], k, v, mask=np.zeros(700, bool), return_lse=True)
    assert not empty[0].any() and np.isneginf(empty[1]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_threads_batch_and_layout_change_nothing(rng, dtype, threads):
    q, k, v, _ = inputs(rng, dtype, lead=(3,), heads=4, kv_heads=2, n=2, m=1200, d=48)
    threads(1)
    want = nf.attention(q, k, v, causal=True, return_lse=True)
    for count in (1, 2, 5):
        threads(count)
        assert same(nf.attention(q, k, v, causal=True, return_lse=True), want)
        assert same(nf.attention(q[1], k[1], v[1], causal=True, return_lse=True), tuple(x[1] for x in want))
    for (how, q2), (_, k2), (_, v2) in zip(*map(layouts, (q, k, v)), strict=True):
        assert same(nf.attention(q2, k2, v2, causal=True, return_lse=True), want), how


def test_packed_with_few_and_many_queries(rng, threads):
    rows, keys = np.array([0, 1, 41, 43]), np.array([0, 700, 740, 800])
    q, k, v = normal(rng, 43, 2, 16), normal(rng, 800, 1, 16), normal(rng, 800, 1, 16)
    for count in (1, 2, 5):
        threads(count)
        out = nf.attention_varlen(q, k, v, rows, keys, causal=True)
        for s in range(3):
            i, j = slice(rows[s], rows[s + 1]), slice(keys[s], keys[s + 1])
            alone = nf.attention(q[i].swapaxes(0, 1), k[j].swapaxes(0, 1), v[j].swapaxes(0, 1), causal=True)
            assert same(alone.swapaxes(0, 1), out[i])


@pytest.mark.parametrize("window", [None, 0, 3, 10])
@pytest.mark.parametrize("capacity", [0, 1, 5, 64])
def test_cache(rng, window, capacity):
    cache = nf.KVCache(capacity, window=window)
    every = [], []
    for step in range(60):
        n = int(rng.integers(0, 4)) if step else 9
        k, v = normal(rng, 2, 3, n, 4), normal(rng, 2, 3, n, 5)
        before = sum(x.shape[-2] for x in every[0])
        for x, all_of_it, held in zip((k, v), every, cache.append(k, v), strict=True):
            all_of_it.append(x)
            first = 0 if window is None else max(0, before - window)
            # Between two calls nothing is given up, so a few more may be there than at the first of them.
            assert same(held, np.concatenate(all_of_it, axis=-2)[..., first:, :])
        assert cache.length == before + n
    if window is not None:
        assert cache._keys.shape[-2] <= max(capacity, 1, 2 * (window + 9))


def test_cache_generates_as_the_whole_does(rng):
    q, k, v = (normal(rng, 2, 4, 30, 16, dtype=np.float64) for _ in range(3))
    for window in (None, 7):
        cache = nf.KVCache(4, window=window)
        options = {"causal": True, "window": None if window is None else (window, None)}
        want = nf.attention(q, k, v, **options)
        for i, j in ((0, 11), *((i, i + 1) for i in range(11, 30))):
            here = nf.attention(q[:, :, i:j], *cache.append(k[:, :, i:j], v[:, :, i:j]), **options)
            np.testing.assert_allclose(here, want[:, :, i:j], rtol=1e-12, atol=1e-13)


def test_cache_says_what_is_wrong():
    with pytest.raises(TypeError, match="KVCache: capacity must be an int, got float"):
        nf.KVCache(1.5)
    with pytest.raises(ValueError, match="KVCache: window must not be negative, got -1"):
        nf.KVCache(window=-1)
    cache, x = nf.KVCache(), np.ones((2, 3, 1, 4), np.float32)
    cache.append(x, x)
    for bad in (x[:1], x[..., :3], x.astype(np.float64)):
        with pytest.raises(ValueError, match="KVCache: it holds float32 of batch and heads"):
            cache.append(bad, bad)
    for unknown in (np.ones((2, 3, 1, 4), np.complex64), np.ones((2, 3, 1, 4), ">f4")):
        for arrays in ((unknown, x), (x, unknown)):
            with pytest.raises(TypeError, match=r"KVCache: [kv] must have dtype float32"):
                cache.append(*arrays)
    with pytest.raises(ValueError, match="KVCache: k and v must have shapes"):
        cache.append(x, x[:, :, :0])
    assert cache.length == 1
