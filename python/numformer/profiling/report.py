"""The page that shows a recording: one file, no network, drawn by the script inside it."""

from __future__ import annotations

import html
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from numformer import _core, files
from numformer.profiling.ceilings import Ceilings
from numformer.profiling.recording import Recording
from numformer.profiling.summary import Row, layers, rows, table

_MOST_POINTS = 1500  # of the plot of memory
_MOST_LINES = 400  # of a table


def content(recording: Recording, title: str, ceilings: Ceilings | None) -> dict[str, Any]:
    """Return what the page draws, as plain data."""
    return {
        "title": title,
        "version": _core.__version__,
        "isa": recording.isa,
        "threads": recording.threads,
        "steps": recording.steps,
        "dropped": recording.dropped,
        "accounted": recording.accounted(),
        "ceilings": None
        if ceilings is None
        else {
            "text": ceilings.text(),
            "float32": ceilings.float32,
            "float64": ceilings.float64,
            "bfloat16": ceilings.bfloat16,
            "bandwidth": ceilings.bandwidth,
        },
        "kernels": [_row(row) for row in rows(recording, "kernel", ceilings)],
        "shapes": [_row(row) for row in rows(recording, "shape", ceilings)[:_MOST_LINES]],
        "layers": [
            {
                "name": line.name or "(outside)",
                "calls": line.calls,
                "inclusive": line.inclusive,
                "gaps": line.gaps,
                "row": _row(line.kernels),
            }
            for line in layers(recording, ceilings)[:_MOST_LINES]
            if line.calls or line.gaps or line.kernels.calls
        ],
        "flame": _flame(recording),
        "memory": _memory(recording),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "calls": row.calls,
        "seconds": row.seconds,
        "flops": row.flops,
        "bytes": row.bytes,
        "bound": row.bound,
        "ceiling": row.share_of_ceiling,
        "waiting": row.imbalance,
        "fork": row.fork_join,
    }


def _flame(recording: Recording) -> list[dict[str, Any]]:
    """Return the nodes of the tree of paths, roots first, with the kernels called in each as its last children."""
    wall = recording.wall_ns * 1e-9
    nodes: list[dict[str, Any]] = [
        {"label": label or ("all" if parent < 0 else "?"), "parent": parent, "seconds": total * 1e-9, "kernel": False}
        for label, parent, total in zip(recording.labels, recording.parents, recording.total_ns, strict=True)
    ]
    inside: dict[tuple[int, str], float] = {}
    for row in recording.sums:
        key = (int(row["path"]), recording.names[int(row["name"])])
        inside[key] = inside.get(key, 0.0) + int(row["total_ns"]) * 1e-9
    for (path, name), seconds in inside.items():
        nodes.append({"label": name, "parent": path, "seconds": seconds, "kernel": True})
    others = sum(node["seconds"] for node in nodes if node["parent"] == 1)
    nodes[0].update(label="the profile's thread", seconds=wall)
    nodes[1].update(label="other threads", seconds=others)
    return nodes


def _memory(recording: Recording) -> list[list[float]]:
    """Return [seconds, resident, pool in use, pool kept for reuse] of so many moments, of each stretch the highest."""
    samples = recording.samples
    if len(samples) == 0:
        return []
    pieces = np.array_split(samples, min(len(samples), _MOST_POINTS))
    top = [piece[int(np.argmax(piece["pool_bytes"]))] for piece in pieces]
    return [
        [
            (int(row["time_ns"]) - recording.start_ns) * 1e-9,
            *(float(row[name]) for name in ("resident_bytes", "pool_bytes", "cached_bytes")),
        ]
        for row in top
    ]


def page(recording: Recording, title: str, ceilings: Ceilings | None) -> str:
    """Return the page."""
    # In a script element only "<" could end it or open another: names of ranges may hold anything.
    data = json.dumps(content(recording, title, ceilings), separators=(",", ":")).replace("<", "\\u003c")
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    text = "\n\n".join(table(recording, by, ceilings) for by in ("kernel", "layer"))
    head, rest = template.split("@TITLE@", 1)
    middle, rest = rest.split("@TEXT@", 1)
    before, after = rest.split("@DATA@", 1)
    return "".join((head, html.escape(title), middle, html.escape(text), before, data, after))


def save(recording: Recording, path: Path, title: str, ceilings: Ceilings | None) -> None:
    """Write the page."""
    files.write_text(path, page(recording, title, ceilings))
