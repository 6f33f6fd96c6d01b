"""What recording costs: microseconds a record of a kernel and of a range; training steps on and off, how much of their
time is accounted for, whether FLOPs are those of the model; and PyTorch's profiler on the same model.
"""

import functools
import pathlib
import tempfile
import time
from typing import Any

import numformer as nf
import numpy as np
import torch
from numformer.data import Windows
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW, decay_groups
from numformer.profiling.summary import layers
from numformer.train import Trainer

from benchmarks import common
from benchmarks.torch_gpt import TorchGPT
from benchmarks.torch_peer import TorchStep
from benchmarks.training_flops import step_flops
from benchmarks.training_step import CASES

STEPS = 3  # in one profile
ROUNDS = 12  # of which the least counts: what recording adds is less than what a busy machine does
PRODUCTS = ("matmul", "attention", "attention_backward")


def _best(call: common.Call, calls: int, rounds: int = 7) -> float:
    """Microseconds a call: the best of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return min(times)


def _least(contenders: dict[str, common.Call]) -> dict[str, float]:
    """Seconds of the fastest call of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            time.sleep(0.1)  # idle threads of another library end their waiting
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def _records() -> dict[str, dict[str, float]]:
    """What a record costs, off and on, in microseconds."""
    x = np.ones(8, np.float32)

    def kernel() -> None:
        nf.relu(x)

    def ranged() -> None:
        with nf.profile.range("range"):
            pass

    off = {"record": _best(kernel, 20_000), "range": _best(ranged, 20_000)}
    with nf.profile():
        on = {"record": _best(kernel, 20_000), "range": _best(ranged, 20_000)}
    for name in on:
        print(f"a {name}: {off[name]:.2f} us off, {on[name]:.2f} us on: {on[name] - off[name]:.2f} us more")
    return {"off_us": off, "on_us": on}


def _torch_profile() -> Any:
    """At the settings that come nearest to ours: shapes and FLOPs, no stacks."""
    return torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, with_flops=True, profile_memory=True
    )


def _compare(config: GPTConfig, batch: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds a step of both, alone and profiled, and what each profile holds."""
    model = GPT(config, rng=0)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-3, clip_norm=1.0)
    theirs = TorchStep(TorchGPT(config).copy(model.state_dict()), lr=1e-3, weight_decay=0.1, clip_norm=1.0)
    ids, targets = np.random.default_rng(0).integers(0, config.vocab_size, (2, batch, config.context))
    tensors = (torch.from_numpy(ids), torch.from_numpy(targets))

    def ours() -> None:
        _, backward = model.loss((ids, targets))
        backward()
        optimizer.step()

    def steps(step: common.Call) -> None:
        for _ in range(STEPS):
            step()

    def profiled(make: Any, step: common.Call) -> Any:
        with make() as profile:
            steps(step)
        return profile

    torchs = functools.partial(theirs, *tensors)
    seconds = _least(
        {
            "numformer": lambda: steps(ours),
            "numformer profiled": lambda: profiled(nf.profile, ours),
            "torch": lambda: steps(torchs),
            "torch profiled": lambda: profiled(_torch_profile, torchs),
        }
    )
    seconds = {name: value / STEPS for name, value in seconds.items()}
    analytic = step_flops(config, batch) * STEPS
    mine, other = profiled(nf.profile, ours), profiled(_torch_profile, torchs)
    sums = mine.recording.sums
    counted = sum(float(row["flops"]) for row in sums if mine.recording.names[int(row["name"])] in PRODUCTS)
    events = other.key_averages()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "trace.json"
        mine.save(path)
        trace = path.stat().st_size
        other.export_chrome_trace(str(path))
        torch_trace = path.stat().st_size
    extra = {
        "accounted": mine.recording.accounted(),
        "overhead": seconds["numformer profiled"] / seconds["numformer"] - 1,
        "torch_overhead": seconds["torch profiled"] / seconds["torch"] - 1,
        "records_a_step": len(mine.records()) / STEPS,
        "ranges_a_step": len(mine.ranges()) / STEPS,
        "torch_events_a_step": sum(event.count for event in events) / STEPS,
        "trace_bytes_a_step": trace / STEPS,
        "torch_trace_bytes_a_step": torch_trace / STEPS,
        "flops_by_analytic": counted / analytic,
        "torch_flops_by_analytic": sum(event.flops for event in events) / analytic,
    }
    return seconds, extra


def _gaps(config: GPTConfig, batch: int, steps: int = 12) -> dict[str, Any]:
    """Share of a run's time in which no kernel works, of the whole and by the layer that the gaps are in.

    A run of the trainer with everything that a step has: data drawn, the log, clipping, updates. Its model has made a
    few steps before, so that memory is in the pool.
    """
    model = GPT(config, rng=0)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-3, clip_norm=1.0)
    data = Windows(np.random.default_rng(0).integers(0, config.vocab_size, 100_000), config.context)

    def train(count: int) -> None:
        Trainer(model, optimizer, data, batch_size=batch, steps=count, log_every=1, seed=0, progress=False).run()

    train(3)
    with nf.profile() as p:
        train(steps)
    wall = p.recording.accounted()["wall"]
    found = layers(p.recording, None)
    most = sorted(found, key=lambda line: -line.gaps)[:5]
    return {
        "gaps": sum(line.gaps for line in found) / wall,
        "gap_seconds_a_step": sum(line.gaps for line in found) / steps,
        "most": {line.name or "(outside)": line.gaps / wall for line in most},
    }


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """Print and write the figures."""
    common.set_threads(max(threads))
    costs = _records()
    results = []
    for name, case in list(CASES.items())[:2]:  # the small ones, where a record costs most
        seconds, extra = _compare(case.config, case.batch)
        print(
            f"{name}: a step {seconds['numformer'] * 1e3:.2f} ms, profiled {extra['overhead']:+.2%}; "
            f"{extra['records_a_step']:.0f} records and {extra['ranges_a_step']:.0f} ranges, "
            f"trace {extra['trace_bytes_a_step'] / 1024:.0f} KiB; "
            f"accounted for {extra['accounted']['share']:.2%} of the wall time; "
            f"FLOPs {extra['flops_by_analytic']:.4f} of the model's"
        )
        print(
            f"  torch: a step {seconds['torch'] * 1e3:.2f} ms, profiled {extra['torch_overhead']:+.2%}; "
            f"{extra['torch_events_a_step']:.0f} events, trace {extra['torch_trace_bytes_a_step'] / 1024:.0f} KiB; "
            f"FLOPs {extra['torch_flops_by_analytic']:.4f} of the model's"
        )
        extra["run"] = _gaps(case.config, case.batch)
        most = ", ".join(f"{layer} {share:.2%}" for layer, share in extra["run"]["most"].items())
        print(
            f"  a run of the trainer: no kernel works in {extra['run']['gaps']:.2%} of the time, "
            f"{extra['run']['gap_seconds_a_step'] * 1e3:.2f} ms a step; most of it in {most}"
        )
        flops = step_flops(case.config, case.batch)
        results.append(
            common.Result("profiler", name, max(threads), flops, seconds, common.ceiling(), 0.0, costs | extra)
        )
    return common.write("profiler", results, folder)
