"""Tables of a recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numformer.profiling.ceilings import Ceilings
from numformer.profiling.recording import Recording


@dataclass
class Row:
    """A line: the sums of some calls.

    `arithmetic` and `memory` are the least times that the machine's ceilings allow, in seconds, 0 where they are not
    known; `least` is the sum of the larger of the two over the calls.
    """

    name: str
    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    arithmetic: float = 0.0
    memory: float = 0.0
    least: float = 0.0
    parallel: float = 0.0
    busy: float = 0.0
    slowest: float = 0.0
    capacity: float = 0.0
    forks: int = 0

    @property
    def bound(self) -> str:
        """What the ceiling is made of."""
        if self.arithmetic == 0 and self.memory == 0:
            return "-"
        return "arithmetic" if self.arithmetic >= self.memory else "memory"

    @property
    def share_of_ceiling(self) -> float | None:
        """The least time by the time that it took."""
        return self.least / self.seconds if self.least and self.seconds else None

    @property
    def imbalance(self) -> float | None:
        """Share of the threads' time in parallel regions in which they waited for the slowest of them."""
        return 1 - self.busy / self.capacity if self.capacity else None

    @property
    def fork_join(self) -> float | None:
        """Seconds of a parallel region beyond its slowest thread: what it costs to call the threads and to join."""
        return (self.parallel - self.slowest) / self.forks if self.forks else None

    def add(self, recording: Recording, row: Any, ceilings: Ceilings | None) -> None:
        """Add the calls of one row of ``recording.sums``."""
        calls, flops, moved = int(row["calls"]), float(row["flops"]), float(row["bytes"])
        self.calls += calls
        self.seconds += int(row["total_ns"]) * 1e-9
        self.flops += flops
        self.bytes += moved
        self.parallel += int(row["parallel_ns"]) * 1e-9
        self.busy += int(row["busy_ns"]) * 1e-9
        self.slowest += int(row["slowest_ns"]) * 1e-9
        self.capacity += int(row["capacity_ns"]) * 1e-9
        self.forks += int(row["forks"])
        if ceilings is not None:
            dtype = recording.dtype_of(int(row["dtype"]))
            arithmetic, memory = ceilings.seconds(flops / calls, moved / calls, dtype)
            self.arithmetic += calls * arithmetic
            self.memory += calls * memory
            self.least += calls * max(arithmetic, memory)


def rows(recording: Recording, by: str, ceilings: Ceilings | None) -> list[Row]:
    """Sum up calls by "kernel", "shape" or "layer" (the path where they were called), the longest first.

    Raises
    ------
    ValueError
        If `by` is something else.
    """
    if by not in ("kernel", "shape", "layer"):
        raise ValueError(f"profile: by must be 'kernel', 'shape' or 'layer', got {by!r}")
    found: dict[str, Row] = {}
    for row in recording.sums:
        name = recording.names[int(row["name"])]
        if by == "shape":
            name += f" ({recording.shape_text(row['shape'])}) {recording.dtype_of(int(row['dtype']))}"
        elif by == "layer":
            name = recording.paths[int(row["path"])]
        found.setdefault(name, Row(name)).add(recording, row, ceilings)
    return sorted(found.values(), key=lambda row: -row.seconds)


@dataclass
class LayerRow:
    """A line of the table by layer: time inside it, that of kernels called right there, and the gaps between them."""

    name: str
    calls: int
    inclusive: float
    gaps: float
    kernels: Row


def layers(recording: Recording, ceilings: Ceilings | None) -> list[LayerRow]:
    """Return every path, the one with most time of its own first."""
    own, in_kernels = recording.own_ns()
    work = {row.name: row for row in rows(recording, "layer", ceilings)}
    found: dict[str, LayerRow] = {}
    for number, path in enumerate(recording.paths):
        if number < 2:
            inclusive = gaps = 0.0
            if number == 0:
                inclusive, gaps = recording.wall_ns * 1e-9, max(own[0] - in_kernels[0], 0) * 1e-9
        else:
            inclusive = recording.total_ns[number] * 1e-9
            gaps = max(own[number] - in_kernels[number], 0) * 1e-9
        line = found.setdefault(path, LayerRow(path, 0, 0.0, 0.0, work.get(path, Row(path))))
        line.calls += recording.calls[number]
        line.inclusive += inclusive
        line.gaps += gaps
    return sorted(found.values(), key=lambda line: -(line.kernels.seconds + line.gaps))


def table(recording: Recording, by: str, ceilings: Ceilings | None) -> str:
    """Return a table as text; see ``profile.table``."""
    lines = [*(_layer_lines(recording, ceilings) if by == "layer" else _kernel_lines(recording, by, ceilings))]
    accounted = recording.accounted()
    wall = accounted["wall"]
    lines.append("")
    lines.append(
        f"wall {wall * 1e3:.2f} ms: kernels {accounted['kernels'] / wall:.1%}, gaps in layers and ranges "
        f"{accounted['named_gaps'] / wall:.1%}, gaps without a name {accounted['unnamed'] / wall:.1%}"
        f" (of the thread that started the profile)"
    )
    if recording.dropped:
        lines.append(f"{recording.dropped} calls are in these sums but no longer in records()")
    lines.append(
        f"ceilings: {ceilings.text()}"
        if ceilings is not None
        else "ceilings: not measured for this processor and number of threads; numformer bench --ceilings does it once"
    )
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _width(names: Iterable[str]) -> int:
    return max([12, *map(len, names)])


def _kernel_lines(recording: Recording, by: str, ceilings: Ceilings | None) -> Iterable[str]:
    lines = rows(recording, by, ceilings)
    wall = max(recording.wall_ns * 1e-9, 1e-9)
    width = _width(row.name for row in lines)
    yield (
        f"{by:{width}}{'calls':>8}{'total ms':>11}{'mean us':>11}{'share':>8}{'GFLOP/s':>9}{'GB/s':>8}{'ceiling':>9}"
        f"{'bound by':>12}{'waiting':>9}{'fork us':>9}"
    )
    for row in lines:
        seconds = max(row.seconds, 1e-12)
        fork = "-" if row.fork_join is None else f"{row.fork_join * 1e6:.1f}"
        yield (
            f"{row.name:{width}}{row.calls:8}{row.seconds * 1e3:11.3f}{row.seconds / row.calls * 1e6:11.2f}"
            f"{row.seconds / wall:8.1%}{row.flops / seconds * 1e-9:9.1f}{row.bytes / seconds * 1e-9:8.1f}"
            f"{_percent(row.share_of_ceiling):>9}{row.bound:>12}{_percent(row.imbalance):>9}{fork:>9}"
        )


def _layer_lines(recording: Recording, ceilings: Ceilings | None) -> Iterable[str]:
    lines = layers(recording, ceilings)
    wall = max(recording.wall_ns * 1e-9, 1e-9)
    width = _width(line.name or "(outside)" for line in lines)
    yield (
        f"{'layer':{width}}{'calls':>8}{'total ms':>11}{'own ms':>11}{'share':>8}{'kernels':>9}{'gaps ms':>10}"
        f"{'GFLOP/s':>9}{'GB/s':>8}{'ceiling':>9}{'bound by':>12}"
    )
    for line in lines:
        row, own = line.kernels, line.kernels.seconds + line.gaps
        if not line.calls and not own:
            continue
        seconds = max(row.seconds, 1e-12)
        yield (
            f"{line.name or '(outside)':{width}}{line.calls:8}{line.inclusive * 1e3:11.3f}{own * 1e3:11.3f}"
            f"{own / wall:8.1%}{row.calls:9}{line.gaps * 1e3:10.3f}{row.flops / seconds * 1e-9:9.1f}"
            f"{row.bytes / seconds * 1e-9:8.1f}{_percent(row.share_of_ceiling):>9}{row.bound:>12}"
        )
