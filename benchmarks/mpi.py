"""Ranks beside threads: training a GPT 6 x 384 data-parallel on two ranks of one thread against one process.

Each contender is a job of its own, started in turns; ``python -m benchmarks.mpi BATCH`` is one rank of it. The losses
of all that see the same batch must be equal. Two ranks with twice the batch beside one process with one: weak scaling.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from typing import Any

# Ranks, threads of each, batch.
JOBS = {
    "1 process, 1 thread, B 8": (1, 1, 8),
    "1 process, 2 threads, B 8": (1, 2, 8),
    "2 ranks of 1 thread, B 8": (2, 1, 8),
    "2 ranks of 1 thread, B 16": (2, 1, 16),
}
ROUNDS, STEPS, WARMUP = 3, 7, 2
AIM = 0.9
TOLERANCE = 1e-3
# Both only matter to Open MPI: the root of a container, and more ranks than processors.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """All jobs in turns, with the threads and ranks that `JOBS` says."""
    from benchmarks import common
    from benchmarks.training_flops import step_flops
    from benchmarks.training_step import CASES

    beside = pathlib.Path(sys.executable).with_name("mpiexec")
    launcher = str(beside) if beside.is_file() else shutil.which("mpiexec")
    if launcher is None:
        raise FileNotFoundError("there is no mpiexec: pip install '.[mpi,mpich]'")
    print(f"\nmpi: GPT 6 x 384, T 256; median and least of {ROUNDS} runs of {STEPS - WARMUP} steps")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in JOBS}
    for _ in range(ROUNDS):
        for name, (ranks, count, batch) in JOBS.items():
            command = [sys.executable, "-m", "benchmarks.mpi", str(batch)]
            environment = {**os.environ, **OPEN_MPI, "OMP_NUM_THREADS": str(count)}
            start = [launcher, "-n", str(ranks)] if ranks > 1 else []
            done = subprocess.run([*start, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    for name, (_, _, batch) in JOBS.items():
        for one in found[name] if batch == 8 else ():
            for loss, expected in zip(one["losses"], found["1 process, 1 thread, B 8"][0]["losses"], strict=True):
                if abs(loss - expected) > TOLERANCE * expected:
                    raise RuntimeError(f"{name}: the losses differ: {one['losses']}")
    times = {name: [second for one in runs for second in one["seconds"]] for name, runs in found.items()}
    seconds = {name: statistics.median(values) for name, values in times.items()}
    for name, (_, _, batch) in JOBS.items():
        rate = batch * 256 / seconds[name]
        print(f"{name:28}{seconds[name] * 1e3:8.0f} ms ({min(times[name]) * 1e3:.0f}){rate:8.0f} tokens/s")
    serial, threaded, ranked, wide = seconds.values()
    top, config = common.ceiling(), CASES["GPT 6 x 384, T 256, B 8"].config
    results = []
    for case, ours, peer, batch, aim in (
        ("2 ranks of 1 thread by 1 process of 2", ranked, threaded, 8, AIM),
        ("strong: 2 ranks by 1 process of 1", ranked, serial, 8, 0.0),
        ("weak: 2 ranks, twice the batch", wide, 2 * serial, 16, 0.0),
    ):
        extra = {"least_seconds": {name: min(values) for name, values in times.items()}}
        pair = {"numformer": ours, "one process": peer}
        results.append(common.Result("mpi", case, 2, step_flops(config, batch), pair, top, aim, extra))
        verdict = f", aim {aim}: {'met' if results[-1].met else 'below'}" if aim else ""
        print(f"{case:40}{results[-1].ratio:6.2f}x{verdict}", flush=True)
    return common.write("mpi", results, folder)


def rank(batch: int) -> None:
    """Train as one of the ranks that the launcher started; the first one prints seconds and losses of the steps."""
    import numpy as np
    from numformer.data import Windows
    from numformer.models import GPT
    from numformer.optim import AdamW, decay_groups
    from numformer.train import Trainer

    from benchmarks.training_step import CASES

    config = CASES["GPT 6 x 384, T 256, B 8"].config
    model = GPT(config, rng=0)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-4, clip_norm=1.0)
    data = Windows(np.random.default_rng(0).integers(0, config.vocab_size, 100_000), config.context)
    trainer = Trainer(model, optimizer, data, batch_size=batch, steps=STEPS, log_every=1, seed=0, progress=False)
    rows = trainer.run()
    if trainer.ranks.first:
        seconds = np.diff([row["seconds"] for row in rows])[WARMUP - 1 :]
        print(json.dumps({"seconds": seconds.tolist(), "losses": [row["loss"] for row in rows]}))


if __name__ == "__main__":
    rank(int(sys.argv[1]))
