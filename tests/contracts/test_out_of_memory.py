"""Memory that runs out at any allocation of a call: MemoryError, nothing kept, and the next call is right."""

import gc
import inspect
import itertools
import zlib

import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, name, same
from cases import CASES
from conftest import SEED
from numformer import _core
from numformer.ops import dispatch

# What is no kernel: settings, measuring, the profiler, exchange of arrays.
NO_KERNELS = {
    "as_array",
    "available_processors",
    "cache_sizes",
    "ceiling_bandwidth",
    "ceiling_gflops",
    "dlpack_capsule",
    "empty",
    "empty_pool",
    "explain",
    "explained",
    "fork_join_ns",
    "from_dlpack",
    "get_num_threads",
    "has_threads",
    "isa_available",
    "pool_fail_after",
    "pool_reset_peak",
    "pool_statistics",
    "processor_quota",
    "profile_clear",
    "profile_enter",
    "profile_leave",
    "profile_snapshot",
    "profile_start",
    "profile_stop",
    "set_num_threads",
    "set_pool_limit",
}


def built(case, dtype):
    return CASES[case](np.random.default_rng([SEED, zlib.crc32(case.encode())]), dtype)


@pytest.fixture
def every_allocation():
    """Call with the first allocation failing, then with the second, until none is left that could; how many failed."""

    def run(call, want):
        gc.collect()
        before = nf.info()["pool"]["bytes_in_use"]
        for n in itertools.count():
            _core.pool_fail_after(n)
            try:
                result = call()
                failed = False
            except MemoryError:
                failed = True
            left = _core.pool_fail_after(-1)
            assert failed == (left < 0), f"allocation {n} failed, and the call gave a result"
            if not failed:
                assert same(result, want)
                return n
            assert nf.info()["pool"]["bytes_in_use"] == before, f"allocation {n} failed, and memory was kept"
            if n < 3 or n % 7 == 0:
                assert same(call(), want), f"after a call whose allocation {n} failed"
            assert n < 1000

    yield run
    _core.pool_fail_after(-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", CASES)
def test_every_allocation(case, dtype, threads, every_allocation):
    run = built(case, dtype)
    for count in (1, 3):
        threads(count)
        want = run()
        assert every_allocation(run, want) > 0, "nothing of this case comes from the pool"


def test_every_kernel_has_a_case(monkeypatch):
    kernels = {f for f in dir(_core) if inspect.isbuiltin(getattr(_core, f))} - NO_KERNELS
    assert len(kernels) > 30
    called = set()

    def watched(kernel, function):
        return lambda *args, **options: (called.add(kernel), function(*args, **options))[1]

    for kernel in kernels:
        for owner in (_core, dispatch.core):  # which calls go through
            if hasattr(owner, kernel):
                monkeypatch.setattr(owner, kernel, watched(kernel, getattr(owner, kernel)))
    for case in CASES:
        built(case, np.float32)()
    assert called == kernels


def test_no_memory_for_a_result_of_our_own(every_allocation):
    want = _core.empty((1 << 15,), np.float32).nbytes
    assert every_allocation(lambda: _core.empty((1 << 15,), np.float32).nbytes, want) == 1


def test_more_memory_than_there_is():
    """More than addresses reach, so that no system promises it."""
    column = np.ones((1 << 23, 1), np.float32)
    with pytest.raises(MemoryError):
        nf.matmul(column, column[: 1 << 22].T)
    with pytest.raises(MemoryError):
        nf.relu(np.broadcast_to(np.float32(1), (1 << 34, 1 << 12)))
