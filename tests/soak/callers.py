"""All kernels from several Python threads at once, for tools that watch: ``python tests/soak/callers.py [SCALE]``.

While they compute, others take profiles, empty the pool and change the number of threads.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ml_dtypes
import numformer as nf
import numpy as np
from arrays import same
from cases import CASES


def main(small: bool) -> None:
    nf.set_num_threads(3)
    dtypes = (np.float32,) if small else (np.float32, ml_dtypes.bfloat16)
    runs = [CASES[case](np.random.default_rng(1), np.dtype(dtype)) for case in CASES for dtype in dtypes]
    wants = [run() for run in runs]
    wrong: list[int] = []
    over = threading.Event()

    def work(number: int) -> None:
        for which in np.random.default_rng(number).permutation(len(runs)):
            if not same(runs[which](), wants[which]):
                wrong.append(int(which))

    def disturb() -> None:
        n = 0
        while not over.is_set():
            n += 1
            nf.empty_pool()
            nf.set_pool_limit(2**20 if n % 2 else 2**31)
            nf.set_num_threads(2 + n % 3)
            with nf.profile(1000) as p, nf.profile.range("disturbed"):
                nf.relu(np.ones((300, 300), np.float32))
            p.records()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(1 if small else 4)]
    other = threading.Thread(target=disturb)
    for thread in (*workers, other):
        thread.start()
    for thread in workers:
        thread.join()
    over.set()
    other.join()
    assert not wrong, wrong
    print(f"{len(runs)} calls from each of {len(workers)} threads, bit-equal")


if __name__ == "__main__":
    main("small" in sys.argv[1:])
