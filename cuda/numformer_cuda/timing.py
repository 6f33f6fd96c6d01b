"""What kernels take on the GPU, by events of CUDA, and ranges for NVIDIA's tools: what `numformer.profile` asks for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
from numformer.profiling import ranges

from numformer_cuda.errors import named

_events: Any = cupy.cuda
_NVTX = bool(getattr(getattr(_events, "nvtx", None), "available", False))


class Timing:
    """Records launches while a profile is on. `numformer.profiling.ranges` calls it."""

    def __init__(self) -> None:
        self.on = False
        self._lock = threading.Lock()
        self._launches: list[tuple[str, int, Any, Any]] = []

    def begin(self) -> None:
        """Record from now on."""
        with self._lock:
            self._launches, self.on = [], True

    def end(self) -> list[str]:
        """Record no longer; wait for what was recorded and return a table of it, line by line."""
        with self._lock:
            self.on, launches, self._launches = False, self._launches, []
        if not launches:
            return []
        sums: dict[str, list[float]] = {}
        for name, moved, start, stop in launches:
            with named():
                stop.synchronize()
            found = sums.setdefault(name, [0, 0.0, 0.0])
            found[0] += 1
            found[1] += float(_events.get_elapsed_time(start, stop))
            found[2] += moved
        total = sum(ms for _, ms, _ in sums.values())
        lines = ["on the GPU, by events:", f"{'kernel':<24} {'calls':>7} {'ms':>10} {'share':>6} {'GB/s':>8}"]
        for name, (calls, ms, count) in sorted(sums.items(), key=lambda item: -item[1][1]):
            share, rate = (100 * ms / total, count / (1e6 * ms)) if ms > 0 else (0.0, 0.0)
            lines.append(f"{name:<24} {calls:>7.0f} {ms:>10.3f} {share:>5.1f}% {rate:>8.1f}")
        return [*lines, "GB/s: the arrays of the calls, each once, over the time"]

    def run(self, name: str, kernel: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Call a kernel between two events; where there are several, it says which one it was."""
        start, stop = _events.Event(), _events.Event()
        start.record()
        which = kernel(*arguments)
        stop.record()
        with self._lock:
            self._launches.append((f"{name}, {which}" if which else name, _bytes(arguments), start, stop))

    @staticmethod
    def push(label: str) -> None:
        """Begin a range that Nsight Systems shows."""
        if _NVTX:
            _events.nvtx.RangePush(label)

    @staticmethod
    def pop() -> None:
        """End the innermost range."""
        if _NVTX:
            _events.nvtx.RangePop()


def _bytes(arguments: Any) -> int:
    """Bytes of described arrays among the arguments of a kernel, and in lists and dicts of them."""
    total = 0
    for value in arguments.values() if isinstance(arguments, dict) else arguments:
        if isinstance(value, tuple) and len(value) == 4 and isinstance(value[3], str):
            size = 2 if value[3] == "bfloat16" else np.dtype(value[3]).itemsize
            total += size * int(np.prod(value[1], dtype=np.int64))
        elif isinstance(value, (list, dict)):
            total += _bytes(value)
    return total


timing = Timing()
ranges.watch(timing)
