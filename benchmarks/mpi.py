"""Two ranks of one thread against one process with two threads, and how far ranks get: GPTs, float32, AdamW, clipping.

All is measured in one job of two ranks, which train together, then one of them alone while the other sleeps, in turns.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import numformer as nf
import numpy as np
from numformer.data import Windows
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW, decay_groups
from numformer.train import Trainer
from numformer.train.parallel import Ranks, join

from benchmarks import common
from benchmarks.training_step import step_flops

GPT_384 = GPTConfig(vocab_size=256, context=256, layers=6, heads=6, width=384)
ROUNDS, STEPS = 4, 3


def trainer(batch: int, parallel: Ranks | bool, *, shard: bool = False) -> Trainer:
    """One with a model of its own; the same numbers for everybody."""
    gpt = GPT(GPT_384, rng=np.random.Generator(np.random.Philox(0)))
    tokens = np.random.Generator(np.random.Philox(1)).integers(0, 256, 50_000)
    optimizer = AdamW(decay_groups(gpt.parameters(), 0.1), lr=1e-4, clip_norm=1.0)
    data = Windows(tokens, GPT_384.context)
    return Trainer(
        gpt,
        optimizer,
        data,
        batch_size=batch,
        steps=1,
        log_every=1,
        progress=False,
        parallel=parallel,
        shard_optimizer=shard,
    )


def seconds(who: Trainer) -> float:
    """Of a step, the mean of some."""
    start, before = time.perf_counter(), who.step
    who.steps = before + STEPS
    who.run()
    return (time.perf_counter() - start) / STEPS


def ranks() -> None:
    """What each of the two ranks does: train together or let the other one train."""
    world = join()
    together = {
        "2 ranks x 1 thread, batch 8": trainer(8, world),
        "2 ranks x 1 thread, batch 8, sharded": trainer(8, world, shard=True),
        "2 ranks x 1 thread, batch 16": trainer(16, world),
    }
    alone = {
        "1 process x 2 threads, batch 8": (2, trainer(8, False)),
        "1 process x 1 thread, batch 8": (1, trainer(8, False)),
    }
    times: dict[str, list[float]] = {name: [] for name in (*together, *alone)}
    for number in range(ROUNDS + 1):
        for name, who in together.items():
            nf.set_num_threads(1)
            world.wait()
            spent = seconds(who)
            times[name] += [spent] if number else []
        for name, (threads, who) in alone.items():
            world.wait()
            if world.first:
                nf.set_num_threads(threads)
                spent = seconds(who)
                times[name] += [spent] if number else []
            world.wait()
    if world.first:
        losses = [
            who.history[0]["loss"] for who in (together["2 ranks x 1 thread, batch 8"], alone[next(iter(alone))][1])
        ]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
        nf.set_num_threads(2)
        print(
            json.dumps({name: float(np.median(spent)) for name, spent in times.items()} | {"ceiling": common.ceiling()})
        )


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """Start the ranks and read what they found."""
    launcher = pathlib.Path(sys.executable).with_name("mpiexec")
    command = [str(launcher) if launcher.is_file() else shutil.which("mpiexec") or "mpiexec", "-n", "2"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "benchmarks.mpi"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout)
    top = found.pop("ceiling")
    peer = found["1 process x 2 threads, batch 8"]
    common.print_header("mpi", ["process"])
    results = []
    for name in [name for name in found if name.startswith("2 ranks")]:
        batch = 16 if "16" in name else 8
        of = peer * batch / 8
        results.append(
            common.Result(
                "mpi",
                name,
                2,
                step_flops(GPT_384, batch),
                {"numformer": found[name], "process": of},
                top,
                0.9,
                {"weak": found["1 process x 1 thread, batch 8"]},
            )
        )
        common.print_result(results[-1], ["process"])
    print(f"one process with one thread, batch 8: {found['1 process x 1 thread, batch 8'] * 1e3:.1f} ms")
    return common.write("mpi", results, folder)


if __name__ == "__main__":
    ranks()
