"""Hardware counters, or the sentence that says why there are none."""

import errno
import os
from pathlib import Path

import numformer as nf
import numpy as np
import pytest
from numformer.profiling import counters


def _fails(code):
    def open_event(kind, config, thread):
        raise OSError(code, os.strerror(code))

    return open_event


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.EACCES, "perf_event_paranoid is"),
        (errno.EPERM, "sandbox of a container blocks"),
        (errno.ENOSYS, "has no perf_event_open"),
        (errno.EMFILE, "too many open files"),
        (errno.EINVAL, "perf_event_open failed: Invalid argument"),
    ],
)
def test_why_not(code, sentence):
    c = counters.Counters(_fails(code))
    c.start()
    c.stop()
    assert c.values == {} and set(c.missing) == set(counters.EVENTS)
    (line,) = c.lines()
    assert sentence in line and line.startswith("not counted: cycles, instructions")


@pytest.mark.parametrize(("virtual", "sentence"), [(True, "virtual machine"), (False, "has no such counter")])
def test_a_virtual_machine_is_named(monkeypatch, virtual, sentence):
    monkeypatch.setattr(counters, "_virtual", lambda: virtual)
    assert sentence in counters.why_not(OSError(errno.ENOENT, "No such file or directory"))


def test_no_file_stays_open():
    opened = []

    def open_event(kind, config, thread):
        if len(opened) % 2:
            raise OSError(errno.EMFILE, "Too many open files")
        opened.append(os.open(os.devnull, os.O_RDONLY))
        return opened[-1]

    c = counters.Counters(open_event)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    if before is None:
        pytest.skip("no /proc here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counters, "_threads", lambda: [0, 0])
        c.start()
    assert len(os.listdir("/proc/self/fd")) == before and len(c.missing) == len(counters.EVENTS)


def test_they_are_added_over_threads_and_scaled(monkeypatch, tmp_path):
    def open_event(kind, config, thread):
        path = tmp_path / f"{kind}-{config}-{thread}"
        path.write_bytes(b"".join(n.to_bytes(8, "little") for n in (100 * thread, 20, 10)))  # ran half of the time
        return os.open(path, os.O_RDONLY)

    monkeypatch.setattr(counters, "_threads", lambda: [1, 2])
    c = counters.Counters(open_event)
    c.start()
    c.stop()
    assert c.values["cycles"] == 600.0 and c.missing == {}
    assert "instructions a cycle: 1.00" in c.lines() and "frequency: 1.00 GHz" in c.lines()


def test_here():
    """Every event is counted or has its reason, and what is counted is right: matmul needs so many instructions."""
    n = 256
    x = np.ones((n, n), np.float32)
    with nf.profile(counters=True) as p:
        nf.matmul(x, x)
    assert p.counters is not None
    assert set(p.counters.values) | set(p.counters.missing) == set(counters.EVENTS)
    assert all(line in p.table() for line in p.counters.lines())
    if "instructions" in p.counters.values:
        assert p.counters.values["instructions"] > 2 * n**3 / 64, "at most 64 operations an instruction"
    elif Path("/proc/sys/kernel/perf_event_paranoid").exists() and "task_ns" in p.counters.values:
        # Software events work, so perf_event_open is permitted: the hardware's are missing for another reason.
        assert "not permit" not in p.counters.missing["instructions"]
