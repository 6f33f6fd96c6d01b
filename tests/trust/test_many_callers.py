"""Many Python threads at once, and many small calls one after the other."""

import os
import threading
import zlib

import numpy as np
from arrays import DTYPES, same
from cases import CASES
from conftest import SEED
from processes import answer

ROUNDS = int(os.environ.get("NUMFORMER_SOAK_ROUNDS", "1"))
CALLS = int(os.environ.get("NUMFORMER_SOAK_CALLS", "30000"))


def test_sixteen_threads_give_the_bits_of_one(threads):
    """All kernels at once, each thread in an order of its own."""
    threads(2)
    dtypes = DTYPES if ROUNDS > 1 else DTYPES[:1]
    runs = [
        CASES[case](np.random.default_rng([SEED, zlib.crc32(case.encode())]), dtype)
        for case in CASES
        for dtype in dtypes
    ]
    wants = [run() for run in runs]
    wrong, barrier = [], threading.Barrier(16)

    def work(number: int) -> None:
        order = np.random.default_rng([SEED, number])
        barrier.wait(60)
        for _ in range(ROUNDS):
            for which in order.permutation(len(runs)):
                if not same(runs[which](), wants[which]):
                    wrong.append(int(which))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600 * ROUNDS)
        assert not worker.is_alive(), "a call did not come back"
    assert not wrong


SMALL = """
    import gc, sys
    import numpy as np, numformer as nf
    rng = np.random.default_rng(0)
    x, w, ids = rng.standard_normal((5, 8)).astype(np.float32), np.ones(8, np.float32), np.array([0, 3, 1])
    q = rng.standard_normal((2, 6, 4)).astype(np.float32)
    out, lse = nf.attention(q, q, q, return_lse=True)
    class Bad:
        def __dlpack__(self, **options): raise BufferError("no")
    def wrong():
        try: nf.softmax(Bad())
        except ValueError: return
        raise AssertionError
    CALLS = [
        lambda: nf.matmul(x, x.T), lambda: nf.matmul(x[:1], x.T, activation="gelu", save_preactivation=True),
        lambda: nf.attention(q, q, q, causal=True), lambda: nf.attention_backward(q, q, q, q, out, lse),
        lambda: nf.softmax(x), lambda: nf.layer_norm(x, w, w, return_stats=True), lambda: nf.rms_norm(x, w),
        lambda: nf.gelu(x), lambda: nf.cross_entropy(x, ids[[0, 1, 2, 0, 1]], return_lse=True),
        lambda: nf.embedding(x, ids), lambda: nf.dropout(x, 0.3, seed=1), lambda: nf.add(x, x),
        lambda: nf.from_dlpack(nf.to_dlpack(x)), lambda: nf.sgd_update([x], [x], None, lr=0.0), wrong,
        lambda: nf.relu(np.ones((200, 200), np.float32)),
    ]
    def resident():
        gc.collect()
        return int(open("/proc/self/statm").read().split()[1]) * 4096
    def run(n):
        order = np.random.default_rng(1).integers(0, len(CALLS), n)
        for which in order: CALLS[which]()
    total = int(sys.argv[1]) if len(sys.argv) > 1 else %d
    run(5000)
    before, objects = resident(), len(gc.get_objects())
    run(total)
    print(resident() - before, len(gc.get_objects()) - objects)
"""


def test_memory_stays_flat():
    """After many small calls, good and bad, the process is as large as before."""
    grown, objects = map(int, answer(SMALL % CALLS, timeout=3600).split())
    assert grown < 2**20, f"{grown} bytes after {CALLS} calls"
    assert objects < 50
