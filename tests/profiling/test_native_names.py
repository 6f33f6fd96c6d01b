"""Native tools see the kernels: the built module keeps its symbol table and frame pointers."""

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numformer as nf
import pytest
from numformer import _core

MODULE = Path(_core.__file__)
# What a function does that keeps a frame pointer: mov rbp, rsp (x86-64); mov x29, sp (aarch64).
SETS_FRAME = {
    62: (b"\x48\x89\xe5", b"\x48\x8b\xec"),
    183: (b"\xfd\x03\x00\x91", b"\xfd\x83\x00\x91", b"\xfd\x43\x00\x91"),
}
SYMTAB, DYNSYM = 2, 11
BUSY = """
import time
import numpy as np, numformer as nf
nf.set_num_threads(1)
x = np.ones((512, 512), np.float32)
q = np.ones((8, 256, 64), np.float32)
def busy_lines():
    end = time.process_time() + 2  # what other processes take does not count
    while time.process_time() < end:
        nf.matmul(x, x)
        nf.attention(q, q, q, causal=True)
busy_lines()
"""


class Elf:
    """The parts of a 64-bit little-endian ELF file that are needed here."""

    def __init__(self, path: Path):
        self.bytes = path.read_bytes()
        if self.bytes[:6] != b"\x7fELF\x02\x01":
            pytest.skip(f"{path.name} is no 64-bit little-endian ELF file")
        (self.machine,) = struct.unpack_from("<H", self.bytes, 18)
        (start,) = struct.unpack_from("<Q", self.bytes, 0x28)
        size, count = struct.unpack_from("<HH", self.bytes, 0x3A)
        self.sections = [struct.unpack_from("<IIQQQQIIQQ", self.bytes, start + size * i) for i in range(count)]

    def symbols(self, kind):
        """(name, type, section, address, size) of each that is defined."""
        for _, found, _, _, offset, length, link, *_ in self.sections:
            if found == kind:
                names = self.sections[link][4]
                for at in range(offset, offset + length, 24):
                    name, info, _, section, address, size = struct.unpack_from("<IBBHQQ", self.bytes, at)
                    if 0 < section < len(self.sections):
                        end = self.bytes.index(b"\0", names + name)
                        yield self.bytes[names + name : end].decode(), info & 15, section, address, size

    def code(self, section, address, size):
        _, _, _, base, offset, *_ = self.sections[section]
        return self.bytes[offset + address - base : offset + address - base + size]


@pytest.fixture(scope="module")
def elf():
    return Elf(MODULE)


@pytest.fixture(scope="module")
def kernels(elf):
    """Functions of every level: name, section, address, size."""
    functions = [(name, *rest) for name, kind, *rest in elf.symbols(SYMTAB) if kind == 2]
    levels = {62: ("v2", "v3", "v4", "v4bf16", "v4amx"), 183: ("neon",)}[elf.machine]
    return {level: [f for f in functions if f"2nf{len(level)}{level}" in f[0]] for level in levels}


def test_the_symbol_table_names_the_kernels(kernels):
    for level, functions in kernels.items():
        names = " ".join(name for name, *_ in functions)
        every = ("multiply_tile", "attend_block", "softmax", "norm", "adam")
        for kernel in (
            ("multiply_tile", "multiply_tile_of_matrices") if level == "v4amx" else every
        ):  # the rest of it is v4bf16's
            assert kernel in names, f"nobody can see {kernel} of level {level}"


def test_nothing_is_exported_but_the_way_in(elf):
    if any("__asan" in name or "__tsan" in name for name, *_ in elf.symbols(SYMTAB)):
        pytest.skip("a build with sanitizers exports what they need")
    assert [name for name, *_ in elf.symbols(DYNSYM)] == ["PyInit__core"]


def test_frame_pointers_are_kept(elf, kernels):
    """A stack can be walked without debug information. Functions that call nothing may do without."""
    for level, functions in kernels.items():
        large = [(section, address, size) for _, section, address, size in functions if size > 1000]
        kept = sum(any(set_it in elf.code(*place) for set_it in SETS_FRAME[elf.machine]) for place in large)
        assert len(large) > 50
        assert kept > 0.95 * len(large), f"{kept} of {len(large)} large functions of level {level} keep a frame pointer"


def test_perf_shows_kernels_below_what_called_them(tmp_path):
    perf = shutil.which("perf")
    if perf is None:
        pytest.skip("perf is not installed")
    data = tmp_path / "perf.data"
    record = [perf, "record", "-q", "-e", "cpu-clock", "-F", "200", "--call-graph", "fp", "-o", str(data)]
    done = subprocess.run([*record, "--", sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"perf cannot record here: {done.stderr.strip()[-200:]}")
    script = [perf, "script", "-i", str(data), "-F", "ip,sym"]
    stacks = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True).stdout.split("\n\n")
    kernel = re.compile(r"nf::(v\d\w*|neon)::")
    inside = [stack for stack in stacks if kernel.search(stack.strip().split("\n")[0])]
    assert len(inside) > 0.5 * len(stacks), "most samples are in kernels"
    joined = "\n".join(inside)
    assert "multiply_tile" in joined and "attend_block" in joined
    # Beyond our own module a stack goes on only where the interpreter was built with frame pointers.
    walked = [stack for stack in inside if "nf::ops::" in stack and "pybind11::" in stack]
    assert len(walked) > 0.5 * len(inside), "stacks reach from the kernel up to the call from Python"


def test_py_spy_shows_kernels_below_lines_of_python(tmp_path):
    spy = shutil.which("py-spy")
    if spy is None:
        pytest.skip("py-spy is not installed")
    script, out = tmp_path / "busy.py", tmp_path / "stacks.txt"
    script.write_text(BUSY)
    command = [spy, "record", "--native", "-f", "raw", "-r", "50", "-o", str(out), "--", sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0 or not out.exists():
        pytest.skip(f"py-spy cannot read a process here: {done.stderr.strip()[-200:]}")
    level = "nf::v" if nf.info()["isa"].startswith("v") else "nf::neon::"  # v4amx takes kernels of v4bf16, too
    lines = out.read_text().splitlines()
    assert any("busy_lines (" in line and level in line.split("busy_lines (")[1] for line in lines), lines[:20]
