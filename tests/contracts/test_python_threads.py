"""Several threads of Python at once: on one object that changes, and on a Python without a GIL."""

import copy
import sys
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

import numformer as nf
import numpy as np
import pytest
from capsules import Old, Producer
from processes import answer

free_threaded = pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="of a Python without a GIL")


@pytest.fixture(autouse=True)
def often():
    """With the GIL, threads take turns 1000 times as often as they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work: Callable[[int], None], threads: int = 8) -> None:
    """Run work(0), work(1), ... side by side; what one raises is raised here."""
    barrier, errors = threading.Barrier(threads), []

    def run(me: int) -> None:
        barrier.wait(60)
        try:
            work(me)
        except BaseException as error:
            errors.append(error)

    all_threads = [threading.Thread(target=run, args=(me,), daemon=True) for me in range(threads)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread did not come back"
    if errors:
        raise errors[0]


@free_threaded
@pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled"), reason="cannot tell")
def test_import_leaves_the_gil_off():
    code = "import sys, numformer as nf, numformer.models, numformer.nn; print(sys._is_gil_enabled())"
    assert answer(code, PYTHON_GIL="") == "False"


class Late:
    """An array that says when it is asked for, and waits before it answers."""

    def __init__(self, array: Any) -> None:
        self.array, self.asked, self.go = array, threading.Event(), threading.Event()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.asked.set()
        assert self.go.wait(60)
        return self.array


def test_a_cache_is_for_one_thread_at_a_time():
    cache, x = nf.KVCache(), np.ones((1, 2, 1, 4), np.float32)
    cache.append(x, x)
    late = Late(x)
    thread = threading.Thread(target=cache.append, args=(late, x), daemon=True)
    thread.start()
    assert late.asked.wait(60)
    for call in (lambda: cache.append(x, x), lambda: cache.select(np.array([0]))):
        with pytest.raises(RuntimeError, match=r"KVCache: another thread is changing it; use one cache for each"):
            call()
    assert cache.length == 1
    late.go.set()
    thread.join(60)
    assert cache.length == 2
    with pytest.raises(ValueError, match="KVCache: "):  # an error lets it go
        cache.append(x, x[0])
    with pytest.raises(ValueError, match=r"KVCache\.select: "):
        cache.select(np.array([7]))
    again = copy.deepcopy(cache)
    keys, _ = cache.append(x, x)
    assert keys.shape[2] == cache.length == 3 and again.length == 2 and again.append(x, x)[0].shape[2] == 3


@pytest.mark.parametrize("window", [None, 3])
def test_threads_that_fight_for_a_cache(window):
    """Each call is done whole or raises: as many positions as calls that came back."""
    cache, done = nf.KVCache(1, window=window), [0] * 8

    def work(me: int) -> None:
        x = np.full((2, 1, 1, 8), me, np.float32)
        for i in range(300):
            try:
                if i % 10 == 9 and cache.length:
                    cache.select(np.array([1, 0]))
                else:
                    cache.append(x, x)
                    done[me] += 1
            except RuntimeError as error:
                if "another thread is changing it" not in str(error):
                    raise

    at_once(work)
    assert cache.length == sum(done) > 0
    keys, values = cache.append(np.zeros((2, 1, 1, 8), np.float32), np.zeros((2, 1, 1, 8), np.float32))
    assert keys.shape[2] == (sum(done) + 1 if window is None else min(sum(done), window) + 1)
    assert np.isin(keys, range(8)).all() and (keys == values).all()


@pytest.mark.parametrize("kind", [Producer, Old])
def test_one_thread_gets_a_capsule(kind):
    for _ in range(50):
        producer = kind(np.arange(6.0))
        capsule, got = producer.capsule(), []

        def work(me: int, capsule: Any = capsule, got: list[Any] = got) -> None:
            try:
                got.append(nf.from_dlpack(capsule))
            except ValueError as error:
                if "used already" not in str(error):
                    raise

        at_once(work, 4)
        assert len(got) == 1 and (got[0] == np.arange(6.0)).all()
        got.clear()
        assert producer.deleted == 1


def test_one_profile_at_a_time():
    """Those that could not begin say so; the others recorded their own calls, with the names of ranges."""
    recorded = []

    def work(me: int) -> None:
        x = np.ones((4, 4), np.float32)
        for i in range(30):
            try:
                with nf.profile() as p, nf.profile.range(f"of {me}, {i}"):
                    nf.softmax(x)
            except RuntimeError as error:
                if "another profile is on" not in str(error):
                    raise
                continue
            labels = p.ranges()["layer"].tolist()
            assert any(label.endswith(f"of {me}, {i}") for label in labels), labels
            recorded.append(i)

    at_once(work)
    assert recorded
    with nf.profile() as p:
        nf.softmax(np.ones((4, 4), np.float32))
    assert p.records()["name"].tolist() == ["softmax"]


def test_lists_that_change_during_a_call():
    """An update reads its lists once; what leaves them meanwhile lives as long as the call."""
    values = [np.ones(64, np.float32) for _ in range(8)]
    grads = [np.ones(64, np.float32) for _ in range(8)]
    end = threading.Event()

    def work(me: int) -> None:
        if me == 0:
            try:
                for _ in range(300):
                    nf.sgd_update(values, grads, None, lr=0.0)
            finally:
                end.set()
            return
        while not end.is_set():
            for i in range(8):
                values[i], grads[i] = np.ones(64, np.float32), np.ones(64, np.float32)

    at_once(work, 4)
    assert all((x == 1).all() for x in values)


def test_first_use_from_many_threads():
    """What is loaded or looked up at a first use: lazy modules, bfloat16's type, the number of threads."""
    code = """
    import threading
    import numpy as np, numformer as nf
    barrier, got = threading.Barrier(16), []
    def work(me):
        barrier.wait(60)
        import ml_dtypes
        x = np.ones((8, 8), ml_dtypes.bfloat16)
        got.append((float(nf.matmul(x, x).sum()), nf.nn.Linear.__name__, nf.models.GPT.__name__, nf.get_num_threads()))
    threads = [threading.Thread(target=work, args=(me,)) for me in range(16)]
    for t in threads: t.start()
    for t in threads: t.join(100)
    print(len(got), len(set(got)), *got[0][:3])
    """
    assert answer(code) == "16 1 512.0 Linear GPT"
