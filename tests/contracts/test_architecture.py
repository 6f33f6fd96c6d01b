"""Which room may know which: read from the includes and the imports."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each room and the rooms it may include; its own always.
CPP = {
    "bindings": {"ops", "runtime", "core"},
    "ops": {"runtime", "core"},
    "kernels": {"simd", "runtime", "core"},
    "simd": {"core"},
    "runtime": {"core"},
    "core": set(),
    "cuda": {"core", "host", "bindings"},  # host/ is in tests/cuda: the device layer where there is no device
}
# kernels see of the runtime how to share work, the sizes of caches and the table they fill; the CUDA module's bindings
# what errors are in Python.
ONLY = {
    ("cuda", "bindings"): {"bindings/errors.hpp"},
    ("kernels", "runtime"): {
        "runtime/attention_args.hpp",
        "runtime/caches.hpp",
        "runtime/kernels.hpp",
        "runtime/parallel.hpp",
        "runtime/plan.hpp",
    },
}
PYTHON = {
    "reference": set(),
    "ops": {"_core"},
    "profiling": {"_core", "files"},
    "files": set(),
    "cache": {"ops"},
    "packed": set(),
    "nn": {"cache", "ops", "profiling"},
    "optim": {"ops", "nn", "profiling"},
    "data": {"files", "packed"},
    "models": {"nn", "ops", "files", "packed"},
    "train": {"optim", "data", "nn", "ops", "profiling", "files", "packed", "numformer"},
    "interop": {"ops"},
    "sklearn": {"nn", "optim", "data", "packed"},
    "cli": {"models", "train", "optim", "data", "nn", "ops", "profiling", "files", "numformer"},
}


def sources(folder: Path, *suffixes: str) -> list[Path]:
    if not folder.is_dir():
        pytest.skip(f"{folder.name}/ is not here: this is an installed package")
    found = [p for p in sorted(folder.rglob("*")) if p.suffix in suffixes and "__pycache__" not in p.parts]
    assert found
    return found


def test_includes_point_one_way():
    csrc = ROOT / "csrc"
    for path in sources(csrc, ".cpp", ".hpp"):
        room = path.relative_to(csrc).parts[0]
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            other = included.split("/")[0]
            assert other == room or other in CPP[room], f"{path.name} in {room}/ includes {included}"
            allowed = ONLY.get((room, other))
            assert allowed is None or included in allowed, f"{path.name} in {room}/ includes {included}"


def test_only_its_own_room_knows_a_library():
    """pybind11 in bindings, OpenMP in one file, intrinsics in simd, CUDA's runtime and instructions in cuda."""
    csrc = ROOT / "csrc"
    devices = {"cuda/device.hpp", "cuda/device_hopper.hpp"}
    launching = devices | {"cuda/bindings.cpp", "cuda/launch.hpp", "cuda/gemm.cpp", "cuda/launchers/sort.hpp"}
    for path in sources(csrc, ".cpp", ".hpp"):
        text, name = path.read_text(), path.relative_to(csrc).as_posix()
        room = name.split("/")[0]
        assert room == "bindings" or name == "cuda/bindings.cpp" or not re.search(r"pybind11|Python\.h", text), name
        assert name == "runtime/parallel.cpp" or not re.search(r"#\s*pragma\s+omp|<omp\.h>", text), name
        assert room == "simd" or not re.search(r"<(immintrin|arm_neon|x86intrin)\.h>|\b_mm\d*_", text), name
        assert name in launching or not re.search(r"<(cu|cub/)\w*|__(global|device|shared)__|<<<", text), name


def test_kernels_use_no_standard_library():
    """An inline function of the library, compiled for AVX-512, could be the one that the linker keeps for all."""
    csrc = ROOT / "csrc"
    allowed = re.compile(r"std(int|def)\.h|string\.h|math\.h|type_traits|immintrin\.h|arm_neon\.h|float\.h|limits\.h")
    for path in [*sources(csrc / "kernels", ".cpp", ".hpp"), *sources(csrc / "simd", ".cpp", ".hpp")]:
        for included in re.findall(r"^\s*#\s*include\s+<([^>]+)>", path.read_text(), re.MULTILINE):
            assert allowed.fullmatch(included), f"{path.name} includes <{included}>"


def imported(path: Path) -> set[str]:
    """The rooms of numformer that a module imports ("numformer" itself where it takes something from the top)."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module or ""]
            if node.module == "numformer":
                names = [f"numformer.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "numformer":
                known = len(parts) > 1 and (parts[1] in PYTHON or parts[1] == "_core")
                rooms.add(parts[1] if known else "numformer")
    return rooms


def test_imports_point_one_way():
    package = ROOT / "python" / "numformer"
    for path in sources(package, ".py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        assert room in PYTHON, f"{room} has no place in this test's table"
        wrong = imported(path) - PYTHON[room] - {room}
        assert not wrong, f"{path.relative_to(package)} imports {sorted(wrong)}"
