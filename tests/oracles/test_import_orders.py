"""numformer beside libraries that bring OpenMP and BLAS of their own, whoever comes first."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import answer

for name in ("torch", "sklearn"):
    pytest.importorskip(name)

ORDERS = list(itertools.permutations(("numpy", "torch", "sklearn.cluster", "numformer")))
# All four compute in turn, with all processors; the answer is a sum over the bytes of numformer's results, and the most
# threads that ran while it computed, sampled by a thread that does not count itself.
CODE = """
import hashlib, os, sys, threading, time
import ORDER
import numpy as np, torch, sklearn.cluster, numformer as nf

processors = nf.info()["processors"]
nf.set_num_threads(processors)
rng = np.random.default_rng(0)
a, b = rng.standard_normal((2, 600, 600), np.float32)
q = rng.standard_normal((2, 4, 256, 32), np.float32)

def others():
    torch.from_numpy(a) @ torch.from_numpy(b)
    torch.nn.functional.softmax(torch.from_numpy(a), -1)
    a @ b
    sklearn.cluster.KMeans(3, n_init=1, max_iter=3, random_state=0).fit(a[:, :8])

def ours():
    out, lse = nf.attention(q, q, q, causal=True, return_lse=True)
    grads = nf.attention_backward(out, q, q, q, out, lse, causal=True)
    return hashlib.sha256(b"".join(x.tobytes() for x in (nf.matmul(a, b), nf.softmax(a), out, *grads))).hexdigest()

digests = set()
for _ in range(3):
    others()
    digests.add(ours())
time.sleep(0.3)  # OpenMP threads of the others spin for a while before they sleep

me, most, stop = [], [0], threading.Event()
def watch():
    me.append(threading.get_native_id())
    while not stop.is_set():
        running = 0
        for thread in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{thread}/stat") as file:
                    running += int(thread) != me[0] and file.read().rsplit(")", 1)[1].split()[0] == "R"
            except OSError:
                pass  # it ended
        most[0] = max(most[0], running)
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
end = time.perf_counter() + 0.4
while time.perf_counter() < end:
    nf.matmul(a, b)
    nf.attention(q, q, q)
stop.set()
watcher.join()
print(processors, most[0], *digests)
"""


def test_any_order_gives_the_same_bits_and_no_more_threads_than_processors():
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads are counted by /proc")

    def run(order):
        return answer(CODE.replace("import ORDER", "\n".join(f"import {name}" for name in order)), timeout=300)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        answers = dict(zip(ORDERS, pool.map(run, ORDERS), strict=True))
    digests = set()
    for order, text in answers.items():
        processors, most, *found = text.split()
        assert int(most) <= int(processors), f"{most} threads ran on {processors} processors after importing {order}"
        digests.update(found)
    assert len(digests) == 1, answers
