"""Long random sequences of calls on what keeps state: a cache of keys and values, the pool, the profiler."""

import gc
from typing import Any

import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule
from numformer import _core

QUICK = settings(max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


class CacheOfKeys(RuleBasedStateMachine):
    """What `append` gives back are the newest positions of a plain list, `select` its rows."""

    @initialize(
        capacity=st.integers(0, 9),
        window=st.none() | st.integers(0, 7),
        dtype=st.sampled_from(DTYPES),
        lead=st.sampled_from([(), (3,), (2, 2)]),
    )
    def begin(self, capacity: int, window: int | None, dtype: Any, lead: tuple[int, ...]) -> None:
        self.cache, self.window, self.dtype = nf.KVCache(capacity, window=window), window, dtype
        self.lead, self.next, self.held, self.begun = lead, 0.0, 0, False
        self.keys, self.values = (np.zeros((*lead, 0, size), dtype) for size in (3, 2))

    def _new(self, n: int, size: int) -> Any:
        """Numbers that come once each (bfloat16 counts to 256), so that a position out of place is seen."""
        count = int(np.prod(self.lead)) * n * size
        x = (self.next + np.arange(count)) % 256
        self.next += count
        return x.reshape(*self.lead, n, size).astype(self.dtype)

    @rule(n=st.integers(0, 6), strided=st.booleans())
    def append(self, n: int, strided: bool) -> None:
        k, v = self._new(n, 3), self._new(n, 2)
        given = (np.repeat(x, 2, axis=-1)[..., ::2] if strided else x for x in (k, v))
        keys, values = self.cache.append(*given)
        kept = self.held if self.window is None else min(self.held, self.window)
        for name, got, new in (("keys", keys, k), ("values", values, v)):
            before = getattr(self, name)
            now = np.concatenate([before, new], axis=-2)
            setattr(self, name, now)
            want = now[..., now.shape[-2] - kept - n :, :]
            assert got.dtype == self.dtype and got.shape == want.shape and (got == want).all(), name
        self.held, self.begun = kept + n, True

    @precondition(lambda self: self.lead)
    @rule(data=st.data())
    def select(self, data: Any) -> None:
        rows = data.draw(st.lists(st.integers(0, self.lead[0] - 1), min_size=1, max_size=4))
        self.cache.select(np.array(rows))
        if self.begun:  # there are no rows before, afterwards there are, of no positions too
            self.keys, self.values = self.keys[rows], self.values[rows]
            self.lead = (len(rows), *self.lead[1:])

    @rule(which=st.sampled_from(["size", "dtype", "batch", "count"]))
    def a_wrong_append_changes_nothing(self, which: str) -> None:
        k, v = np.zeros((*self.lead, 1, 3), self.dtype), np.zeros((*self.lead, 1, 2), self.dtype)
        if which == "count":
            v = np.zeros((*self.lead, 2, 2), self.dtype)
        elif not self.cache.length:
            return
        elif which == "size":
            v = np.zeros((*self.lead, 1, 5), self.dtype)
        elif which == "dtype":
            k, v = (x.astype(np.float32 if self.dtype == np.float64 else np.float64) for x in (k, v))
        else:
            k, v = k[None], v[None]
        with pytest.raises(ValueError, match="KVCache: "):
            self.cache.append(k, v)

    @invariant()
    def length(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.length == self.keys.shape[-2]


def capacity_of(size: int) -> tuple[int, int]:
    """The least and the most that the pool may take for so many bytes.

    An eighth is the step between classes, and a free block may be a quarter larger.
    """
    step = max(256, size + size // 8 + 64)
    return size, step + step // 4


class Pool(RuleBasedStateMachine):
    """Results come from the pool and go back to it: its counters are those of the arrays that live."""

    arrays = Bundle("arrays")

    def __init__(self) -> None:
        super().__init__()
        gc.collect()
        self.limit = self.before = nf.info()["pool"]["limit"]
        nf.empty_pool()
        _core.pool_reset_peak()
        self.in_use = nf.info()["pool"]["bytes_in_use"]
        self.alive: dict[int, tuple[Any, float]] = {}
        self.count = 0

    def teardown(self) -> None:
        self.alive.clear()
        assert nf.info()["pool"]["bytes_in_use"] == self.in_use, "what was taken was given back"
        nf.set_pool_limit(self.before)
        nf.empty_pool()

    def _keep(self, array: Any, value: float) -> int:
        self.count += 1
        self.alive[self.count] = array, value
        return self.count

    @rule(target=arrays, kib=st.integers(1, 900), value=st.floats(0, 9, width=32))
    def call(self, kib: int, value: float) -> int:
        return self._keep(nf.relu(np.full(kib * 256, value, np.float32)), value)

    @rule(target=arrays, rows=st.integers(1, 300), value=st.integers(0, 3))
    def product(self, rows: int, value: int) -> int:
        """With scratch beside the result."""
        x = np.full((rows, 64), value, np.float32)
        return self._keep(nf.matmul(x, np.ones((64, 512), np.float32)), 64.0 * value)

    @rule(array=consumes(arrays))
    def drop(self, array: int) -> None:
        del self.alive[array]

    @rule(target=arrays, array=consumes(arrays))
    def keep_a_view(self, array: int) -> int:
        whole, value = self.alive.pop(array)
        return self._keep(whole.reshape(-1)[1::3], value)

    @rule()
    def empty(self) -> None:
        nf.empty_pool()
        assert nf.info()["pool"]["bytes_cached"] == 0

    @rule(limit=st.sampled_from([0, 100_000, 1 << 20, 1 << 31]))
    def set_limit(self, limit: int) -> None:
        nf.set_pool_limit(limit)
        self.limit = limit

    @rule()
    def a_wrong_call_takes_nothing(self) -> None:
        with pytest.raises(ValueError, match="b must"):
            nf.matmul(np.ones((300, 300), np.float32), np.ones((5, 300), np.float32))

    @rule(count=st.integers(0, 3))
    def no_memory(self, count: int) -> None:
        """An allocation that fails leaves nothing behind."""
        before = nf.info()["pool"]["bytes_in_use"]
        _core.pool_fail_after(count)
        try:
            nf.matmul(np.ones((300, 300), np.float32), np.ones((300, 300), np.float32))
        except MemoryError:
            pass
        finally:
            _core.pool_fail_after(-1)
        assert nf.info()["pool"]["bytes_in_use"] == before

    @invariant()
    def counters(self) -> None:
        now = nf.info()["pool"]
        owned: dict[int, int] = {}
        for array, _ in self.alive.values():
            while isinstance(array.base, np.ndarray):
                array = array.base
            if array.base is not None:
                owned[id(array)] = array.nbytes
        least, most = (sum(bounds) for bounds in zip(*map(capacity_of, [0, *owned.values()]), strict=True))
        assert least <= now["bytes_in_use"] - self.in_use <= most
        assert 0 <= now["bytes_cached"] <= now["limit"] == self.limit
        assert now["peak_bytes"] >= now["bytes_in_use"]

    @invariant()
    def contents(self) -> None:
        for array, value in self.alive.values():
            assert (array == np.float32(value)).all(), "memory in use was given to another"


class Profiler(RuleBasedStateMachine):
    """One profile at a time, whose records are the calls that were made while it recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.profile: Any = None
        self.ranges: list[Any] = []

    def teardown(self) -> None:
        self.leave_ranges()
        if self.profile is not None:
            self.profile.__exit__(None, None, None)

    @precondition(lambda self: self.profile is None)
    @rule(
        capacity=st.integers(1, 20),
        skip=st.integers(0, 2),
        warmup=st.integers(0, 2),
        record=st.none() | st.integers(1, 2),
    )
    def enter(self, capacity: int, skip: int, warmup: int, record: int | None) -> None:
        self.leave_ranges()  # those that are open when it begins are not seen
        self.schedule = skip, warmup, record
        self.capacity, self.steps, self.calls, self.labels = capacity, 0, [], 0
        self.profile = nf.profile(capacity, skip=skip, warmup=warmup, record=record)
        assert self.profile.__enter__() is self.profile

    def recording(self) -> bool:
        if self.profile is None:
            return False
        skip, warmup, record = self.schedule
        return self.steps >= skip and (record is None or self.steps < skip + warmup + record)

    @rule(n=st.integers(1, 9))
    def call(self, n: int) -> None:
        nf.relu(np.ones(n, np.float32))
        if self.recording():
            self.calls.append((n, "/".join(label for label, seen, _ in self.ranges if seen)))

    @precondition(lambda self: len(self.ranges) < 3)
    @rule(label=st.sampled_from("abc"))
    def enter_range(self, label: str) -> None:
        inner = nf.profile.range(label)
        inner.__enter__()
        self.ranges.append((label, self.recording(), inner))

    @precondition(lambda self: self.ranges)
    @rule()
    def leave_range(self) -> None:
        *_, inner = self.ranges.pop()
        inner.__exit__(None, None, None)

    def leave_ranges(self) -> None:
        while self.ranges:
            self.leave_range()

    @precondition(lambda self: self.profile is not None)
    @rule()
    def step(self) -> None:
        self.leave_ranges()
        self.profile.step()
        self.steps += 1
        skip, warmup, _ = self.schedule
        if self.steps == skip + warmup:
            self.calls = []

    @precondition(lambda self: self.profile is not None)
    @rule()
    def a_second_one_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="this profile is on already"):
            self.profile.__enter__()
        if self.recording():
            with pytest.raises(RuntimeError, match="another profile is on"):
                nf.profile().__enter__()

    @precondition(lambda self: self.profile is not None)
    @rule()
    def leave(self) -> None:
        self.leave_ranges()
        profile, self.profile = self.profile, None
        profile.__exit__(None, None, None)
        if self.steps >= self.schedule[0]:
            self.judge(profile)
        else:
            with pytest.raises(RuntimeError, match="nothing was recorded"):
                profile.records()
        with pytest.raises(RuntimeError, match="belongs inside the with block"):
            profile.step()

    @precondition(lambda self: self.profile is not None and self.steps >= self.schedule[0])
    @rule()
    def look(self) -> None:
        self.judge(self.profile)

    def judge(self, profile: Any) -> None:
        records = profile.records()
        got = list(zip(records["shape"][:, 0].tolist(), records["layer"].tolist(), strict=True))
        assert got == self.calls[-self.capacity :]
        assert profile.dropped == len(self.calls) - len(got)
        sums = profile.recording.sums
        assert sums["calls"].sum() == len(self.calls) and sums["flops"].sum() == sum(n for n, _ in self.calls)


for machine in (CacheOfKeys, Pool, Profiler):
    machine.TestCase.settings = QUICK
TestCacheOfKeys, TestPool, TestProfiler = CacheOfKeys.TestCase, Pool.TestCase, Profiler.TestCase
