"""Whatever a process does around the kernels: forks, servers, other interpreters, few processors, other OpenMP."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import answer, python

TRIES = int(os.environ.get("NUMFORMER_SOAK_FORKS", "20"))
linux = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

WORK = """
    import os, sys, time, warnings
    import numpy as np, numformer as nf
    warnings.simplefilter("ignore")
    nf.set_num_threads(4)
    rng = np.random.default_rng(0)
    a, q = rng.standard_normal((300, 300)), rng.standard_normal((4, 200, 32))
    def work(*_):
        out, lse = nf.attention(q, q, q, causal=True, return_lse=True)
        return [nf.matmul(a, a), out, *nf.attention_backward(q, q, q, q, out, lse, causal=True), nf.softmax(a)]
    def right(answer):
        return all((x == y).all() for x, y in zip(answer, before))
    before = work()
"""


@linux
def test_fork_after_use_always_answers():
    """Each child is forked after its parent's threads have worked, and answers within a minute."""
    code = f"""
    good = 0
    for _ in range({TRIES}):
        work()
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if right(work()) else 1)
            except BaseException:
                os._exit(2)
        deadline = time.time() + 60
        while time.time() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                good += status == 0
                break
            time.sleep(0.002)
        else:
            os.kill(pid, 9)
    print(good, right(work()))
    """
    assert answer(WORK + code, timeout=60 + 2 * TRIES) == f"{TRIES} True"


@linux
def test_a_server_that_forks_its_workers():
    """As gunicorn does: the model is used, then workers are forked, each answers from several threads of its own."""
    code = """
    import threading
    def worker():
        good = []
        threads = [threading.Thread(target=lambda: good.append(right(work()))) for _ in range(3)]
        for t in threads: t.start()
        for t in threads: t.join(60)
        return len(good) == 3 and all(good)
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if worker() else 1)
        pids.append(pid)
    print([os.waitpid(pid, 0)[1] for pid in pids], right(work()))
    """
    assert answer(WORK + code) == "[0, 0, 0, 0] True"


@linux
@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(backend):
    pytest.importorskip("joblib")
    code = f"""
    import joblib
    def job(i):
        import numpy as np, numformer as nf
        x = np.full((200, 200), i, np.float32)
        return float(nf.matmul(x, x)[0, 0])
    with joblib.parallel_config({backend!r}, n_jobs=3):
        print(joblib.Parallel()(joblib.delayed(job)(i) for i in range(6)))
    """
    assert answer(WORK + code) == str([200.0 * i * i for i in range(6)])


def test_other_interpreters():
    """A sub-interpreter refuses the import or computes; the main one goes on either way."""
    code = """
        import warnings
        warnings.simplefilter("ignore")
        import numpy as np, numformer as nf
        try:
            import _interpreters as subs
        except ImportError:
            import _xxsubinterpreters as subs
        inner = '''
try:
    import warnings
    warnings.simplefilter("ignore")
    import numpy as np, numformer as nf
except ImportError:
    pass
else:
    assert (nf.matmul(np.ones((9, 9)), np.ones((9, 9))) == 9).all()
'''
        for _ in range(3):
            number = subs.create()
            failed = subs.run_string(number, inner)
            assert failed is None, failed
            subs.destroy(number)
        print((nf.matmul(np.ones((300, 300)), np.ones((300, 300))) == 300).all())
    """
    assert answer(code) == "True"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_affinity_is_honoured():
    first = sorted(os.sched_getaffinity(0))[0]
    code = f"""
        import os
        os.sched_setaffinity(0, {{{first}}})
        import numpy as np, numformer as nf
        nf.matmul(np.ones((400, 400)), np.ones((400, 400)))
        print(nf.get_num_threads(), nf.info()["processors"], len(os.listdir("/proc/self/task")))
    """
    environment = {"OMP_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "1"}
    assert answer(code, **environment) == "1 1 1"


CHILD = "import numformer as nf; print(nf.info()['processors'])"


@pytest.mark.skipif(not Path("/sys/fs/cgroup").is_dir(), reason="the system has no control groups")
def test_quota_of_a_control_group_is_honoured():
    """Half a processor is one thread. Needs the right to make a group; run as root outside a container."""
    processors = int(answer(CHILD))
    v2, v1 = Path("/sys/fs/cgroup/cgroup.controllers"), Path("/sys/fs/cgroup/cpu")
    group = (Path("/sys/fs/cgroup") if v2.exists() else v1) / "numformer-test"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made: {error}")
    try:
        try:
            if v2.exists():
                (group / "cpu.max").write_text("50000 100000")
            else:
                (group / "cpu.cfs_period_us").write_text("100000")
                (group / "cpu.cfs_quota_us").write_text("50000")
        except OSError as error:
            pytest.skip(f"the group has no quota of processors: {error}")
        enter = f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        assert answer(enter + CHILD) == "1"
        assert int(answer(CHILD)) == processors
    finally:
        group.rmdir()


HOST = r"""
#include <omp.h>
// Calls f(thread) from each thread of a team.
extern "C" void on_a_team(int threads, void (*f)(int)) {
#pragma omp parallel num_threads(threads)
    f(omp_get_thread_num());
}
"""


def test_calls_from_a_team_of_openmp_stay_on_their_thread(tmp_path):
    """A program that is parallel by OpenMP already gets no threads of ours besides its own."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no compiler")
    source, library = tmp_path / "host.cpp", tmp_path / "host.so"
    source.write_text(HOST)
    subprocess.run([compiler, "-fopenmp", "-shared", "-fPIC", "-O1", source, "-o", library], check=True)
    code = f"""
        import ctypes, os
        import numpy as np, numformer as nf
        nf.set_num_threads(4)
        host = ctypes.CDLL({str(library)!r})
        x, good = np.ones((400, 400), np.float32), []
        def f(thread):
            good.append((nf.matmul(x, x) == 400).all())
        with nf.profile() as p:
            host.on_a_team(3, ctypes.CFUNCTYPE(None, ctypes.c_int)(f))
        inside = p.records()["threads"].tolist()
        with nf.profile() as p:
            nf.matmul(x, x)
        print(len(good), all(good), max(inside), p.records()["threads"].tolist())
    """
    loaded = answer("import numformer; print([l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l])")
    if "libgomp" not in loaded:
        pytest.skip(f"numformer uses another OpenMP than {compiler}: {loaded}")
    assert answer(code) == "3 True 1 [4]"


def test_no_more_threads_than_asked_for():
    """Also where several Python threads call at once, each has its team and no more; they all end with the process."""
    code = """
        import os, threading
        import numpy as np, numformer as nf
        nf.set_num_threads(2)
        x = np.ones((400, 400), np.float32)
        def work():
            for _ in range(20): nf.matmul(x, x)
        callers = [threading.Thread(target=work) for _ in range(3)]
        most = 0
        for c in callers: c.start()
        while any(c.is_alive() for c in callers):
            most = max(most, len(os.listdir("/proc/self/task")))
        print(most)
    """
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the system does not list threads")
    assert int(answer(code, OPENBLAS_NUM_THREADS="1")) <= 1 + 3 * 2 + 1


def test_the_environment_is_not_believed_blindly():
    for value in ("0", "-3", "many", "", "99999999999999999999"):
        done = python("import numformer as nf; print(nf.get_num_threads())", OMP_NUM_THREADS=value)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) >= 1
