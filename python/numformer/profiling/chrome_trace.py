"""Traces in Chrome's format: the "Trace Event Format", which Perfetto reads too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from numformer import files
from numformer.profiling.recording import Recording


def events(recording: Recording) -> list[dict[str, Any]]:
    """Return the events: names of threads, ranges and kernels as nested "X", memory as counters "C".

    Times are microseconds from the start of the recording, to the nanosecond, sorted; of two that begin together the
    longer one comes first, so that it is the outer one.
    """
    process, zero = os.getpid(), recording.start_ns
    found: list[dict[str, Any]] = []

    def stretch(name: str, kind: str, thread: int, start: int, end: int, arguments: dict[str, Any]) -> None:
        found.append(
            {
                "name": name,
                "cat": kind,
                "ph": "X",
                "pid": process,
                "tid": thread,
                "ts": (start - zero) / 1000,
                "dur": (end - start) / 1000,
                "args": arguments,
            }
        )

    threads = {recording.thread}
    ranges = recording.ranges
    for label, row in zip(recording.range_labels(), ranges, strict=True):
        threads.add(int(row["thread"]))
        stretch(label, "layer", int(row["thread"]), int(row["start_ns"]), int(row["end_ns"]), {"path": row["layer"]})
    for row in recording.records:
        seconds = max(int(row["end_ns"] - row["start_ns"]), 1) * 1e-9
        threads.add(int(row["thread"]))
        stretch(
            str(row["name"]),
            "kernel",
            int(row["thread"]),
            int(row["start_ns"]),
            int(row["end_ns"]),
            {
                "shape": recording.shape_text(row["shape"]),
                "dtype": str(row["dtype"]),
                "layer": str(row["layer"]),
                "flops": float(row["flops"]),
                "bytes": float(row["bytes"]),
                "GFLOP/s": round(float(row["flops"]) / seconds * 1e-9, 3),
                "GB/s": round(float(row["bytes"]) / seconds * 1e-9, 3),
                "threads": int(row["threads"]),
            },
        )
    for row in recording.samples:
        at = (int(row["time_ns"]) - zero) / 1000
        found.append(_counter(process, "memory", at, {"resident": int(row["resident_bytes"])}))
        pool = {"in use": int(row["pool_bytes"]), "kept for reuse": int(row["cached_bytes"])}
        found.append(_counter(process, "pool", at, pool))
    found.sort(key=lambda event: (event["ts"], -event.get("dur", 0.0)))
    head = [_named("process_name", process, 0, "numformer")]
    for thread in sorted(threads):
        name = recording.thread_names.get(thread, "thread")
        head.append(_named("thread_name", process, thread, f"{name} ({thread})"))
    return head + found


def _counter(process: int, name: str, at: float, values: dict[str, int]) -> dict[str, Any]:
    return {"name": name, "ph": "C", "pid": process, "tid": 0, "ts": at, "args": values}


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def save(recording: Recording, path: Path) -> None:
    """Write the trace."""
    content = {
        "traceEvents": events(recording),
        "displayTimeUnit": "ms",
        "otherData": {
            "isa": recording.isa,
            "threads": recording.threads,
            "dropped_calls": recording.dropped,
            "dropped_ranges": recording.dropped_ranges,
        },
    }
    files.write_text(path, json.dumps(content, separators=(",", ":"), default=str))
