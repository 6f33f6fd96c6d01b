"""The most memory that this process had."""

from __future__ import annotations

import sys

from numformer import _core


def pool_peak() -> int:
    """Return the most that arrays of the pool had at once, in bytes."""
    return int(_core.pool_statistics()["peak_bytes"])


def resident_peak() -> int:
    """Return the most that this process had, in bytes; 0 where the system does not tell."""
    try:
        # What getrusage says may be that of the process that started this one.
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
