"""Timing that can be trusted on a shared machine: contenders take turns, medians are compared, shares are of
a ceiling measured beside.
"""

import json
import pathlib
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numformer as nf
import numpy as np
import threadpoolctl
import torch
from numformer import _core
from numformer.profiling import ceilings, timing
from numformer.profiling.timing import Call

READ_CAP = 0.9  # of the bandwidth, for what memory bounds


@dataclass
class Result:
    """One line of a table: seconds of each contender (medians) and what follows from them.

    `note` is what is printed behind the name of the case, which must be the same each time it is measured.
    """

    subject: str
    case: str
    threads: int
    flops: float
    seconds: dict[str, float]
    ceiling_gflops: float
    aim: float
    extra: dict[str, Any] = field(default_factory=dict)
    cap: float | None = None
    note: str = ""

    @property
    def best_peer(self) -> str:
        return min((name for name in self.seconds if name != "numformer"), key=self.seconds.__getitem__)

    @property
    def ratio(self) -> float:
        """How many times faster than the best peer."""
        return self.seconds[self.best_peer] / self.seconds["numformer"]

    @property
    def met(self) -> bool:
        """Whether the lower of `aim` times the best peer and `cap` times the ceiling is reached."""
        return self.ratio >= self.aim or (self.cap is not None and self.share >= self.cap)

    @property
    def decides(self) -> str:
        """Which of the two is the lower one."""
        peer = self.aim * self.flops / self.seconds[self.best_peer] * 1e-9
        return "peer" if self.cap is None or peer <= self.cap * self.ceiling_gflops else "ceiling"

    @property
    def share(self) -> float:
        """Of the multiply-add ceiling that was measured in the same run."""
        return self.flops / self.seconds["numformer"] * 1e-9 / self.ceiling_gflops


def set_threads(threads: int) -> None:
    """The same number for everybody."""
    nf.set_num_threads(threads)
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads, user_api="blas")


def ceiling(dtype: str = "float32") -> float:
    """GFLOP/s of multiply-adds in registers on the threads that are set: the best of five."""
    return ceilings.multiply_adds(dtype, 5_000_000)


def take_turns(contenders: dict[str, Call], rounds: int = 5, slice_seconds: float = 0.06) -> dict[str, float]:
    """Median seconds a call, with the pause that the idle threads of other libraries need, if there are any.

    In a pause others' data take the place of ours in a shared third-level cache, and 60 ms bring only some of it back.
    """
    return timing.take_turns(contenders, rounds, slice_seconds, pause=0.25 if nf.get_num_threads() > 1 else 0.0)


def take_turns_with_read(calls: dict[str, Call], size: int, rounds: int = 5) -> tuple[dict[str, float], float]:
    """As `take_turns`, and the GB/s of reading `size` bytes by 16 streams of each thread, in turn with the others.

    What memory gives changes on a shared machine, and after a pause the third-level cache holds others' data: a loop
    of reading by itself finds more than any contender can.
    """
    each, passes = size // nf.get_num_threads() // 1024 * 1024, max(3, (100 << 20) // size)
    rates: list[float] = []

    def read() -> None:
        rates.append(_core.ceiling_bandwidth(each, passes))

    seconds = take_turns(calls | {"a read": read}, rounds)
    del seconds["a read"]
    return seconds, statistics.harmonic_mean(rates)


def beside_read(size: int, seconds: float, read: float) -> dict[str, Any]:
    """The rate at which a call of `seconds` read `size` bytes, and that of a read, for `Result.extra`."""
    rate = size / seconds * 1e-9
    return {"GB/s": rate, "read GB/s": read, "share of read": rate / read}


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    blas = [
        f"{lib['internal_api']} {lib['version']} ({lib.get('architecture', '?')})"
        for lib in threadpoolctl.threadpool_info()
        if lib["user_api"] == "blas"
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "isa": nf.info()["isa"],
        "numformer": nf.__version__,
        "numpy": np.__version__,
        "blas": blas,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpuinfo() -> list[str]:
    path = pathlib.Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def print_header(subject: str, peers: list[str]) -> None:
    """Head of a table."""
    about = machine()
    print(
        f"\n{subject}: {about['processor']}, {about['isa']}, torch {about['torch']}, numpy {about['numpy']} "
        f"{about['blas']}"
    )
    print(
        f"{'case':42}{'thr':>4}{'ms':>10}{'GFLOP/s':>9}{'share':>7}"
        + "".join(f"{'x ' + peer:>14}" for peer in peers)
        + f"{'best':>7}{'aim':>6}"
    )


def print_result(result: Result, peers: list[str]) -> None:
    """One line: time, rate, share of the ceiling, how many times faster than each peer, and whether the aim is met."""
    ours = result.seconds["numformer"]
    columns = "".join(
        f"{result.seconds[peer] / ours:14.2f}" if peer in result.seconds else f"{'-':>14}" for peer in peers
    )
    verdict = "met" if result.met else "below"
    print(
        f"{result.case + (result.note and ': ') + result.note:42}{result.threads:4}{ours * 1e3:10.3f}"
        f"{result.flops / ours * 1e-9:9.1f}{result.share:7.0%}{columns}"
        f"{result.ratio:7.2f}{result.aim:6.2f} {verdict} ({result.decides})",
        flush=True,
    )


def of_parts(subject: str, names: Sequence[str], parts: Sequence[str] | None) -> list[str]:
    """Those of the names that begin with one of the parts; all where none is given."""
    chosen = [name for name in names if not parts or name.startswith(tuple(parts))]
    if not chosen:
        raise SystemExit(f"{subject}: parts must begin the name of a case ({'; '.join(names)}), got {parts}")
    return chosen


def write(subject: str, results: list[Result], folder: pathlib.Path, *, keep: bool = False) -> pathlib.Path:
    """All figures of a subject as JSON; with `keep`, those of other cases that were measured on this processor stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{subject}.json"
    rows = [asdict(r) | {"ratio": r.ratio, "best_peer": r.best_peer, "share": r.share, "met": r.met} for r in results]
    about = machine()
    if keep and path.is_file():
        before = json.loads(path.read_text())
        new = {(row["case"], row["threads"]) for row in rows}
        if (before["machine"]["processor"], before["machine"]["isa"]) == (about["processor"], about["isa"]):
            rows = [row for row in before["results"] if (row["case"], row["threads"]) not in new] + rows
    path.write_text(json.dumps({"machine": about, "results": rows}, indent=1) + "\n")
    return path
