"""Builds the CUDA backend's module for the host, and calls it on NumPy arrays."""

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "NUMFORMER_CUDA_HOST"  # where the module was built already, instrumented perhaps
TRUE = bool(os.environ.get("NUMFORMER_TEST_GPU"))  # run on a true GPU instead, see gpu.py
stand_in = pytest.mark.skipif(TRUE, reason="asks what stands in for a GPU, and this is a true one")


def build() -> Path:
    """Return the folder of `_cuda_host`, which is built if something has changed."""
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER])
    if not (ROOT / "csrc" / "cuda").is_dir():
        pytest.skip("csrc/ is not here: this is an installed package")
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    pybind11 = pytest.importorskip("pybind11")
    folder = ROOT / "build" / "cuda-host"
    folder.mkdir(parents=True, exist_ok=True)
    launcher = shutil.which("ccache")
    fcntl = pytest.importorskip("fcntl")
    with open(folder / "lock", "w") as lock:  # several processes of pytest-xdist
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            [
                "cmake", "-S", str(ROOT / "tests" / "cuda" / "host"), "-B", str(folder), "-G", "Ninja",
                f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                *([f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []),
            ],
            ["cmake", "--build", str(folder)],
        ):  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


def load() -> Any:
    if TRUE:
        return importlib.import_module("numformer_cuda._core")
    folder = str(build())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("_cuda_host")


def array(x: Any) -> Any:
    """Describe a NumPy array as the module takes it."""
    if x is None:
        return None
    strides = tuple(s // x.itemsize for s in x.strides)
    return x.__array_interface__["data"][0], x.shape, strides, str(x.dtype)


class Scratch:
    """Memory for one call; each piece lies between guards, which must not change."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def __call__(self, size: int) -> int:
        memory = np.full(size + 1024, 0xA5, np.uint8)
        begin = -memory.__array_interface__["data"][0] % 256 + 256
        self.pieces.append((memory, begin, size))
        return memory.__array_interface__["data"][0] + begin

    def check(self) -> None:
        for memory, begin, size in self.pieces:
            assert (memory[:begin] == 0xA5).all() and (memory[begin + size :] == 0xA5).all(), "a write beside scratch"


class OnDevice:
    """For one call: the memory that arrays are in, views too, copied to a true GPU, and back."""

    def __init__(self) -> None:
        self.cupy = importlib.import_module("cupy")
        self.copies: dict[tuple[int, int], tuple[Any, Any]] = {}

    def array(self, x: Any) -> Any:
        whole = x
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        low, high = np.lib.array_utils.byte_bounds(whole)
        if (low, high) not in self.copies:
            memory = np.frombuffer((ctypes.c_char * (high - low)).from_address(low), np.uint8)
            self.copies[low, high] = memory, self.cupy.array(memory)
        pointer, *rest = array(x)
        return (self.copies[low, high][1].data.ptr + pointer - low, *rest)

    def scratch(self, size: int) -> int:
        memory = self.cupy.full(size, 0xFF, np.uint8)
        self.copies[memory.data.ptr, size] = np.empty(size, np.uint8), memory
        return int(memory.data.ptr)

    def finish(self) -> None:
        for memory, copy in self.copies.values():
            memory[...] = copy.get()


class Calls:
    """core.NAME(arrays and options): NumPy arrays are described, lists too; scratch and the stream are added."""

    def __init__(self, core: Any) -> None:
        self.core = core

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, scratch: bool = False) -> Any:
            device = OnDevice() if TRUE else None

            def describe(x: Any) -> Any:
                if isinstance(x, np.ndarray):
                    return array(x) if device is None else device.array(x)
                if isinstance(x, (list, tuple)):
                    return type(x)(describe(one) for one in x)
                if isinstance(x, dict):
                    return {key: describe(one) for key, one in x.items()}
                return x

            memory = Scratch()
            allocate = memory if device is None else device.scratch
            result = getattr(self.core, name)(*map(describe, arguments), *([allocate] if scratch else []), 0)
            memory.check()
            if device is not None:
                device.finish()
            return result

        return call
