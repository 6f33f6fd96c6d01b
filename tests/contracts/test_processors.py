"""How many processors a process takes: affinity, quotas, calls from inside other parallel programs."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numformer as nf
import numpy as np
import pytest
from numformer import _core
from processes import answer, python

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")

THREADS = "import numformer as nf; print(nf.get_num_threads())"


def machine(root, cgroup, **quotas):
    """A folder that looks as / does: what this process's cgroup is called, and files of quotas."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in quotas.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return _core.processor_quota(str(root))


@linux
@pytest.mark.parametrize(
    ("cgroup", "files", "processors"),
    [
        ("0::/\n", {}, 0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 0),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        # The least of all around it, whichever that is.
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "200000 100000"}, 1),
        ("0::/a/b\n", {"a/c/cpu.max": "100000 100000"}, 0),  # of another
        ("0::/docker/1234\n", {"cpu.max": "200000 100000"}, 2),  # the machine's path, in a container that has less
        ("0::/../a\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/a:b c\n", {"a:b c/cpu.max": "200000 100000"}, 2),
        # Version 1: a quota of -1 is none.
        ("2:cpu,cpuacct:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ("2:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        (
            "3:cpuset:/x\n2:cpuacct,cpu:/a/b\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("1:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, 0),
        # Nonsense.
        ("", {"cpu.max": "100000"}, 0),
        ("nothing\n:\n::\n", {"cpu.max": "x y"}, 0),
        ("0::/\n", {"cpu.max": "-5 100000"}, 0),
        ("0::/\n", {"cpu.max": "9223372036854775807 1"}, 1 << 20),
    ],
)
def test_quota(tmp_path, cgroup, files, processors):
    assert machine(tmp_path, cgroup, **files) == processors


@linux
def test_a_quota_of_this_machine(tmp_path):
    """A cgroup of our own, where we may make one, inside another: the quota of the outer one counts."""
    mount = "/sys/fs/cgroup/cpu" if os.path.isdir("/sys/fs/cgroup/cpu") else "/sys/fs/cgroup"
    outer = os.path.join(mount, f"numformer-test-{os.getpid()}")
    inner = os.path.join(outer, "inner")
    try:
        try:
            os.makedirs(inner)
            quota = "cpu.cfs_quota_us" if os.path.exists(f"{outer}/cpu.cfs_quota_us") else "cpu.max"
            with open(f"{outer}/{quota}", "w") as file:
                file.write("100000")
        except OSError as error:
            pytest.skip(f"no cgroup can be made here: {error}")
        code = f"open('{inner}/cgroup.procs', 'w').write('0')\n{THREADS}"
        environment = {"OMP_NUM_THREADS": ""}
        assert answer(THREADS, **environment) == str(len(os.sched_getaffinity(0)))
        assert answer(code, **environment) == "1"
    finally:
        for folder in (inner, outer):
            if os.path.isdir(folder):
                os.rmdir(folder)


@linux
def test_affinity():
    code = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n{THREADS}"
    assert answer(code, OMP_NUM_THREADS="") == "1"
    if shutil.which("taskset"):
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", THREADS]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        assert subprocess.check_output(command, env=environment, text=True).strip() == "1"


def test_the_environment_says_how_many():
    assert answer(THREADS, OMP_NUM_THREADS="3") == ("3" if _core.has_threads() else "1")
    allowed = answer(THREADS, OMP_NUM_THREADS="")
    for nonsense in ("0", "-2", "many"):
        assert answer(THREADS, OMP_NUM_THREADS=nonsense) == allowed, nonsense


NESTED = r"""
#include <omp.h>
extern "C" int run(int (*call)()) {
    int right = 0;
    omp_set_num_threads(2);
#pragma omp parallel reduction(+ : right)
    right += call() == 1 ? 1 : 0;
    return right;
}
"""


@linux
@pytest.mark.skipif(not _core.has_threads() or shutil.which("g++") is None, reason="needs OpenMP and g++")
def test_calls_from_an_openmp_program(tmp_path, threads):
    """From each thread of another's parallel region a call takes one thread: two times four would be too many."""
    (tmp_path / "nested.cpp").write_text(NESTED)
    library = tmp_path / "nested.so"
    command = ["g++", "-shared", "-fPIC", "-fopenmp", "-o", library, tmp_path / "nested.cpp"]
    subprocess.run(command, check=True)
    if "numformer.libs" in Path("/proc/self/maps").read_text():
        pytest.skip("the wheel has an OpenMP of its own, which knows nothing of other programs'")
    run = ctypes.CDLL(str(library)).run
    kind = ctypes.CFUNCTYPE(ctypes.c_int)
    a = np.ones((300, 300), np.float32)
    threads(4)
    assert nf.explain(nf.matmul, a, a)[0].threads > 1
    found = []

    def call() -> int:
        found.append(nf.explain(nf.matmul, a, a)[0].threads)
        return found[-1] if (nf.matmul(a, a) == 300).all() else -1

    assert run(kind(call)) == len(found) == 2, found


def test_sub_interpreters_refuse_or_work():
    """NumPy itself may refuse; what must not be is a crash or a wrong answer."""
    code = """
        import sys
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import numformer
        inner = interpreters.create()
        work = "import numpy as np, numformer as nf; assert (nf.matmul(np.eye(3), np.eye(3)) == np.eye(3)).all()"
        for _ in range(2):
            try:
                failed = interpreters.run_string(inner, work)
                print("refused" if failed else "worked")
            except Exception as error:
                print("refused" if "ImportError" in str(error) else error)
        interpreters.destroy(inner)
        exec(work)
        print("done")
    """
    done = python(code)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("\n")
    assert set(words[:2]) <= {"refused", "worked"} and words[2] == "done", done.stdout + done.stderr
