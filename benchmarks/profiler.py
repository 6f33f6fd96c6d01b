"""What recording costs: microseconds a record of a kernel and of a range, and a training step on and off."""

import pathlib
import time

import numformer as nf
import numpy as np

from benchmarks import common
from benchmarks.training_step import CASES


def _best(call: common.Call, calls: int, rounds: int = 7) -> float:
    """Microseconds a call: the best of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return min(times)


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """Print and write the figures."""
    from numformer.models import GPT
    from numformer.optim import AdamW, decay_groups

    common.set_threads(max(threads))
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
    results = []
    for name, case in list(CASES.items())[:2]:  # the small ones, where a record costs most
        config, batch = case.config, case.batch
        model = GPT(config, rng=0)
        optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-3, clip_norm=1.0)
        pair = np.random.default_rng(0).integers(0, config.vocab_size, (2, batch, config.context))

        def step(model: GPT = model, optimizer: AdamW = optimizer, pair: np.ndarray = pair) -> None:
            _, backward = model.loss((pair[0], pair[1]))
            backward()
            optimizer.step()

        profile = nf.profile()

        def profiled(step: common.Call = step, profile: nf.profile = profile) -> None:
            with profile:
                step()

        seconds = common.take_turns({"numformer": step, "profiled": profiled}, slice_seconds=1.0)
        with profile:
            for _ in range(3):
                step()
        accounted = profile.recording.accounted()
        print(
            f"{name}: a step {seconds['numformer'] * 1e3:.2f} ms, profiled {seconds['profiled'] * 1e3:.2f} ms, "
            f"{len(profile.records()) // 3} records, accounted for {accounted['share']:.2%} of the wall time"
        )
        extra = {"off_us": off, "on_us": on, "accounted": accounted}
        results.append(common.Result("profiler", name, max(threads), 0.0, seconds, common.ceiling(), 0.0, extra))
    return common.write("profiler", results, folder)
