"""Attention's kernels for compute capability 9.0, run on the host, beside their twin."""

import importlib

import cuda_host
import numpy as np
import pytest
import tolerance
from arrays import DTYPES, bits, heavy, name, normal
from attention_judge import inputs
from cuda_attention import empty_like, run
from numformer import reference
from tolerance import check, rounded

pytestmark = pytest.mark.usefixtures("fragments")

HALVES = DTYPES[2:]


@pytest.fixture
def hopper(core):
    if cuda_host.TRUE:
        if importlib.import_module("cupy").cuda.Device().compute_capability != "90":
            pytest.skip("this GPU is not of compute capability 9.0")
        yield
        return
    core.set_capability(90)
    yield
    core.set_capability(80)


def judge_forward(gpu, q, k, v, what, *, kernel="wgmma", poison=None, **options):
    given = {"q": q, "k": k, "v": v, **(poison or {})}
    out, lse = np.full((*q.shape[:-1], v.shape[-1]), np.nan, q.dtype), np.full(q.shape[:-1], np.nan, np.float32)
    assert gpu.attention(out, lse, *given.values(), options, scratch=True) == kernel
    want_out, want_lse = reference.attention(q, k, v, return_lse=True, **options)
    bound_out, bound_lse = tolerance.attention(q, k, v, q.dtype, **options)
    check(lse, want_lse, rounded(bound_lse, np.nan_to_num(want_lse), lse.dtype), f"lse, {what}")
    check(out, want_out, rounded(bound_out, want_out, q.dtype), f"out, {what}")
    return out, lse


def judge(gpu, q, k, v, dout, what, *, kernel="wgmma", dlse=None, **options):
    """Output, lse and gradients."""
    out, lse = judge_forward(gpu, q, k, v, what, kernel=kernel, **options)
    got = tuple(map(empty_like, (q, k, v)))
    arrays = (*got, dout, q, k, v, out, lse, dlse)
    assert gpu.attention_backward(*arrays, options, {}, scratch=True) == kernel
    want = reference.attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    bounds = tolerance.attention_backward(dout, q, k, v, out, lse, q.dtype, dlse=dlse, **options)
    for which, g, w, bound in zip(("dq", "dk", "dv"), got, want, bounds, strict=True):
        check(g, w, rounded(bound, w, q.dtype), f"{which}, {what}")
    return out, lse, *got


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("causal", [False, True, "top_left"])
def test_lengths(gpu, hopper, rng, dtype, causal):
    """Around the rows of a warpgroup, of a block and of a tile, beyond the ring; rows that see nothing."""
    for n, m in ((1, 1), (64, 128), (65, 129), (130, 60), (20, 700), (rng.integers(1, 200), rng.integers(1, 400))):
        q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=n, m=m, d=int(rng.choice([16, 64, 128])))
        judge(gpu, q, k, v, dout, f"N={n}, M={m}, D={q.shape[-1]}, causal={causal}", causal=causal)
    for n, m in ((5, 0), (0, 5)):
        q, k, v, dout = inputs(rng, dtype, n=n, m=m)
        judge(gpu, q, k, v, dout, f"N={n}, M={m}", kernel="mma.sync", causal=causal)


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize(("d", "dv"), [(8, 8), (40, 72), (64, 64), (64, 128), (96, 24), (128, 128)])
def test_head_dimensions(gpu, hopper, rng, dtype, d, dv):
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=70, m=150, d=d, dv=dv)
    judge(gpu, q, k, v, dout, f"D={d}, Dv={dv}", causal=True)


@pytest.mark.parametrize("window", [(0, 0), (3, 0), (None, 2), (5, None), (140, 130), (0, 200)])
def test_windows(gpu, hopper, rng, window):
    for n, m in ((70, 300), (300, 70), (200, 200)):
        q, k, v, dout = inputs(rng, HALVES[1], lead=(), heads=1, kv_heads=1, n=n, m=m)
        causal = [False, True, "top_left"][rng.integers(3)]
        judge(gpu, q, k, v, dout, f"N={n}, M={m}, window={window}, causal={causal}", window=window, causal=causal)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "lead"), [(6, 2, (2,)), (4, 1, ()), (2, 2, (2, 1, 2)), (2, 2, (0,)), (0, 1, (1,))]
)
def test_heads_share_keys(gpu, hopper, rng, heads, kv_heads, lead):
    q, k, v, dout = inputs(rng, HALVES[1], lead=lead, heads=heads, kv_heads=kv_heads, n=21, m=37)
    nothing = heads == 0 or 0 in lead
    judge(gpu, q, k, v, dout, f"{heads} heads over {kv_heads}", kernel="mma.sync" if nothing else "wgmma")


def test_strides(gpu, hopper, rng):
    """Heads between rows, as a layer has them, and rows of more than is read; what TMA cannot read."""
    memory = normal(rng, 2, 2, 150, 3, 3, 40, dtype=HALVES[1])  # batch twice, row, q k v, head, column
    q, k, v = (memory[:, :, :, which, :, :24].transpose(0, 1, 3, 2, 4) for which in range(3))
    want = judge_forward(gpu, *map(np.ascontiguousarray, (q, k, v)), "contiguous", causal=True)
    assert all(
        bits(a) == bits(b) for a, b in zip(judge_forward(gpu, q, k, v, "strided", causal=True), want, strict=True)
    )
    swapped = [x.swapaxes(0, 1) for x in (q, k, v)]  # no one stride leads through both leading axes
    judge_forward(gpu, *swapped, "two leading axes", kernel="mma.sync")
    shifted = [memory[:, :, :, which, :, 1:25].transpose(0, 1, 3, 2, 4) for which in range(3)]
    judge_forward(gpu, *shifted, "not aligned", kernel="mma.sync")
    wide = np.full((2, 2, 3, 150, 27), np.nan, HALVES[1])  # and rows of the output that begin anywhere
    gpu.attention(wide[..., 1:25], None, q, k, v, {"causal": True}, scratch=True)
    assert bits(wide[..., 1:25]) == bits(want[0]) and np.isnan(wide[..., [0, 25, 26]].astype(np.float32)).all()


@pytest.mark.parametrize("dtype", HALVES, ids=name)
@pytest.mark.parametrize("d", [64, 128])
def test_what_is_not_seen_reaches_nothing(gpu, hopper, rng, dtype, d):
    """NaN and infinity in keys and values of tiles that other rows see; NaN in a query stays in its row."""
    q, k, v, _ = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=200, m=300, d=d)
    q[0, 5] = np.nan
    v[0, 250], k[0, 260] = np.inf, np.nan  # causal: seen from query 150 and 160 on
    out, lse = np.empty(q.shape, dtype), np.empty(q.shape[:-1], np.float32)
    assert gpu.attention(out, lse, q, k, v, {"causal": True}, scratch=True) == "wgmma"
    clean = [x.copy() for x in (q, k, v)]
    clean[0][0, 5] = clean[2][0, 250] = clean[1][0, 260] = 1
    want_out, want_lse = reference.attention(*clean, return_lse=True, causal=True)
    bound_out, bound_lse = tolerance.attention(*clean, dtype, causal=True)
    rows = [i for i in range(150) if i != 5]
    check(lse[:, rows], want_lse[:, rows], rounded(bound_lse, want_lse, lse.dtype)[:, rows], "lse")
    check(out[:, rows], want_out[:, rows], rounded(bound_out, want_out, dtype)[:, rows], "out")
    wide = out.astype(np.float32)
    assert np.isnan(wide[0, 5]).all() and np.isinf(wide[0, 150:160]).all() and np.isnan(wide[0, 160:]).all()
    assert np.isnan(lse[0, 5]) and np.isfinite(lse[0, 150:160]).all() and np.isnan(lse[0, 160:]).all()


def test_heavy_tails(gpu, hopper, rng):
    make = lambda *a, **b: heavy(*a, **b, limit=20.0)
    for dtype in HALVES:
        q, k, v, dout = inputs(rng, dtype, lead=(1,), n=140, m=140, d=64, make=make)
        judge(gpu, q, k, v, dout, "heavy tails", causal=True)


@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_packed_sequences(gpu, hopper, rng, integer):
    """The bits of a sequence are those that it has alone; NaN in another one does not reach it."""
    dtype = HALVES[1]
    lengths, of_keys = np.array([5, 0, 150, 64, 1]), np.array([9, 3, 200, 0, 129])
    starts, key_starts = (np.concatenate([[0], np.cumsum(x)]).astype(integer) for x in (lengths, of_keys))
    q, dout = (normal(rng, 4, starts[-1], 64, dtype=dtype) for _ in range(2))
    k, v = (normal(rng, 2, key_starts[-1], 64, dtype=dtype) for _ in range(2))
    v[:, key_starts[2] + 7] = np.nan
    out, lse = np.full(q.shape, np.nan, dtype), np.full(q.shape[:-1], np.nan, np.float32)
    options = {"causal": True, "window": (100, None)}
    packed = {"cu_seqlens_q": starts, "cu_seqlens_k": key_starts}
    assert gpu.attention(out, lse, q, k, v, {**options, **packed}, scratch=True) == "wgmma"
    got, options_of = tuple(map(empty_like, (q, k, v))), {**options, **packed}
    arrays = (dout, q, k, v, out, lse, None)
    assert gpu.attention_backward(*got, *arrays, options_of, {}, scratch=True) == "wgmma"
    for s in range(5):
        rows, keys = slice(*starts[s : s + 2]), slice(*key_starts[s : s + 2])
        mine = [np.ascontiguousarray(x) for x in (q[:, rows], k[:, keys], v[:, keys], dout[:, rows])]
        alone = run(gpu, *mine[:3], **options)
        assert bits(out[:, rows]) == bits(alone[0]) and bits(lse[:, rows]) == bits(alone[1])
        back = tuple(map(empty_like, mine[:3]))
        gpu.attention_backward(*back, mine[3], *mine[:3], *alone, None, options, {}, scratch=True)
        whole = lengths[s] == 0 or of_keys[s] == 0  # then it goes the other way, and all its gradients are 0
        for g, w in zip((got[0][:, rows], got[1][:, keys], got[2][:, keys]), back, strict=True):
            assert np.array_equal(g, w) if whole else bits(g) == bits(w)
        assert s == 2 or np.isfinite(out[:, rows].astype(np.float32)).all()


def test_gradient_of_the_statistics(gpu, hopper, rng):
    q, k, v, dout = inputs(rng, HALVES[1], lead=(), heads=2, kv_heads=1, n=140, m=150, d=64)
    dlse = normal(rng, 2, 140)
    judge(gpu, q, k, v, dout, "dlse", dlse=dlse, causal=True, window=(60, None))


@pytest.mark.parametrize("d", [64, 128])
def test_backward_of_what_is_not_seen(gpu, hopper, rng, d):
    """NaN and infinity in rows that see nothing, and in keys and values that other rows see."""
    dtype = HALVES[1]
    q, k, v, dout = inputs(rng, dtype, lead=(), heads=1, kv_heads=1, n=150, m=100, d=d)  # queries 0 to 49 see nothing
    clean = judge(gpu, q, k, v, dout, "finite", causal=True)
    q[0, 7], dout[0, 9], dout[0, 40] = np.nan, np.inf, np.nan
    out, lse = run(gpu, q, k, v, causal=True)
    got = tuple(map(empty_like, (q, k, v)))
    assert gpu.attention_backward(*got, dout, q, k, v, out, lse, None, {"causal": True}, {}, scratch=True) == "wgmma"
    assert all(bits(a) == bits(b) for a, b in zip((out, lse, *got), clean, strict=True))
    k[0, 70], v[0, 80] = np.nan, np.inf  # seen from query 120 and 130 on
    dq = empty_like(q)
    gpu.attention_backward(dq, *got[1:], dout, q, k, v, *clean[:2], None, {"causal": True}, {}, scratch=True)
    assert bits(dq[0, :120]) == bits(clean[2][0, :120])
    assert not np.isfinite(dq[0, 120:].astype(np.float32)).any()


def test_which_kernel_runs(gpu, core, hopper, rng):
    q, k, v, _ = inputs(rng, HALVES[1], n=9, m=9, d=64)
    out = np.empty(q.shape, q.dtype)
    which = lambda **options: gpu.attention(out, None, q, k, v, options, scratch=True)
    assert which() == which(kernel="wgmma") == which(causal=True, window=(3, None)) == "wgmma"
    for options in (
        {"kernel": "mma.sync"},
        {"mask": np.ones((9, 9), bool)},
        {"bias": np.zeros((9, 9), np.float32)},
        {"softcap": 3.0},
        {"alibi_slopes": np.ones(2, np.float32)},
        {"sinks": np.ones(2, np.float32)},
        {"dropout": 0.5, "seed": (1, 2, 3, 4)},
        {"global_tokens": np.zeros((2, 9), bool)},
        {"scale": -1.0},
        {"scale": 0.0},
    ):
        assert which(**options) == "mma.sync"
    with pytest.raises(ValueError, match="attention: kernel must not be 'wgmma' for this call"):
        which(kernel="wgmma", softcap=3.0)
    with pytest.raises(ValueError, match=r"attention: kernel must be None, 'mma\.sync' or 'wgmma', got 'best'"):
        which(kernel="best")
    wide = normal(rng, 1, 9, 136, dtype=HALVES[1])
    assert gpu.attention(wide.copy(), None, wide, wide, wide, {}, scratch=True) == "mma.sync"
    single = normal(rng, 1, 9, 64)
    assert gpu.attention(single.copy(), None, single, single, single, {}, scratch=True) == "mma.sync"
    if not cuda_host.TRUE:
        core.set_capability(100)
        assert which() == "mma.sync"
