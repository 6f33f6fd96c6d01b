"""Packed sequences: each as if it were alone, bit for bit."""

from itertools import pairwise

import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, name, normal, same
from attention_judge import relative
from tolerance import check, rounded, u, working

LENGTHS = [((5, 0, 1, 40, 113), (5, 3, 0, 17, 300)), ((30,), (30,)), ((0, 0), (4, 0)), ((), ()), ((520, 2), (600, 3))]


def starts(lengths, dtype=np.int64):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (1, 1)])
def test_each_sequence_is_as_alone(rng, dtype, lengths, heads, kv_heads, threads):
    rows, keys = (starts(x, np.int32) for x in lengths)
    q, k = normal(rng, rows[-1], heads, 16, dtype=dtype), normal(rng, keys[-1], kv_heads, 16, dtype=dtype)
    v, dout = normal(rng, keys[-1], kv_heads, 20, dtype=dtype), normal(rng, rows[-1], heads, 20, dtype=dtype)
    dlse = normal(rng, heads, rows[-1], dtype=working(dtype))
    sinks = normal(rng, heads, dtype=dtype)
    for options in ({}, {"causal": True}, {"window": (9, 4), "softcap": 4.0, "dropout": 0.2, "sinks": sinks}):
        seed = (4, 3, 2, 1) if "dropout" in options else None
        grads = ("sinks",) if "sinks" in options else ()
        out, lse = nf.attention_varlen(q, k, v, rows, keys, seed=seed, return_lse=True, **options)
        assert out.shape == dout.shape and lse.shape == (heads, rows[-1])
        got = nf.attention_varlen_backward(
            dout, q, k, v, out, lse, rows, keys, seed=seed, dlse=dlse, grads=grads, **options
        )
        sum_of_sinks, magnitude = np.zeros(heads), np.zeros(heads)
        for s in range(len(rows) - 1):
            i, j = slice(rows[s], rows[s + 1]), slice(keys[s], keys[s + 1])
            one = [x.swapaxes(0, 1) for x in (q[i], k[j], v[j])]
            seed_s = seed and (4, 3, 2, 1 + s)
            alone = nf.attention(*one, seed=seed_s, return_lse=True, **options)
            assert same(alone[0].swapaxes(0, 1), out[i]) and same(alone[1], lse[:, i])
            dalone = nf.attention_backward(
                dout[i].swapaxes(0, 1), *one, *alone, seed=seed_s, dlse=dlse[:, i], grads=grads, **options
            )
            for g, part, a in zip(got[:3], (i, j, j), dalone[:3], strict=True):
                assert same(g[part], a.swapaxes(0, 1))
            if grads:
                sum_of_sinks += dalone[3]["sinks"].astype(float)
                magnitude += np.abs(dalone[3]["sinks"].astype(float))
        if grads:
            # All are sums in float64; each part was rounded once, and so is the sum of them.
            check(got[3]["sinks"], sum_of_sinks, (u(dtype) + 1e3 * u(np.float64)) * 2 * magnitude, "dsinks")
        for count in (1, 5):
            threads(count)
            assert same(nf.attention_varlen(q, k, v, rows, keys, seed=seed, **options), out)
            again = nf.attention_varlen_backward(
                dout, q, k, v, out, lse, rows, keys, seed=seed, dlse=dlse, grads=grads, **options
            )
            assert same(again[:3], got[:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (1, 1)])
def test_relative_positions_of_each_sequence(rng, dtype, lengths, heads, kv_heads, threads):
    rows, keys = (starts(x) for x in lengths)
    q, k = normal(rng, rows[-1], heads, 16, dtype=dtype), normal(rng, keys[-1], kv_heads, 16, dtype=dtype)
    v, dout = normal(rng, keys[-1], kv_heads, 20, dtype=dtype), normal(rng, rows[-1], heads, 20, dtype=dtype)
    longest = [max(x, default=0) for x in lengths]
    parts = [(slice(*i), slice(*j)) for i, j in zip(pairwise(rows), pairwise(keys), strict=True)]
    pairs = [(i.stop - i.start) * (j.stop - j.start) for i, j in parts]
    for pattern, more in (
        ({}, {}),
        ({"causal": True}, {"softcap": 4.0}),
        ({"causal": "top_left", "window": (40, 4)}, {"dropout": 0.2}),
    ):
        rel = relative(rng, dtype, *longest, heads=heads, spare=(2, 1), **pattern)
        options = {**pattern, **more, "rel": rel}

        def run(seed=(4, 3, 2, 1), options=options):
            out, lse = nf.attention_varlen(q, k, v, rows, keys, seed=seed, return_lse=True, **options)
            *grads, more = nf.attention_varlen_backward(
                dout, q, k, v, out, lse, rows, keys, seed=seed, grads=("rel",), **options
            )
            return out, lse, *grads, *more["rel"]

        out, lse, *grads = got = run()
        bounds = [np.zeros(x.shape) for x in rel[:3]]
        for s, (i, j) in enumerate(parts):
            one = [x.swapaxes(0, 1) for x in (q[i], k[j], v[j])]
            given = {"seed": (4, 3, 2, 1 + s), **options}
            alone = nf.attention(*one, return_lse=True, **given)
            assert same(alone[0].swapaxes(0, 1), out[i]) and same(alone[1], lse[:, i])
            done = dout[i].swapaxes(0, 1)
            back = nf.attention_backward(done, *one, *alone, **given)
            for g, part, a in zip(grads[:3], (i, j, j), back, strict=True):
                assert same(g[part], a.swapaxes(0, 1))
            if pairs[s]:
                of_one = tolerance.attention_backward(done, *one, *alone, dtype, grads=("rel",), **given)[3]["rel"]
                for bound, more_of_it in zip(bounds, of_one, strict=True):
                    bound += more_of_it * (sum(pairs) / pairs[s])  # as many terms more are added
        want = nf.reference.attention_varlen_backward(
            dout, q, k, v, out, lse, rows, keys, seed=(4, 3, 2, 1), grads=("rel",), **options
        )[3]["rel"]
        for which, g, w, bound, like in zip(("dr", "du", "dv"), grads[3:], want, bounds, rel, strict=False):
            assert g.dtype == dtype and g.shape == like.shape
            check(g, w, rounded(bound, w, dtype), which)
        for count in (1, 5, 8):
            threads(count)
            assert same(run(), got)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_relative_positions_of_equal_lengths_are_those_of_a_batch(rng, dtype):
    """Also the gradients of r and the biases, which are sums over the sequences."""
    batch, n, m = 3, 130, 200
    q, k, v, dout = (normal(rng, batch, x, 2, 16, dtype=dtype) for x in (n, m, m, n))
    rel = relative(rng, dtype, n, m, causal=True)
    options = {"causal": True, "rel": rel}
    rows, keys = np.arange(batch + 1) * n, np.arange(batch + 1) * m
    packed = [x.reshape(-1, 2, 16) for x in (dout, q, k, v)]
    by_head = [x.swapaxes(1, 2) for x in (dout, q, k, v)]
    ours = nf.attention_varlen(*packed[1:], rows, keys, return_lse=True, **options)
    want = nf.attention(*by_head[1:], return_lse=True, **options)
    got = nf.attention_varlen_backward(*packed, *ours, rows, keys, grads=("rel",), **options)[3]["rel"]
    assert same(got, nf.attention_backward(*by_head, *want, grads=("rel",), **options)[3]["rel"])


def test_rows_of_relative_positions_out_of_range(rng):
    rows, x = starts((3, 6)), normal(rng, 9, 2, 8)
    r, u, w, origin = relative(rng, np.float32, 6, 6, d=8)
    nf.attention_varlen(x, x, x, rows, rows, rel=(r, u, w, origin))
    for short in ((r[:, 1:], u, w, origin), (r, u, w, origin + 1), (r, u, w, 2**63 - 1)):
        with pytest.raises(ValueError, match=r"attention_varlen: rel's r must have a row .*, here -[25] to [25], got"):
            nf.attention_varlen(x, x, x, rows, rows, rel=short)
    # The sequences alone say what is needed, not the total.
    assert nf.attention_varlen(x, x, x, starts((3, 6, 0)), starts((6, 3, 0)), rel=(r, u, w, origin)).shape == x.shape


def test_twin(rng):
    """The twin is a loop over sequences, as is the test above; so once beside it suffices."""
    rows, keys = starts((7, 0, 33)), starts((9, 2, 20))
    q, k, v = normal(rng, 40, 4, 8, dtype=float), normal(rng, 31, 2, 8, dtype=float), normal(rng, 31, 2, 5, dtype=float)
    dout, sinks = normal(rng, 40, 4, 5, dtype=float), normal(rng, 4, dtype=float)
    options = {"causal": True, "sinks": sinks, "dropout": 0.3, "seed": 8, "alibi_slopes": np.array([0.5, 0.1, 0, 1])}
    options["rel"] = relative(rng, float, 33, 20, heads=4, d=8, causal=True)
    ours = nf.attention_varlen(q, k, v, rows, keys, return_lse=True, **options)
    twin = nf.reference.attention_varlen(q, k, v, rows, keys, return_lse=True, **options)
    for a, b in zip(ours, twin, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    more = {"grads": ("sinks", "rel"), "dlse": ours[1] * 0 + 0.5, **options}
    back = nf.attention_varlen_backward(dout, q, k, v, *ours, rows, keys, **more)
    want = nf.reference.attention_varlen_backward(dout, q, k, v, *ours, rows, keys, **more)
    for a, b in zip(*((*x[:3], x[3]["sinks"], *x[3]["rel"]) for x in (back, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_layouts_and_into(rng):
    rows = starts((3, 9, 4))
    qkv = normal(rng, 16, 3, 2, 8)  # (position, which, head, dim), as one product makes them
    q, k, v = (qkv[:, i] for i in range(3))
    out, lse = nf.attention_varlen(q, k, v, rows, rows, return_lse=True)
    assert same(nf.attention_varlen(q.copy(), k.copy(), v.copy(), rows, rows), out)
    there = np.zeros((16, 2, 9), np.float32)[..., :8]
    assert nf.attention_varlen(q, k, v, rows, rows, out=there).base is there.base and same(there.copy(), out)
    grads = nf.attention_varlen_backward(out, q, k, v, out, lse, rows, rows)
    dqkv = np.zeros_like(qkv)
    nf.attention_varlen_backward(out, q, k, v, out, lse, rows, rows, into=tuple(dqkv[:, i] for i in range(3)))
    assert same(tuple(dqkv[:, i].copy() for i in range(3)), grads)


X, STARTS = np.ones((10, 2, 4), np.float32), np.array([0, 4, 10])


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"cu_seqlens_q": np.array([0, 4, 9])}, ValueError, "cu_seqlens_q must end with the rows of q, 10, got 9"),
        ({"cu_seqlens_k": np.array([0, 4, 11])}, ValueError, "cu_seqlens_k must end with the rows of k, 10, got 11"),
        ({"cu_seqlens_q": np.array([1, 4, 10])}, ValueError, "cu_seqlens_q must begin with 0, got 1"),
        ({"cu_seqlens_q": np.array([0, 11, 10])}, ValueError, "cu_seqlens_q must not decrease, got 10 after 11"),
        ({"cu_seqlens_q": np.array([0, 10])}, ValueError, "as many elements as cu_seqlens_q, 2, got 3"),
        ({"cu_seqlens_q": np.array([[0, 10]])}, ValueError, r"shape \(sequences \+ 1,\), got \(1, 2\)"),
        ({"cu_seqlens_q": STARTS.astype(np.float32)}, TypeError, "cu_seqlens_q must have dtype int32 or int64"),
        ({"cu_seqlens_k": [0, 4, 10]}, TypeError, "cu_seqlens_k must be a numpy.ndarray"),
        ({"q": X[0]}, ValueError, r"q must have shape \(total, heads, dim\), got \(2, 4\)"),
        ({"out": X[:5].copy()}, ValueError, r"out must have shape \(10, 2, 4\), got \(5, 2, 4\)"),
        ({"dropout": 0.5}, ValueError, "seed must be given"),
    ],
)
def test_bad_calls(change, kind, words):
    given = {"q": X, "k": X, "v": X, "cu_seqlens_q": STARTS, "cu_seqlens_k": STARTS, **change}
    with pytest.raises(kind, match=f"attention_varlen: .*{words}"):
        nf.attention_varlen(**given)
