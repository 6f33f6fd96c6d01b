"""The same bits, whatever the number of threads, and every time."""

import threading
import zlib

import numpy as np
import pytest
from arrays import DTYPES, name, same
from cases import CASES
from conftest import SEED


def built(case, dtype):
    return CASES[case](np.random.default_rng([SEED, zlib.crc32(case.encode())]), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("case", CASES)
def test_threads_change_nothing(case, dtype, threads):
    run = built(case, dtype)
    threads(1)
    want = run()
    for n in (2, 5):
        threads(n)
        for _ in range(2):
            assert same(run(), want), f"{n} threads"


def test_calls_from_several_python_threads(threads):
    threads(2)
    runs = [built(case, np.float32) for case in CASES]
    wants = [run() for run in runs]
    wrong, barrier = [], threading.Barrier(4)

    def work(first: int) -> None:
        barrier.wait(60)
        for i in range(len(runs)):
            which = (i + first) % len(runs)
            if not same(runs[which](), wants[which]):
                wrong.append(list(CASES)[which])

    workers = [threading.Thread(target=work, args=(5 * i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive(), "a call did not come back"
    assert not wrong
