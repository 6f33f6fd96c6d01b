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
    assert c.values == {} and set(c.missing) == {*counters.EVENTS, counters.SECOND_LEVEL}
    line = next(line for line in c.lines() if sentence in line)
    assert line.startswith("not counted: cycles, instructions")


@pytest.mark.parametrize(("virtual", "sentence"), [(True, "virtual machine"), (False, "has no such counter")])
def test_a_virtual_machine_is_named(monkeypatch, virtual, sentence):
    monkeypatch.setattr(counters, "_virtual", lambda: virtual)
    assert sentence in counters.why_not(OSError(errno.ENOENT, "No such file or directory"))


@pytest.mark.parametrize(
    ("machine", "vendor", "family", "event"),
    [
        ("x86_64", "GenuineIntel", 6, (4, 0x3F24)),
        ("x86_64", "AuthenticAMD", 0x17, (4, 0x0964)),
        ("x86_64", "AuthenticAMD", 0x1A, (4, 0x0964)),
        ("x86_64", "AuthenticAMD", 0x15, None),  # before Zen
        ("x86_64", "CentaurHauls", 7, None),
        ("aarch64", "", "", (4, 0x17)),
    ],
)
def test_the_second_level_has_the_processors_own_event(machine, vendor, family, event):
    text = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 1\n\nprocessor\t: 1\n"
    assert counters.second_level_event(machine, text) == event
    assert counters.second_level_event("x86_64", "") is None


def test_no_event_of_the_second_level_is_said(monkeypatch):
    monkeypatch.setattr(counters, "second_level_event", lambda machine, cpuinfo: None)
    c = counters.Counters(_fails(errno.ENOENT))
    c.start()
    c.stop()
    assert any("no such event of this processor is known" in line and "second level" in line for line in c.lines())


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
    assert len(os.listdir("/proc/self/fd")) == before and len(c.missing) == len(counters.EVENTS) + 1


def test_they_are_added_over_threads_and_scaled(monkeypatch, tmp_path):
    def open_event(kind, config, thread):
        path = tmp_path / f"{kind}-{config}-{thread}"
        path.write_bytes(b"".join(n.to_bytes(8, "little") for n in (100 * thread, 20, 10)))  # ran half of the time
        return os.open(path, os.O_RDONLY)

    monkeypatch.setattr(counters, "_threads", lambda: [1, 2])
    c = counters.Counters(open_event)
    c.start()
    c.stop()
    assert c.values["cycles"] == 600.0 and set(c.missing) <= {counters.SECOND_LEVEL}
    assert "instructions a cycle: 1.00" in c.lines() and "frequency: 1.00 GHz" in c.lines()


def test_here():
    """Every event is counted or has its reason, and what is counted is right: matmul needs so many instructions."""
    n = 256
    x = np.ones((n, n), np.float32)
    with nf.profile(counters=True) as p:
        nf.matmul(x, x)
    assert p.counters is not None
    assert set(p.counters.values) | set(p.counters.missing) == {*counters.EVENTS, counters.SECOND_LEVEL}
    assert all(line in p.table() for line in p.counters.lines())
    if "instructions" in p.counters.values:
        assert p.counters.values["instructions"] > 2 * n**3 / 64, "at most 64 operations an instruction"
    elif Path("/proc/sys/kernel/perf_event_paranoid").exists() and "task_ns" in p.counters.values:
        # Software events work, so perf_event_open is permitted: the hardware's are missing for another reason.
        assert "not permit" not in p.counters.missing["instructions"]
