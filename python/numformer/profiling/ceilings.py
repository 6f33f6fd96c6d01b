"""What this machine can do at most, measured once and kept in the user's cache folder.

The file may be old, cut short, or somebody else's: what it says is believed only after it was checked, field by field.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numformer import _core, files

_LARGEST_FILE = 1 << 20
_LEVELS = ("L1", "L2", "L3", "DRAM")


@dataclass(frozen=True)
class Ceilings:
    """The machine's ceilings at one number of threads.

    Parameters
    ----------
    processor, isa : str
        Name of the processor, and instruction set of the kernels.
    threads : int
        How many worked.
    float32, float64, bfloat16 : float
        GFLOP/s of multiply-adds in registers; of bfloat16 those of float32 where there is no instruction for it, or a
        slower one: its operands can always be widened.
    bandwidth : dict
        GB/s of reading, by level: "L1", "L2", "L3", "DRAM"; levels that the system does not tell of are absent.
    size : dict
        Bytes that a thread read at each level when it was measured fit: that of the cache, of L3 a thread's part.
    fork_join_us : float
        Microseconds of a parallel region in which nothing is done.
    date : str
        When it was measured.
    """

    processor: str
    isa: str
    threads: int
    float32: float
    float64: float
    bfloat16: float
    bandwidth: dict[str, float]
    size: dict[str, int]
    fork_join_us: float
    date: str

    def gflops(self, dtype: str) -> float:
        """Of a dtype; float16 is computed in float32."""
        return {"float64": self.float64, "bfloat16": self.bfloat16}.get(dtype, self.float32)

    def level(self, bytes: float) -> str:
        """Return the nearest cache that holds what a call moves, shared out over the threads."""
        part = bytes / self.threads
        for name in _LEVELS[:-1]:
            if name in self.bandwidth and part <= self.size.get(name, 0):
                return name
        return "DRAM"

    def seconds(self, flops: float, bytes: float, dtype: str) -> tuple[float, float]:
        """Return the least time of a call by arithmetic and by memory (Williams, Waterman, Patterson, 2009)."""
        return flops / self.gflops(dtype) * 1e-9, bytes / self.bandwidth[self.level(bytes)] * 1e-9

    def text(self) -> str:
        """Return one line that states them."""
        reads = ", ".join(f"{name} {self.bandwidth[name]:.0f}" for name in _LEVELS if name in self.bandwidth)
        return (
            f"{self.processor}, {self.isa}, {self.threads} thread{'s' if self.threads > 1 else ''}: "
            f"float32 {self.float32:.0f}, float64 {self.float64:.0f}, bfloat16 {self.bfloat16:.0f} GFLOP/s; "
            f"reading, GB/s: {reads}; fork and join {self.fork_join_us:.1f} us; measured {self.date}"
        )


def processor() -> str:
    """Return the name of the processor, as the system tells it."""
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return " ".join(line.split(":", 1)[1].split())[:200]
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def path() -> Path:
    """Return where they are kept: numformer/ceilings.json in XDG_CACHE_HOME, or in ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return base / "numformer" / "ceilings.json"


def _read(file: Path) -> list[Any]:
    """Return the entries of the file, none where it cannot be read."""
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST_FILE:
            return []
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    entries = content.get("ceilings") if isinstance(content, dict) else None
    return entries[:1000] if isinstance(entries, list) else []


def _number(value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"not a number: {value!r:.50}")
    if not 0 < value <= most:
        raise ValueError(f"out of range: {value!r:.50}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise ValueError("not a short text")
    return value


def parse(entry: Any) -> Ceilings:
    """Check an entry of the file; ValueError says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError("ceilings: an entry must be an object")
    try:
        threads = entry["threads"]
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise ValueError("threads must be between 1 and 1024")
        speeds, sizes = entry["bandwidth"], entry["size"]
        if not isinstance(speeds, dict) or not isinstance(sizes, dict) or "DRAM" not in speeds:
            raise ValueError("bandwidth and size must be objects, with DRAM in bandwidth")
        return Ceilings(
            processor=_text(entry["processor"]),
            isa=_text(entry["isa"]),
            threads=threads,
            float32=_number(entry["float32"], 1e9),
            float64=_number(entry["float64"], 1e9),
            bfloat16=_number(entry["bfloat16"], 1e9),
            bandwidth={name: _number(speeds[name], 1e9) for name in _LEVELS if name in speeds},
            size={name: int(_number(sizes[name], 1e15)) for name in _LEVELS if name in sizes},
            fork_join_us=_number(entry["fork_join_us"], 1e9),
            date=_text(entry["date"]),
        )
    except KeyError as error:
        raise ValueError(f"ceilings: an entry must have {error}") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"ceilings: {error}") from error


def load(threads: int) -> Ceilings | None:
    """Return what was measured for this processor, instruction set and number of threads, or None."""
    here = (processor(), _core.isa, threads)
    for entry in _read(path()):
        try:
            found = parse(entry)
        except ValueError:
            continue
        if (found.processor, found.isa, found.threads) == here:
            return found
    return None


def keep(new: list[Ceilings]) -> Path:
    """Add to the file, in place of older ones of the same processor and threads; return its path."""
    fresh = {(c.processor, c.isa, c.threads) for c in new}
    kept = []
    for entry in _read(path()):
        try:
            old = parse(entry)
        except ValueError:
            continue
        if (old.processor, old.isa, old.threads) not in fresh:
            kept.append(old)
    path().parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path(), json.dumps({"ceilings": [asdict(c) for c in kept + new]}, indent=1) + "\n")
    return path()


def find(threads: int) -> Ceilings:
    """Return what was measured at a number of threads; where nothing was, measure it now and keep it."""
    found = load(threads)
    if found is None:
        before = _core.get_num_threads()
        _core.set_num_threads(threads)
        try:
            found = measure()
        finally:
            _core.set_num_threads(before)
        keep([found])
    return found


def multiply_adds(dtype: str, loops: int, rounds: int = 5) -> float:
    """Measure GFLOP/s of multiply-adds in registers, the best of some rounds, by the faster way that a dtype has.

    Some processors have an instruction for pairs of bfloat16 that is slower than widening them and one of float32.
    """
    ways = ("bfloat16", "float32") if dtype == "bfloat16" else (dtype,)
    return max(_core.ceiling_gflops(way, loops) for way in ways for _ in range(rounds))


def arithmetic(dtype: str) -> float:
    """Return multiply-adds a second, in operations, on the threads that are set.

    What was measured and kept, else what is measured now in a few hundredths of a second; that is kept nowhere.
    """
    known = load(_core.get_num_threads())
    kind = dtype if dtype in ("float64", "bfloat16") else "float32"
    return 1e9 * (known.gflops(kind) if known else multiply_adds(kind, 1_000_000))


def measure(seconds: float = 0.05, rounds: int = 5) -> Ceilings:
    """Measure at the number of threads that is set.

    Parameters
    ----------
    seconds : float
        Of one sample, about.
    rounds : int
        Samples of each figure; the best one counts, as anything else on the machine can only slow it down.
    """
    threads = _core.get_num_threads()
    gflops = {}
    for dtype in ("float32", "float64", "bfloat16"):
        loops = 100_000
        while (rate := _core.ceiling_gflops(dtype, loops)) and loops < 1 << 40:
            lanes = 12 * 2 * 4  # a loop does at least so many operations
            if threads * lanes * loops / (rate * 1e9) >= seconds:
                break
            loops *= 4
        gflops[dtype] = multiply_adds(dtype, loops, rounds)
    caches = {name: int(size) for name, size in _core.cache_sizes().items() if size > 0}
    last = caches.get("L3") or caches.get("L2") or 1 << 20
    size = dict(caches)
    if "L3" in size:
        size["L3"] = size["L3"] // threads  # the threads share it
    # Half of a cache, so that nothing else evicts it; of DRAM four times the last one, so that little is found again.
    read = {name: max(bytes // 2 // 4096 * 4096, 4096) for name, bytes in size.items()}
    read["DRAM"] = max(4 * last // threads, 1 << 24)
    bandwidth = {}
    for name, bytes in read.items():
        times = max(1, int(seconds * 50e9 / bytes))
        bandwidth[name] = max(_core.ceiling_bandwidth(bytes, times) for _ in range(rounds))
    fork = min(_core.fork_join_ns(1000) for _ in range(rounds)) * 1e-3
    return Ceilings(
        processor=processor(),
        isa=_core.isa,
        threads=threads,
        **gflops,
        bandwidth=bandwidth,
        size=size,
        fork_join_us=max(fork, 1e-3),
        date=time.strftime("%Y-%m-%d"),
    )
