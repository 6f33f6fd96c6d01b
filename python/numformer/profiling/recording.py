"""What a profile recorded, with names for numbers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import _core

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64", "bool")
_MAIN = 0  # the root of paths of the thread that started the profile; 1 is that of all others


class Recording:
    """A snapshot of the native recorder.

    Parameters
    ----------
    snapshot : dict
        From ``_core.profile_snapshot``.
    steps : int
        How many steps were recorded, 0 where nobody counted.

    Attributes
    ----------
    records, ranges : structured array
        As in ``profile.records`` and ``profile.ranges``.
    samples : structured array
        time_ns, resident_bytes, pool_bytes, cached_bytes: at most one a millisecond.
    sums : structured array
        All calls of one (name, dtype, shape, path): what is not dropped when the rings are full.
    paths : list of str
        Text of each path; `parents` the number of the one around it, `calls` and `total_ns` how often it was left.
    start_ns, stop_ns, thread : int
        When recording began and ended, and on which thread.
    """

    def __init__(self, snapshot: dict[str, Any], steps: int = 0) -> None:
        self.steps = steps
        self.isa, self.threads = _core.isa, _core.get_num_threads()
        self.start_ns, self.stop_ns, self.thread = (snapshot[key] for key in ("start_ns", "stop_ns", "thread"))
        self.dropped = int(snapshot["dropped_records"])
        self.dropped_ranges, self.dropped_samples = snapshot["dropped_ranges"], snapshot["dropped_samples"]
        self.samples, self.sums = snapshot["samples"], snapshot["sums"]
        self.thread_names = {t.native_id: t.name for t in threading.enumerate() if t.native_id is not None}
        self.names: list[str] = snapshot["names"]
        self.parents = [parent for parent, _, _, _ in snapshot["paths"]]
        self.labels = [label for _, label, _, _ in snapshot["paths"]]
        self.calls = [calls for _, _, calls, _ in snapshot["paths"]]
        self.total_ns = [total for _, _, _, total in snapshot["paths"]]
        self.paths: list[str] = []
        self.roots: list[int] = []
        for number, (parent, label) in enumerate(zip(self.parents, self.labels, strict=True)):
            above = self.paths[parent] if parent >= 0 else ""
            self.paths.append(f"{above}/{label}" if above else label)
            self.roots.append(number if parent < 0 else self.roots[parent])
        self._raw_records, self._raw_ranges = snapshot["records"], snapshot["ranges"]

    @property
    def wall_ns(self) -> int:
        """How long was recorded."""
        return int(self.stop_ns - self.start_ns)

    def _text(self, choices: list[str], numbers: NDArray[Any]) -> NDArray[Any]:
        table = np.array(choices or [""])
        return table[numbers] if len(numbers) else np.zeros(0, table.dtype)

    def _renamed(self, raw: NDArray[Any], texts: dict[str, tuple[str, NDArray[Any]]]) -> NDArray[Any]:
        fields: list[Any] = []
        for name in raw.dtype.names or ():
            base = raw.dtype[name]
            fields.append((texts[name][0], texts[name][1].dtype) if name in texts else (name, base.base, base.shape))
        rows = np.zeros(len(raw), fields)
        for name in raw.dtype.names or ():
            if name in texts:
                rows[texts[name][0]] = texts[name][1]
            else:
                rows[name] = raw[name]
        return rows

    @property
    def records(self) -> NDArray[Any]:
        """One row a call."""
        raw = self._raw_records
        return self._renamed(
            raw,
            {
                "name": ("name", self._text(self.names, raw["name"])),
                "dtype": ("dtype", self._text(list(_DTYPES), raw["dtype"])),
                "path": ("layer", self._text(self.paths, raw["path"])),
            },
        )

    @property
    def ranges(self) -> NDArray[Any]:
        """One row a range that was left."""
        raw = self._raw_ranges
        return self._renamed(raw, {"path": ("layer", self._text(self.paths, raw["path"]))})

    def range_labels(self) -> list[str]:
        """Return the last part of the path of each row of `ranges`."""
        return [self.labels[path] for path in self._raw_ranges["path"]]

    @staticmethod
    def shape_text(shape: Any) -> str:
        """Return the extents of a record without the zeros behind them."""
        extents = [int(n) for n in shape]
        while len(extents) > 1 and extents[-1] == 0:
            extents.pop()
        return ", ".join(map(str, extents))

    def dtype_of(self, number: int) -> str:
        """Return the name of a dtype by its number in `sums`."""
        return _DTYPES[number]

    def own_ns(self) -> tuple[list[int], list[int]]:
        """Return, by path, the time in it but not in a range inside, and the time of kernels called right there.

        For the two roots the time in it is 0, but for that of the thread that started the profile it is all time.
        """
        inside = list(self.total_ns)
        inside[_MAIN] = self.wall_ns
        own = list(inside)
        for number, parent in enumerate(self.parents):
            if parent >= 0:
                own[parent] -= inside[number]
        own[1] = 0
        kernels = [0] * len(self.paths)
        for row in self.sums:
            kernels[int(row["path"])] += int(row["total_ns"])
        return own, kernels

    def accounted(self) -> dict[str, float]:
        """Return seconds of the thread that started the profile: wall, kernels, named gaps, the rest, and the share.

        A gap is time between kernels; it has a name where a range or a layer was open.
        """
        own, kernels = self.own_ns()
        ours = [number for number, root in enumerate(self.roots) if root == _MAIN]
        in_kernels = sum(kernels[number] for number in ours)
        named = sum(max(own[number] - kernels[number], 0) for number in ours if number != _MAIN)
        wall = max(self.wall_ns, 1)
        unnamed = max(wall - in_kernels - named, 0)
        return {
            "wall": wall * 1e-9,
            "kernels": in_kernels * 1e-9,
            "named_gaps": named * 1e-9,
            "unnamed": unnamed * 1e-9,
            "share": min((in_kernels + named) / wall, 1.0),
        }
