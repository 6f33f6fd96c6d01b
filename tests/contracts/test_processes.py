"""What only shows in a process of its own: imports, forced instruction sets, forks, memory, the way out."""

import platform

import numformer as nf
import pytest
from processes import answer, python


def test_import_brings_nothing_heavy():
    heavy = ("typer", "rich", "click", "safetensors", "matplotlib", "torch", "scipy", "pydoc_data", "http", "pytest")
    heavy += ("concurrent.futures", "logging", "numformer.files", "numformer.profiling")
    loaded = answer(f"import sys, numformer; print([m for m in {heavy} if m in sys.modules])")
    assert loaded == "[]"


@pytest.mark.parametrize("level", ["v9", "avx512", "V3", "neon" if platform.machine() == "x86_64" else "v3"])
def test_unknown_instruction_set_raises(level):
    done = python("import numformer", NUMFORMER_ISA=level)
    assert done.returncode != 0
    assert "NUMFORMER_ISA" in done.stderr and level in done.stderr


@pytest.mark.parametrize("level", nf.info()["isa_available"])
def test_instruction_set_can_be_forced(level):
    code = "import numformer as nf, numpy as np; print(nf.info()['isa'], nf.matmul(np.eye(2), np.eye(2)).sum())"
    assert answer(code, NUMFORMER_ISA=level) == f"{level} 2.0"


def test_levels_agree():
    """Different instruction sets give different bits but the same numbers: to rounding of the sums."""
    code = """
        import numpy as np, numformer as nf
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((40, 60)), rng.standard_normal((60, 50))
        print(repr(float(np.abs(nf.matmul(a, b) - a @ b).max() / (np.abs(a) @ np.abs(b)).max())))
    """
    for level in nf.info()["isa_available"]:
        assert float(answer(code, NUMFORMER_ISA=level)) < 60 * 2.0**-53


def test_threads_from_the_environment():
    assert answer("import numformer as nf; print(nf.get_num_threads())", OMP_NUM_THREADS="3") == "3"


FORK = """
    import multiprocessing, sys, warnings
    import numpy as np, numformer as nf
    warnings.simplefilter("ignore")
    nf.set_num_threads(4)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((300, 300)), rng.standard_normal((300, 300))
    q = rng.standard_normal((4, 200, 32))
    def work():
        return nf.matmul(a, b), nf.attention(q, q, q, causal=True), nf.softmax(a)
    before = work()
    def child(queue):
        after = work()
        queue.put(all((x == y).all() for x, y in zip(before, after)))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=child, args=(queue,)) for _ in range(3)]
    for c in children: c.start()
    good = [queue.get(timeout=60) for _ in children]
    for c in children: c.join(60)
    work()
    print(all(good), [c.exitcode for c in children])
"""


def test_a_forked_child_answers():
    assert answer(FORK) == "True [0, 0, 0]"


def test_fork_while_other_threads_compute():
    """The child must not wait for a lock that a thread of its parent held."""
    code = """
        import os, threading, time, warnings
        import numpy as np, numformer as nf
        warnings.simplefilter("ignore")
        nf.set_num_threads(2)
        x = np.ones((400, 400), np.float32)
        stop = False
        def busy():
            while not stop:
                nf.softmax(nf.matmul(x, x))
        workers = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
        for w in workers: w.start()
        good = 0
        for _ in range(15):
            pid = os.fork()
            if pid == 0:
                y = nf.matmul(x, x)
                os._exit(0 if (y == 400).all() else 1)
            deadline = time.time() + 30
            while time.time() < deadline:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    good += status == 0
                    break
                time.sleep(0.002)
            else:
                os.kill(pid, 9)
        stop = True
        for w in workers: w.join()
        print(good)
    """
    assert answer(code) == "15"


def test_attention_never_holds_the_matrix():
    """Scores of 6144 x 6144 would be 151 MB in float32; forward and backward together need a few megabytes."""
    code = """
        import resource
        import numpy as np, numformer as nf
        def run(n):
            q = np.full((1, n, 64), 0.1, np.float32)
            out, lse = nf.attention(q, q, q, causal=True, return_lse=True)
            nf.attention_backward(out, q, q, q, out, lse, causal=True)
        run(64)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run(6144)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(grown, nf.info()["pool"]["peak_bytes"])
    """
    grown, peak = map(int, answer(code).split())
    matrix = 4 * 6144 * 6144
    assert grown < matrix / 3
    assert 0 < peak < matrix / 3


def test_arrays_outlive_the_interpreter():
    code = """
        import sys, numpy as np, numformer as nf
        kept = nf.matmul(np.ones((300, 300)), np.ones((300, 300)))
        sys.kept = kept  # freed only after the modules are gone
        import atexit
        atexit.register(lambda: print(float(kept[0, 0])))
    """
    assert answer(code) == "300.0"
