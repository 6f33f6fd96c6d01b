"""Who owns a result, and what the pool keeps."""

import gc
import sys

import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, name
from numformer import _core
from numformer.ops.memory import empty
from processes import answer


@pytest.fixture
def pool():
    """The pool's counters; its limit is put back."""
    limit = nf.info()["pool"]["limit"]
    gc.collect()
    nf.empty_pool()
    yield lambda: nf.info()["pool"]
    nf.set_pool_limit(limit)
    nf.empty_pool()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_large_results_belong_to_the_pool(dtype):
    edge = 65536 // dtype.itemsize
    for f in (nf.relu, lambda x: nf.add(x, x), nf.softmax, lambda x: nf.matmul(x, np.ones((1, 1), dtype))):
        large, small = f(np.ones((edge, 1), dtype)), f(np.ones((edge - 1, 1), dtype))
        assert large.base is not None and small.base is None
        assert large.ctypes.data % 64 == 0
        for result in (large, small):
            assert result.flags.writeable and result.flags.c_contiguous and type(result) is np.ndarray


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_empty(dtype, pool):
    before = pool()["bytes_in_use"]
    small, large = empty((2, 3), dtype), empty((300, 0x200), dtype)
    assert (small.shape, large.shape) == ((2, 3), (300, 0x200))
    for array in (small, large):
        assert array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable
    assert pool()["bytes_in_use"] >= before + large.nbytes


def test_pool_keeps_and_gives_back(pool):
    x = np.ones((1024, 1024), np.float32)
    before = pool()
    y = nf.relu(x)
    held = pool()
    assert held["bytes_in_use"] >= before["bytes_in_use"] + x.nbytes
    assert held["peak_bytes"] >= held["bytes_in_use"]
    view = y[5:]
    del y
    assert pool()["bytes_in_use"] == held["bytes_in_use"], "a view keeps its memory"
    assert view[0, 0] == 1.0
    del view
    freed = pool()
    assert freed["bytes_in_use"] == before["bytes_in_use"]
    assert freed["bytes_cached"] >= x.nbytes
    again = nf.relu(x)
    assert pool()["bytes_cached"] <= freed["bytes_cached"] - x.nbytes, "cached memory is used again"
    del again
    nf.empty_pool()
    assert pool()["bytes_cached"] == 0


def test_pool_limit(pool):
    x = np.ones((1024, 1024), np.float32)
    nf.set_pool_limit(0)
    y = nf.relu(x)
    del y
    assert pool()["bytes_cached"] == 0 and pool()["limit"] == 0
    nf.set_pool_limit(2 * x.nbytes)
    kept = [nf.relu(x) for _ in range(6)]
    del kept
    assert 0 < pool()["bytes_cached"] <= 2 * x.nbytes
    nf.set_pool_limit(x.nbytes // 2)
    assert pool()["bytes_cached"] <= x.nbytes // 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_kept_memory_gives_way():
    """Where a block has no room beside what the pool keeps, that is given back first; then it is an error."""
    code = """
        import resource
        import numpy as np, numformer as nf
        from numformer import _core
        pool = lambda: nf.info()["pool"]
        first = _core.empty((40 << 20,), np.float32)
        del first
        assert pool()["bytes_cached"] >= 160 << 20
        pages = int(open("/proc/self/statm").read().split()[0])
        room = pages * resource.getpagesize() + (110 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, resource.getrlimit(resource.RLIMIT_AS)[1]))
        second = _core.empty((60 << 20,), np.float32)
        second[::1024] = 1
        assert pool()["bytes_cached"] == 0
        held = pool()["bytes_in_use"]
        assert held >= second.nbytes
        try:
            _core.empty((200 << 20,), np.float32)
        except MemoryError:
            assert pool()["bytes_in_use"] == held and nf.relu(second[:1024])[0] == 1
            print("MemoryError")
    """
    assert answer(code, OMP_NUM_THREADS="1") == "MemoryError"


def test_a_measurement_without_memory(pool, threads):
    """Of the blocks that each thread reads the second is not to be had: the first is given back."""
    threads(2)
    before = pool()["bytes_in_use"]
    _core.pool_fail_after(1)
    try:
        with pytest.raises(MemoryError):
            _core.ceiling_bandwidth(1 << 20, 1)
    finally:
        _core.pool_fail_after(-1)
    assert pool()["bytes_in_use"] == before
    assert _core.ceiling_bandwidth(1 << 20, 1) > 0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_scratch_of_attention(pool, threads, count):
    """Causal, N = 32,768, 8 heads, D 64: scratch of forward and backward is smaller than q.

    A window changes how much is computed, not what is packed, and keeps this short.
    """
    threads(count)
    q = np.full((8, 32768, 64), 0.1, np.float32)
    options = {"causal": True, "window": (64, 0)}

    def scratch(call):
        nf.empty_pool()
        _core.pool_reset_peak()
        returned = call()
        counters = pool()
        return returned, counters["peak_bytes"] - counters["bytes_in_use"]

    (out, lse), forward = scratch(lambda: nf.attention(q, q, q, return_lse=True, **options))
    _, backward = scratch(lambda: nf.attention_backward(out, q, q, q, out, lse, **options))
    # Three threads do not divide 8 heads: the forward packs the keys of all of them, D floats a key, and shares blocks.
    assert 0 < forward < (1.2 if count == 3 else 1) * q.nbytes and 0 < backward < q.nbytes, (
        forward / q.nbytes,
        backward / q.nbytes,
    )


def test_nothing_leaks(pool):
    """After many calls, also wrong ones, the pool holds what it held."""
    x = np.ones((300, 300), np.float32)

    def calls():
        nf.matmul(x, x, save_preactivation=True)
        out, lse = nf.attention(x, x, x, return_lse=True)
        nf.attention_backward(x, x, x, x, out, lse)
        with pytest.raises(ValueError, match="b must"):
            nf.matmul(x, x[:5])

    calls()
    before = pool()["bytes_in_use"]
    for _ in range(50):
        calls()
    assert pool()["bytes_in_use"] == before


def test_inputs_are_only_read(rng):
    x = rng.standard_normal((40, 64)).astype(np.float32)
    x.flags.writeable = False
    nf.attention(x, x, x)
    nf.layer_norm(x, x[0], x[1])
    nf.matmul(x, x.T, bias=x[0, :40].copy(), residual=np.ones((40, 40), np.float32), activation="gelu")
