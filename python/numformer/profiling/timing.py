"""Timing that can be trusted on a shared machine: contenders take turns, medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]


def take_turns(
    contenders: dict[str, Call], rounds: int = 5, slice_seconds: float = 0.06, pause: float = 0.0
) -> dict[str, float]:
    """Return the median seconds a call of each contender, over samples that alternate.

    Parameters
    ----------
    contenders : dict of callables
        By name.
    rounds : int
        Samples of each.
    slice_seconds : float
        How long a sample takes at least.
    pause : float
        Seconds before each sample, so that no other library's idle threads still spin. An untimed call follows it.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            time.sleep(pause)
            call()
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < slice_seconds:
                call()
                calls += 1
            samples[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in samples.items()}
