"""Attention's kernels for a GPU, run on the host, beside their twin: values, gradients, what must not be read."""

import cuda_host
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, bits, heavy, name, normal
from attention_judge import inputs
from cuda_attention import FEW, judge, run, run_backward
from numformer import reference
from tolerance import check, rounded, working

pytestmark = pytest.mark.usefixtures("fragments")


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("causal", [False, True, "top_left"])
def test_lengths(gpu, rng, dtype, causal):
    for n, m in ((1, 1), (7, 65), (33, 16), (70, 40), (rng.integers(1, 90), rng.integers(1, 90)), (5, 0), (0, 5)):
        q, k, v, dout = inputs(rng, dtype, lead=(1,), n=n, m=m, d=int(rng.choice([8, 16, 20])))
        judge(gpu, q, k, v, dout, f"N={n}, M={m}, causal={causal}", causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("d", "dv"), [(1, 1), (7, 7), (64, 64), (65, 33), (128, 96), (5, 130), (256, 256)])
def test_head_dimensions(gpu, rng, dtype, d, dv):
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=19, m=37, d=d, dv=dv)
    judge(gpu, q, k, v, dout, f"D={d}, Dv={dv}", causal=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(("d", "dv"), [(257, 300), (72, 520), (520, 9), (1024, 1024)])
def test_wide_heads(gpu, rng, dtype, d, dv):
    """Wider than what a block holds at once: in chunks of columns."""
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=2, kv_heads=1, n=19, m=21, d=d, dv=dv)
    bias = normal(rng, 2, 1, 21, dtype=dtype)
    judge(gpu, q, k, v, dout, f"D={d}, Dv={dv}", causal=True, bias=bias, grads=("bias",))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_what_is_not_seen_of_wide_heads_reaches_nothing(gpu, rng, dtype):
    q, k, v, dout = inputs(rng, dtype, lead=(), n=20, m=20, d=270, dv=300)
    mask = np.ones((20, 20), bool)
    mask[:, 3] = mask[7] = False
    poison = {"q": q.copy(), "k": k.copy(), "v": v.copy(), "dout": dout.copy()}
    poison["k"][:, 3, 260], poison["v"][:, 3, 290] = np.nan, np.inf
    poison["q"][:, 7, 260], poison["dout"][:, 7, 290] = np.inf, np.nan
    judge(gpu, q, k, v, dout, "poison", mask=mask, poison=poison)


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "lead"), [(6, 2, (2,)), (4, 1, ()), (2, 2, (2, 1, 2)), (2, 2, (0,)), (0, 1, (1,))]
)
def test_heads_share_keys(gpu, rng, dtype, heads, kv_heads, lead):
    q, k, v, dout = inputs(rng, dtype, lead=lead, heads=heads, kv_heads=kv_heads, n=21, m=37)
    judge(gpu, q, k, v, dout, f"{heads} heads over {kv_heads}", causal=True)


@pytest.mark.parametrize("dtype", FEW, ids=name)
def test_two_axes_are_one_head(gpu, rng, dtype):
    q, k, v, dout = (normal(rng, *shape, dtype=dtype) for shape in ((11, 8), (15, 8), (15, 6), (11, 6)))
    judge(gpu, q, k, v, dout, "two axes")


@pytest.mark.parametrize("dtype", FEW, ids=name)
def test_strides(gpu, rng, dtype):
    """Rows apart, heads between the rows (as a layer has them), reversed batch, broadcast keys."""
    q, k, v, dout = (normal(rng, 2, 30, 3, 40, dtype=dtype)[::-1, :, :, 3:27].swapaxes(1, 2) for _ in range(4))
    k = np.broadcast_to(k[:1], k.shape)
    out, lse = (np.empty((2, 30, 3, 24), dtype).swapaxes(1, 2), np.empty((2, 3, 30), np.float32))
    one = {"kernel": "mma.sync"}  # that of compute capability 9.0 does not take these strides
    gpu.attention(out, lse, q, k, v, one, scratch=True)
    want = run(gpu, *map(np.ascontiguousarray, (q, k, v)), **one)
    assert bits(out) == bits(want[0]) and bits(lse) == bits(want[1])
    dq, dk, dv = (np.empty((2, 30, 3, 24), dtype).swapaxes(1, 2) for _ in range(3))
    gpu.attention_backward(dq, dk, dv, dout, q, k, v, out, lse, None, one, {}, scratch=True)
    want = run_backward(gpu, *map(np.ascontiguousarray, (dout, q, k, v)), *want, **one)
    assert all(bits(a) == bits(b) for a, b in zip((dq, dk, dv), want, strict=False))


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize("window", [(0, 0), (3, 0), (None, 2), (5, None), (40, 40), (0, 3)])
def test_windows(gpu, rng, dtype, window):
    for n, m in ((20, 80), (80, 20), (70, 70)):
        q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=n, m=m)
        causal = [False, True, "top_left"][rng.integers(3)]
        judge(gpu, q, k, v, dout, f"N={n}, M={m}, window={window}, causal={causal}", window=window, causal=causal)


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize("shape", [(2, 3, 18, 70), (2, 1, 18, 70), (18, 70), (1, 70), (18, 1), (2, 1, 1, 70), (1, 1)])
def test_masks(gpu, rng, dtype, shape):
    q, k, v, dout = inputs(rng, dtype, heads=3, kv_heads=3, n=18, m=70)
    mask = rng.random(shape) < 0.6
    judge(gpu, q, k, v, dout, f"mask {shape}", mask=mask)
    judge(gpu, q, k, v, dout, f"mask {shape}, causal", mask=np.broadcast_to(mask, (2, 3, 18, 70)), causal=True)


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize("more", [{}, {"causal": True}, {"window": (90, 70)}], ids=str)
def test_masks_of_whole_tiles(gpu, rng, dtype, more):
    """Tiles that are empty, whole, and neither."""
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=2, kv_heads=1, n=130, m=200, d=8)
    mask = rng.integers(0, 2, (2, 3, 1, 4, 1)).astype(bool) + np.zeros((2, 3, 64, 4, 64), bool)
    mask = mask.reshape(2, 192, 256)[:, :130, :200]
    mask[:, rng.integers(0, 130, 2), rng.integers(0, 200, 2)] ^= True
    judge(gpu, q, k, v, dout, f"tiles, {more}", mask=mask, **more)


@cuda_host.stand_in
def test_tiles_that_a_mask_empties_cost_nothing(core, gpu, rng):
    """The warps meet as often as if only the keys were there that the mask leaves: a whole tile takes no masking."""
    q, k, v, dout = inputs(rng, DTYPES[3], lead=(), heads=1, kv_heads=1, n=64, m=256, d=16)
    mask = np.broadcast_to(np.arange(256) < 64, (64, 256))
    found = []
    for keys, options in ((slice(None), {"mask": mask}), (slice(64), {})):
        given = q, np.ascontiguousarray(k[:, keys]), np.ascontiguousarray(v[:, keys])
        before = core.warp_meetings()
        out, lse = run(gpu, *given, **options)
        forward = core.warp_meetings()
        dq, dk, dv, _ = run_backward(gpu, dout, *given, out, lse, **options)
        assert not dk[:, 64:].any() and not dv[:, 64:].any()
        counts = forward - before, core.warp_meetings() - forward
        found.append((counts, *map(bits, (out, lse, dq, dk[:, :64], dv[:, :64]))))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", FEW, ids=name)
def test_rows_that_see_nothing(gpu, rng, dtype):
    q, k, v, dout = inputs(rng, dtype, lead=(), n=70, m=150, d=8)
    mask = np.zeros((70, 150), bool)
    mask[:20, 140:] = True
    mask[20:30, 33:35] = True  # and the last rows see nothing
    judge(gpu, q, k, v, dout, "late keys", mask=mask)
    out, lse = run(gpu, q, k, v, mask=mask)
    assert not out[:, 30:].any() and np.isneginf(lse[:, 30:]).all()
    assert not run_backward(gpu, dout, q, k, v, out, lse, mask=mask)[0][:, 30:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("options", ["bias", "bias_rows", "softcap", "alibi", "sinks", "dropout", "all"])
def test_options(gpu, rng, dtype, options):
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=30, m=45)
    wide = lambda *shape: normal(rng, *shape, dtype=rng.choice([dtype, working(dtype)]))
    bias = wide(2, 1, 30, 45)
    bias[rng.random(bias.shape) < 0.2] = -np.inf
    every = {
        "bias": {"bias": bias},
        "bias_rows": {"bias": wide(4, 1, 45)},
        "softcap": {"softcap": 2.0, "scale": 0.7},
        "alibi": {"alibi_slopes": np.abs(wide(4))},
        "sinks": {"sinks": wide(4)},
        "dropout": {"dropout": 0.3, "seed": tuple(rng.integers(0, 2**32 - 2, 4).tolist())},
    }
    chosen = {k: v for each in every.values() for k, v in each.items()} if options == "all" else every[options]
    grads = tuple(which for which in ("bias", "sinks") if which in chosen)
    causal = [False, True, "top_left"][rng.integers(3)]
    dlse = normal(rng, 2, 4, 30, dtype=working(dtype)) if rng.random() < 0.5 else None
    judge(gpu, q, k, v, dout, f"{options}, causal={causal}", dlse=dlse, grads=grads, causal=causal, **chosen)


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize(
    "shape", [(2, 4, 70, 75), (1, 4, 70, 75), (2, 1, 1, 75), (4, 70, 1), (1, 1), (75,), (2, 1, 1, 1), ()]
)
def test_gradient_of_the_bias(gpu, rng, dtype, shape):
    q, k, v, dout = inputs(rng, dtype, heads=4, kv_heads=2, n=70, m=75)
    bias = normal(rng, *shape, dtype=rng.choice([dtype, working(dtype)]))
    judge(gpu, q, k, v, dout, f"bias {shape}", grads=("bias",), bias=np.asarray(bias), softcap=3.0, causal=True)


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("global_rows", [False, True])
def test_global_tokens(gpu, rng, dtype, causal, global_rows):
    q, k, v, dout = inputs(rng, dtype, n=200, m=200, d=8)
    tokens = np.zeros((2, 200), bool)
    tokens[0, [0, 130]] = tokens[1, 70] = True
    options = {"global_tokens": tokens, "global_rows": global_rows, "causal": causal, "window": (5, 9)}
    judge(gpu, q, k, v, dout, f"global tokens, {causal}, {global_rows}", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_what_is_not_seen_reaches_nothing(gpu, rng, dtype):
    """NaN and infinity in keys, values, queries and gradients of rows that are masked out."""
    q, k, v, dout = inputs(rng, dtype, lead=(), n=40, m=90, d=16)
    mask = np.ones((2, 40, 90), bool)
    mask[:, :, [3, 64, 89]] = False
    mask[:, [7, 39]] = False
    poison = {"q": q.copy(), "k": k.copy(), "v": v.copy(), "dout": dout.copy()}
    poison["k"][:, [3, 64]], poison["k"][:, 89] = np.nan, np.inf
    poison["v"][:, [3, 64]], poison["v"][:, 89] = -np.inf, np.nan
    poison["q"][:, 7], poison["q"][:, 39] = np.nan, np.inf
    poison["dout"][:, [7, 39]] = np.nan
    judge(gpu, q, k, v, dout, "poison", mask=mask, poison=poison)


@pytest.mark.parametrize("dtype", FEW, ids=name)
def test_a_nan_reaches_those_who_see_it(gpu, rng, dtype):
    q, k, v, _ = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=40, m=40)
    q[0, 5], v[0, 30] = np.nan, np.nan
    out, lse = run(gpu, q, k, v, causal=True)
    rows = np.isnan(out.astype(np.float32)).all(axis=-1)[0]
    assert np.array_equal(np.flatnonzero(rows), [5, *range(30, 40)])
    assert np.isnan(lse[0, 5]) and np.isfinite(np.delete(lse[0], 5)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_heavy_tails(gpu, rng, dtype):
    q, k, v, dout = inputs(rng, dtype, lead=(1,), n=70, m=70, make=lambda *a, **b: heavy(*a, **b, limit=20.0))
    judge(gpu, q, k, v, dout, "heavy tails", causal=True)


@pytest.mark.parametrize(("d", "n"), [(20, 70), (72, 40)])
def test_tf32_on_request(gpu, rng, monkeypatch, d, n):
    """Of operands with no more bits than TF32 has, products lose nothing: what is left is the rounding of P and dS."""
    few_bits = lambda *shape, **kind: normal(*shape, dtype=DTYPES[3]).astype(np.float32)
    q, k, v, dout = inputs(rng, np.dtype(np.float32), lead=(1,), n=n, m=n + 9, d=d, make=few_bits)
    options = {"causal": True, "window": (50, None)}
    monkeypatch.setattr(tolerance, "of_pairs", lambda dtype, options: 2.0**-11)
    out, lse = run(gpu, q, k, v, tf32=True, **options)
    want_out, want_lse = reference.attention(q, k, v, return_lse=True, **options)
    bound_out, bound_lse = tolerance.attention(q, k, v, q.dtype, **options)
    check(lse, want_lse, rounded(bound_lse, want_lse, lse.dtype), "lse")
    check(out, want_out, rounded(bound_out, want_out, q.dtype), "out")
    assert bits(out) != bits(run(gpu, q, k, v, **options)[0])
    got = run_backward(gpu, dout, q, k, v, out, lse, tf32=True, **options)
    want = reference.attention_backward(dout, q, k, v, out, lse, **options)
    bounds = tolerance.attention_backward(dout, q, k, v, out, lse, q.dtype, **options)
    for which, g, w, bound in zip(("dq", "dk", "dv"), got, want, bounds, strict=False):
        check(g, w, rounded(bound, w, q.dtype), which)


@pytest.mark.parametrize("dtype", FEW, ids=name)
@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_packed_sequences(gpu, rng, dtype, integer):
    """The bits of a sequence are those that it has alone, wherever it is packed."""
    lengths, of_keys = np.array([5, 0, 70, 64, 1]), np.array([9, 3, 80, 0, 65])
    starts, key_starts = (np.concatenate([[0], np.cumsum(x)]).astype(integer) for x in (lengths, of_keys))
    q, dout = (normal(rng, 4, starts[-1], 16, dtype=dtype) for _ in range(2))
    k, v = (normal(rng, 2, key_starts[-1], 16, dtype=dtype) for _ in range(2))
    options = {"causal": True, "sinks": normal(rng, 4, dtype=dtype), "dropout": 0.25, "window": (40, None)}
    seed = (7, 1, 2, 5)
    packed = {**options, "seed": seed, "cu_seqlens_q": starts, "cu_seqlens_k": key_starts}
    out, lse = run(gpu, q, k, v, **packed)
    dq, dk, dv, more = run_backward(gpu, dout, q, k, v, out, lse, grads=("sinks",), **packed)
    dsinks = np.zeros(4)
    for s in range(5):
        rows, keys = slice(*starts[s : s + 2]), slice(*key_starts[s : s + 2])
        mine = [np.ascontiguousarray(x) for x in (dout[:, rows], q[:, rows], k[:, keys], v[:, keys])]
        alone = {**options, "seed": (*seed[:3], seed[3] + s)}
        want = run(gpu, *mine[1:], **alone)
        assert bits(out[:, rows]) == bits(want[0]) and bits(lse[:, rows]) == bits(want[1])
        back = run_backward(gpu, *mine, *want, grads=("sinks",), **alone)
        for got, expected in zip((dq[:, rows], dk[:, keys], dv[:, keys]), back, strict=False):
            assert bits(got) == bits(expected)
        dsinks += back[3]["sinks"].astype(float)
    check(more["sinks"], dsinks, 8 * tolerance.u(dtype) * np.abs(dsinks).max(), "sinks")


def test_bad_calls(core, gpu, rng):
    q, k, v, _ = inputs(rng, np.dtype(np.float32), n=5, m=6, d=8)
    r, u = normal(rng, 2, 10, 8), normal(rng, 2, 8)
    for error, words, arguments, options in (
        (ValueError, "attention: rel's r must have shape \\(2, L, 8\\)", (q, k, v), {"rel": (r[..., :7], u, u, 5)}),
        (TypeError, "attention: rel's u must have dtype float32", (q, k, v), {"rel": (r, u.astype(float), u, 5)}),
        (ValueError, "attention: k must have a last axis of 8", (q, k[..., :5], v), {}),
        (ValueError, "attention: mask must broadcast to", (q, k, v), {"mask": np.ones((4, 6), bool)}),
        (TypeError, "attention: mask must have dtype bool", (q, k, v), {"mask": np.ones((5, 6), np.int32)}),
        (TypeError, "attention: bias must have dtype float32", (q, k, v), {"bias": np.ones((5, 6))}),
        (ValueError, "attention: softcap must be finite and greater than 0", (q, k, v), {"softcap": 0.0}),
        (ValueError, "attention: seed must be given with dropout > 0, got None", (q, k, v), {"dropout": 0.5}),
        (ValueError, "attention: causal must be False, True, 'bottom_right'", (q, k, v), {"causal": "top"}),
        (NotImplementedError, "attention: colour is not there on a device", (q, k, v), {"colour": 1}),
    ):
        with pytest.raises(error, match=words):
            run(gpu, *arguments, **options)
