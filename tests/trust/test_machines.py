"""Long random histories of what has a state: the cache of keys and values, the pool, the profiler."""

import gc
import os

import numformer as nf
import numpy as np
from arrays import same
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

EXAMPLES = int(os.environ.get("NUMFORMER_SOAK_EXAMPLES", "15"))
MACHINE = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)


class Cache(RuleBasedStateMachine):
    """Against a list of all that was appended."""

    @initialize(capacity=st.integers(0, 9), window=st.none() | st.integers(0, 12), seed=st.integers(0, 2**20))
    def begin(self, capacity, window, seed):
        self.cache, self.window = nf.KVCache(capacity, window=window), window
        self.rng = np.random.default_rng(seed)
        self.keys = np.zeros((2, 3, 0, 4), np.float32)
        self.values = np.zeros((2, 3, 0, 5), np.float32)

    @rule(n=st.integers(0, 7))
    def append(self, n):
        batch = self.keys.shape[0]
        k, v = (self.rng.standard_normal((batch, 3, n, size)).astype(np.float32) for size in (4, 5))
        before = self.keys.shape[2] if self.window is None else min(self.keys.shape[2], self.window)
        got_k, got_v = self.cache.append(k, v)
        self.keys = np.concatenate([self.keys, k], 2)
        self.values = np.concatenate([self.values, v], 2)
        held = before + n
        assert same(got_k, self.keys[:, :, self.keys.shape[2] - held :])
        assert same(got_v, self.values[:, :, self.values.shape[2] - held :])
        if self.window is not None:  # what further calls see
            self.keys, self.values = (x[:, :, x.shape[2] - held :] for x in (self.keys, self.values))

    @precondition(lambda self: self.cache.length > 0)
    @rule(data=st.data())
    def select(self, data):
        rows = data.draw(st.lists(st.integers(0, len(self.keys) - 1), min_size=1, max_size=4))
        self.cache.select(np.array(rows))
        self.keys, self.values = self.keys[rows], self.values[rows]

    @precondition(lambda self: self.cache.length > 0)
    @rule(which=st.integers(0, 2))
    def wrong(self, which):
        batch, length = len(self.keys), self.cache.length
        shapes = [((batch + 1, 3, 1, 4), (batch + 1, 3, 1, 5)), ((batch, 3, 1, 9), (batch, 3, 1, 5)), ((4,), (4,))]
        k, v = (np.ones(shape, np.float32) for shape in shapes[which])
        try:
            self.cache.append(k, v)
        except ValueError:
            assert self.cache.length == length
        else:
            raise AssertionError("was taken")


class Pool(RuleBasedStateMachine):
    """Arrays that come and go; each keeps its value, and the counters add up."""

    def __init__(self):
        super().__init__()
        gc.collect()
        nf.empty_pool()
        self.limit = nf.info()["pool"]["limit"]
        self.start = nf.info()["pool"]["bytes_in_use"]
        self.held, self.next = {}, 1.0

    @rule(rows=st.integers(1, 300), width=st.sampled_from([1, 64, 257, 1024]))
    def make(self, rows, width):
        x = np.full((rows, width), self.next, np.float32)
        self.held[self.next] = nf.relu(x)
        self.next += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data):
        del self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def keep_a_part(self, data):
        key = data.draw(st.sampled_from(sorted(self.held)))
        self.held[key] = self.held[key][..., :1]

    @rule()
    def empty(self):
        nf.empty_pool()
        assert nf.info()["pool"]["bytes_cached"] == 0

    @rule(limit=st.sampled_from([0, 10_000, 2**20, 2**26]))
    def bound(self, limit):
        nf.set_pool_limit(limit)

    @rule()
    def compute(self):
        x = np.ones((130, 130), np.float32)
        assert (nf.matmul(x, x) == 130).all()

    @invariant()
    def counters(self):
        pool = nf.info()["pool"]
        mine = [x if x.base is None else x.base for x in self.held.values()]
        assert 0 <= pool["bytes_cached"] <= pool["limit"]
        assert pool["bytes_in_use"] >= self.start + sum(
            x.nbytes for x in mine if x.nbytes >= 65536 and x.base is not None
        )
        assert pool["peak_bytes"] >= pool["bytes_in_use"]
        for value, x in self.held.items():
            assert (x == value).all()

    def teardown(self):
        self.held.clear()
        gc.collect()
        assert nf.info()["pool"]["bytes_in_use"] == self.start
        nf.set_pool_limit(self.limit)


class Profiler(RuleBasedStateMachine):
    """Profiles that begin, end and nest wrongly; ranges; calls that are counted while one is on."""

    def __init__(self):
        super().__init__()
        self.profile, self.calls, self.open = None, 0, []

    @precondition(lambda self: self.profile is None)
    @rule(capacity=st.integers(1, 50))
    def enter(self, capacity):
        self.profile, self.calls, self.capacity = nf.profile(capacity).__enter__(), 0, capacity

    @precondition(lambda self: self.profile is not None)
    @rule()
    def enter_another(self):
        try:
            nf.profile().__enter__()
        except RuntimeError:
            return
        raise AssertionError("two profiles at once")

    @rule(count=st.integers(1, 9))
    def call(self, count):
        x = np.ones((3, 4), np.float32)
        for _ in range(count):
            nf.relu(x)
        self.calls += count

    @precondition(lambda self: len(self.open) < 5)
    @rule(label=st.sampled_from(["a", "b/c", "ü", ""]))
    def begin_range(self, label):
        held = nf.profile.range(label)
        held.__enter__()
        self.open.append(held)

    @precondition(lambda self: self.open)
    @rule()
    def end_range(self):
        self.open.pop().__exit__(None, None, None)

    @precondition(lambda self: self.profile is not None)
    @rule()
    def read(self):
        records = self.profile.records()
        assert len(records) == min(self.calls, self.capacity)
        assert self.profile.dropped == max(0, self.calls - self.capacity)
        assert (records["name"] == "relu").all()
        assert (records["end_ns"] >= records["start_ns"]).all()

    @precondition(lambda self: self.profile is not None)
    @rule()
    def leave(self):
        self.profile.__exit__(None, None, None)
        self.read()
        self.profile = None

    def teardown(self):
        while self.open:
            self.end_range()
        if self.profile is not None:
            self.leave()


TestCache = Cache.TestCase
TestPool = Pool.TestCase
TestProfiler = Profiler.TestCase
for machine in (TestCache, TestPool, TestProfiler):
    machine.settings = MACHINE
