"""Memory that runs out at each allocation of a call: MemoryError, nothing leaked, and the next call is right."""

import gc
import zlib

import numformer as nf
import numpy as np
import pytest
from arrays import same
from cases import CASES
from conftest import SEED
from numformer import _core

MANY = 2**40


@pytest.fixture(autouse=True)
def disarm():
    yield
    _core.pool_fail_after(-1)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_every_allocation_of_a_call(case, count, threads):
    threads(count)
    run = CASES[case](np.random.default_rng([SEED, zlib.crc32(case.encode())]), np.float32)
    want = run()
    _core.pool_fail_after(MANY)
    run()
    allocations = MANY - _core.pool_fail_after(-1)
    if not allocations:
        assert case == "updates", "all others have large results"
        return
    gc.collect()
    before = nf.info()["pool"]["bytes_in_use"]
    for number in range(allocations):
        _core.pool_fail_after(number)
        with pytest.raises(MemoryError):
            run()
        assert _core.pool_fail_after(-1) == -1, "it was reached"
        assert nf.info()["pool"]["bytes_in_use"] == before, f"allocation {number} of {allocations}"
    assert same(run(), want)


def test_a_model_trains_on(rng):
    """A step that ran out of memory in the middle can be taken again."""
    from numformer.models import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=50, context=64, layers=1, heads=2, width=64), rng=0)
    ids = rng.integers(0, 50, (8, 65))

    def step():
        model.zero_grad()
        loss, backward = model.loss((ids[:, :-1], ids[:, 1:]))
        backward()
        return loss, *(g.copy() for g in model.gradients().values())

    want = step()
    _core.pool_fail_after(MANY)
    step()
    allocations = MANY - _core.pool_fail_after(-1)
    assert allocations > 5
    for number in range(0, allocations, max(1, allocations // 10)):
        _core.pool_fail_after(number)
        with pytest.raises(MemoryError):
            step()
        _core.pool_fail_after(-1)
        assert same(step(), want)


def test_impossible_sizes():
    with pytest.raises((MemoryError, ValueError)):
        nf.ops.memory.empty((2**40, 2**40), np.float32)
    with pytest.raises(MemoryError):
        nf.ops.memory.empty((2**46,), np.float32)
    q = np.broadcast_to(np.float32(1), (2**31, 2**20))
    with pytest.raises((MemoryError, ValueError)):
        nf.relu(q)
