"""How little there is to install and to wait for. `python tests/contracts/test_footprint.py` prints the figures."""

import os
import re
import statistics
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import numformer as nf
from packaging.requirements import Requirement

MB = 1_000_000
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
# What NumPy's own import takes is taken off: all of it is in memory already when the second clock is read.
CLOCK = "import time; import numpy; t = time.{clock}(); import numformer; print(time.{clock}() - t)"


def installed_size() -> int:
    """Bytes of the package, without what Python caches."""
    folder = Path(nf.__file__).parent
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def dependencies() -> dict[str, int]:
    """Bytes of each distribution that `pip install numformer` brings, but for NumPy."""
    found: dict[str, int] = {}
    waiting = [Requirement(line) for line in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or name == "numpy" or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        distribution = metadata.distribution(name)
        files = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
        found[name] = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
        waiting += map(Requirement, distribution.requires or ())
    return found


def import_seconds(times: int, clock: str) -> list[float]:
    command = [sys.executable, "-c", CLOCK.format(clock=clock)]
    return [float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(times)]


def test_the_package_is_small():
    assert installed_size() <= 15 * MB


def test_dependencies_are_small():
    sizes = dependencies()
    assert {"ml-dtypes", "safetensors", "typer", "rich"} <= sizes.keys()
    assert sum(sizes.values()) <= 40 * MB, sizes


def test_import_is_fast():
    """In time of the processor, and the best of a few: other programs must not matter."""
    assert min(import_seconds(7, "process_time")) <= 0.06


def whole_seconds(code: str) -> float:
    """From the start of a process to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def import_table() -> tuple[float, list[tuple[float, str]]]:
    """By -X importtime, in milliseconds: what importing numformer takes after NumPy, and each of its modules alone."""
    command = [sys.executable, "-X", "importtime", "-c", "import numpy\nimport numformer"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    rows = [re.fullmatch(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)", line) for line in lines]
    found = [(int(row[1]) / 1e3, int(row[2]) / 1e3, row[4]) for row in rows if row]
    names = [name for *_, name in found]
    after = found[names.index("numpy") + 1 : names.index("numformer") + 1]
    return after[-1][1], sorted(((alone, name) for alone, _, name in after), reverse=True)


if __name__ == "__main__":
    print(f"package: {installed_size() / MB:.1f} MB")
    sizes = dependencies()
    each = ", ".join(f"{name} {size / MB:.1f}" for name, size in sorted(sizes.items(), key=lambda x: -x[1]))
    print(f"dependencies beyond NumPy: {sum(sizes.values()) / MB:.1f} MB ({each})")
    import_seconds(2, "perf_counter")  # files come into the system's cache
    for clock, words in (("perf_counter", "time"), ("process_time", "time of the processor")):
        seconds = import_seconds(20, clock)
        print(f"import beyond NumPy's: {1e3 * statistics.median(seconds):.1f} ms of {words}, the median of 20")
    turns = [[whole_seconds(f"import {name}") for name in ("numpy", "numformer")] for _ in range(20)]
    wholes = [1e3 * statistics.median(column) for column in zip(*turns, strict=True)]
    print("a process that imports NumPy: {:.1f} ms, numformer: {:.1f} ms, medians of 20 in turns".format(*wholes))
    tables = [import_table() for _ in range(20)]
    middle = sorted(tables)[10]
    print(f"-X importtime: {middle[0]:.1f} ms beyond NumPy's, the median of 20; of it:")
    print("\n".join(f"{alone:8.1f}  {name}" for alone, name in middle[1][:10]))
    print(f"processors: {os.cpu_count()}")
