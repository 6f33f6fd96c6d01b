"""Hardware counters of the processor, by perf_event_open, where the system permits it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path

# Numbers of the system call, and of linux/perf_event.h.
_SYSCALL = {"x86_64": 298, "aarch64": 241}
_HARDWARE, _SOFTWARE, _CACHE, _RAW = 0, 1, 3, 4
_L1D, _LLC, _READ, _MISS = 0, 2, 0, 1
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6
_TIMES = 1 | 2  # read format: time enabled, time running
_ATTRIBUTES = 128  # bytes that are given; the kernel takes shorter and longer ones

# Linux has no general event of the second level of cache; these are the processors' own, event | mask << 8:
# L2_RQSTS.MISS of Intel's cores since Skylake (https://perfmon-events.intel.com), misses of instructions and data in
# L2_CACHE_REQ_STAT of AMD's Zen (Processor Programming Reference, PMCx064), and L2D_CACHE_REFILL of Arm's PMUv3.
_SECOND_LEVEL = {"GenuineIntel": (6, 0x24 | 0x3F << 8), "AuthenticAMD": (0x17, 0x64 | 0x09 << 8)}  # from which family
_SECOND_LEVEL_OF_ARM = 0x17

EVENTS: dict[str, tuple[int, int]] = {
    "cycles": (_HARDWARE, 0),
    "instructions": (_HARDWARE, 1),
    "branch_misses": (_HARDWARE, 5),
    "l1d_read_misses": (_CACHE, _L1D | _READ << 8 | _MISS << 16),
    "last_level_read_misses": (_CACHE, _LLC | _READ << 8 | _MISS << 16),
    "task_ns": (_SOFTWARE, 1),
}
SECOND_LEVEL = "second_level_misses"


def second_level_event(machine: str, cpuinfo: str) -> tuple[int, int] | None:
    """Return the event of `SECOND_LEVEL` for a processor, None for one of which none is known.

    `machine` is what ``uname -m`` says, `cpuinfo` the text of /proc/cpuinfo.
    """
    if machine in ("aarch64", "arm64"):
        return _RAW, _SECOND_LEVEL_OF_ARM
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    family, config = _SECOND_LEVEL.get(fields.get("vendor_id", ""), (0, 0))
    if not config or not fields.get("cpu family", "").isdigit() or int(fields["cpu family"]) < family:
        return None
    return _RAW, config


def _attributes(kind: int, config: int) -> bytes:
    fields = struct.pack(
        "<IIQQQQQ", kind, _ATTRIBUTES, config, 0, 0, _TIMES, _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
    )
    return fields.ljust(_ATTRIBUTES, b"\0")


def open_event(kind: int, config: int, thread: int) -> int:
    """Return a file descriptor that counts an event on a thread and those that it will start; OSError says why not."""
    number = _SYSCALL.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        raise OSError(errno.ENOSYS, "perf_event_open is not known for this system")
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_attributes(kind, config), _ATTRIBUTES)
    close_on_exec = 8
    file = libc.syscall(
        ctypes.c_long(number),
        buffer,
        ctypes.c_int(thread),
        ctypes.c_int(-1),
        ctypes.c_int(-1),
        ctypes.c_ulong(close_on_exec),
    )
    if file < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(file)


def _paranoid() -> str:
    try:
        return Path("/proc/sys/kernel/perf_event_paranoid").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return "not readable"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _virtual() -> bool:
    return " hypervisor" in _cpuinfo()


def why_not(error: OSError) -> str:
    """Return a sentence: why an event cannot be counted here."""
    code = error.errno
    if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
        if _virtual():
            return "this is a virtual machine, and its host does not let it see the processor's counters"
        return "this processor, or this kernel's driver for it, has no such counter"
    if code in (errno.EACCES, errno.EPERM):
        return (
            f"the kernel does not permit it: /proc/sys/kernel/perf_event_paranoid is {_paranoid()} and must be 2 or "
            "less (sysctl kernel.perf_event_paranoid=2), or the sandbox of a container blocks perf_event_open"
        )
    if code == errno.ENOSYS:
        return "this system has no perf_event_open, or the sandbox of a container hides it"
    if code in (errno.EMFILE, errno.ENFILE):
        return "there are too many open files for a counter on each thread"
    return f"perf_event_open failed: {error.strerror or error}"


class Counters:
    """Counts events on all threads of this process between `start` and `stop`.

    Attributes
    ----------
    values : dict
        What was counted in user space, by the names in `EVENTS` and `SECOND_LEVEL`; scaled up where the processor had
        to take turns.
    missing : dict
        A sentence for each event that could not be counted.
    """

    def __init__(self, open_: Callable[[int, int, int], int] = open_event) -> None:
        self._open = open_
        self._files: dict[str, list[int]] = {}
        self.values: dict[str, float] = {}
        self.missing: dict[str, str] = {}

    def start(self) -> None:
        """Open a counter for each event and each thread that runs now; threads that these start are counted too."""
        self.values, self.missing = {}, {}
        events = dict(EVENTS)
        second = second_level_event(platform.machine(), _cpuinfo())
        if second is None:
            self.missing[SECOND_LEVEL] = "no such event of this processor is known here"
        else:
            events[SECOND_LEVEL] = second
        for name, (kind, config) in events.items():
            files: list[int] = []
            try:
                for thread in _threads():
                    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                        files.append(self._open(kind, config, thread))
            except OSError as error:
                for file in files:
                    os.close(file)
                self.missing[name] = why_not(error)
            else:
                self._files[name] = files

    def stop(self) -> None:
        """Read and close the counters."""
        for name, files in self._files.items():
            total = 0.0
            for file in files:
                count, enabled, running = struct.unpack("<QQQ", os.read(file, 24))
                total += count * (enabled / running if running else 0.0)
                os.close(file)
            self.values[name] = total
        self._files = {}

    def lines(self) -> list[str]:
        """Return lines of text: what was counted, and why the rest was not."""
        found = [f"{name.replace('_', ' ')}: {value:,.0f}" for name, value in self.values.items() if name != "task_ns"]
        v = self.values
        if v.get("cycles") and v.get("task_ns"):
            found.append(f"frequency: {v['cycles'] / v['task_ns']:.2f} GHz")
        if v.get("cycles") and "instructions" in v:
            found.append(f"instructions a cycle: {v['instructions'] / v['cycles']:.2f}")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.missing.items():
            reasons.setdefault(reason, []).append(name.replace("_", " "))
        return found + [f"not counted: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _threads() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return [0]
