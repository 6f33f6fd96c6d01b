"""One round of each kind. Each asserts what is promised and returns what it measured."""

from __future__ import annotations

import concurrent.futures
import gc
import json
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numformer as nf
import numpy as np
from arrays import DTYPES, same
from cases import CASES
from processes import answer, python

TESTS = Path(__file__).resolve().parents[1]
GUIDED = find_spec("atheris") is not None


def calls(seed: int, dtype: Any = np.float32) -> list[Any]:
    """Return a call of every kernel."""
    return [CASES[case](np.random.default_rng([seed, zlib.crc32(case.encode())]), dtype) for case in CASES]


def python_threads(seed: int, seconds: float, workers: int = 16) -> dict[str, float]:
    """All kernels at once from many threads of Python: the bits that one after another gives."""
    runs = [run for dtype in DTYPES for run in calls(seed, dtype)]
    wants = [run() for run in runs]
    names = [f"{case} {dtype}" for dtype in DTYPES for case in CASES]
    end, wrong, done = time.monotonic() + seconds, [], [0] * workers
    barrier = threading.Barrier(workers)

    def work(me: int) -> None:
        order = random.Random(seed * workers + me)
        barrier.wait(60)
        while time.monotonic() < end and not wrong:
            which = order.randrange(len(runs))
            try:
                if not same(runs[which](), wants[which]):
                    wrong.append(names[which])
            except Exception as error:
                wrong.append(f"{names[which]}: {error!r}")
            done[me] += 1

    threads = [threading.Thread(target=work, args=(me,), daemon=True) for me in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
        assert not thread.is_alive(), "a call did not come back"
    assert not wrong, wrong
    return {"threads": workers, "calls": sum(done)}


def small_arrays(seed: int) -> list[list[Any]]:
    """Return arrays of each dtype in a few small shapes."""
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(shape).astype(dtype) for shape in ((1, 3), (4, 4), (7, 16))] for dtype in DTYPES]


def small_kinds(arrays: list[list[Any]]) -> list[Callable[[Any], Any]]:
    """Return kinds of calls, each of an array with two axes."""
    cache = nf.KVCache(4, window=8)

    def wrong() -> None:
        try:
            nf.matmul(arrays[0][0], arrays[0][2])
        except ValueError:
            return
        raise AssertionError("a wrong shape was taken")

    def attention(x: Any) -> None:
        out, lse = nf.attention(x, x, x, causal=True, return_lse=True)
        nf.attention_backward(out, x, x, x, out, lse, causal=True)

    return [
        lambda x: nf.matmul(x, x.T, bias=x[:, 0].copy(), activation="gelu"),
        attention,
        lambda x: nf.softmax(x),
        lambda x: nf.layer_norm(x, x[0], x[0], return_stats=True),
        lambda x: nf.rms_norm_backward(x, x, np.ones(len(x), np.float64 if x.dtype == np.float64 else np.float32)),
        lambda x: nf.gelu_backward(x, x),
        lambda x: nf.embedding(x, np.zeros(3, np.int64)),
        lambda x: nf.cross_entropy(x, np.zeros(len(x), np.int64), return_lse=True),
        lambda x: nf.dropout(x, 0.5, seed=1),
        lambda x: nf.add(x, x),
        lambda x: cache.append(arrays[0][1][None], arrays[0][1][None]),
        lambda x: nf.PackedMatrix(x).unpack(),
        lambda x: wrong(),
    ]


def small_calls(seed: int, count: int) -> dict[str, float]:
    """Small calls at random, wrong ones too: memory stays where it is."""
    rng, arrays = np.random.default_rng(seed), small_arrays(seed)
    kinds = small_kinds(arrays)

    def some(number: int) -> None:
        which = rng.integers(0, [len(kinds), len(DTYPES), 3], (number, 3)).tolist()
        for kind, dtype, size in which:
            kinds[kind](arrays[dtype][size])

    some(20_000)
    gc.collect()
    before, held = _resident(), nf.info()["pool"]["bytes_in_use"]
    start, left = time.perf_counter(), count
    while left > 0:
        some(min(left, 10_000))
        left -= 10_000
    taken = time.perf_counter() - start
    gc.collect()
    grown = (_resident() - before) / 1e6
    assert nf.info()["pool"]["bytes_in_use"] == held
    assert grown < 2 + count / 1e6, f"{grown:.2f} MB more after {count:,} calls"
    return {"calls": count, "MB more": round(grown, 2), "us a call": round(taken / count * 1e6, 2)}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- forks


def _work() -> Any:
    rng = np.random.default_rng(3)
    a, q = rng.standard_normal((130, 150)), rng.standard_normal((2, 90, 16))
    return nf.matmul(a, a.T), nf.attention(q, q, q, causal=True), nf.softmax(a)


_WANT: Any = None


def _right(_: int) -> bool:
    return same(_work(), _WANT)


def _hand_made(_: int) -> bool:
    """As gunicorn's workers: the master has computed, then forks, and the child serves several requests."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"yes" if all(_right(i) for i in range(3)) else b"no")
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 3) if _ready(reader, 60) else b"hangs"
    os.close(reader)
    if answer == b"hangs":
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return answer == b"yes" and status == 0


def _ready(handle: int, seconds: float) -> bool:
    return bool(select.select([handle], [], [], seconds)[0])


def forks(tries: int) -> dict[str, float]:
    """Fork after the kernels were used on several threads, in three manners: the child answers."""
    global _WANT
    before = nf.get_num_threads()
    nf.set_num_threads(3)
    try:
        _WANT = _work()
        good = {"pre-fork": sum(map(_hand_made, range(tries)))}
        context = multiprocessing.get_context("fork")
        answers = []
        for first in range(0, tries, 10):  # a pool of new children for each ten
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                answers += pool.map(_right, range(first, min(first + 10, tries)), timeout=120)
        good["multiprocessing"] = sum(answers)
        try:
            from joblib import Parallel, delayed
        except ImportError:
            pass
        else:
            found = Parallel(n_jobs=2, backend="multiprocessing")(delayed(_right)(i) for i in range(tries))
            good["joblib"] = sum(found)
        assert _right(0), "the parent, after all"
    finally:
        nf.set_num_threads(before)
    assert all(n == tries for n in good.values()), good
    return {"tries": tries} | good


# ---------------------------------------------------------------- other processes


def kills(count: int) -> dict[str, float]:
    """Training that is killed again and again, and resumed: the bits of a run that nobody killed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-s"]
    command += ["training/test_nothing_is_lost.py::test_killed_again_and_again", "--rootdir", str(TESTS.parent)]
    done = subprocess.run(
        command, cwd=TESTS, env=os.environ | {"NUMFORMER_KILLS": str(count)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    line = next(line for line in done.stdout.splitlines() if " kills, " in line)
    kills_, ends = [int(word) for word in line.replace(".", " ").split() if word.isdigit()][:2]
    return {"kills": kills_, "runs to their end": ends}


def in_child(code: str, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run code that may import this package, on one thread: each other thread reserves memory, which is limited."""
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return python(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n{textwrap.dedent(code)}", timeout, **quiet)


def fuzz(seconds: float, seed: int) -> dict[str, float]:
    """Hostile files and arguments, in a process of its own."""
    how = "guided" if GUIDED else "fuzz"
    done = in_child(f"from soak import {how}; {how}.main({seconds}, {seed})", seconds + 300)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "inputs": figures["inputs"],
        "s at most": round(figures["seconds"], 3),
        "MB at most": round(figures["megabytes"], 1),
    }


IDLE = """
    import time
    import numpy as np, numformer as nf
    nf.set_num_threads(2)
    x = np.ones((700, 700), np.float32)
    nf.matmul(x, x)
    time.sleep(0.5)  # threads of NumPy's OpenBLAS take some 60 ms after their start
    total = 0.0
    for _ in range(10):
        nf.matmul(x, x)
        start = time.process_time()
        time.sleep(0.1)
        total += time.process_time() - start
    print(total / 10)
"""


def idle(**environment: str) -> dict[str, float]:
    """How long the threads of a call still take a processor after it, in milliseconds."""
    return {"ms after a call": round(1e3 * float(answer(IDLE, **environment)), 2)}
