"""How little there is to install and to wait for. `python tests/contracts/test_footprint.py` prints the figures."""

import os
import re
import statistics
import subprocess
import sys
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


if __name__ == "__main__":
    print(f"package: {installed_size() / MB:.1f} MB")
    sizes = dependencies()
    print(f"dependencies beyond NumPy: {sum(sizes.values()) / MB:.1f} MB ({', '.join(sorted(sizes))})")
    import_seconds(2, "perf_counter")  # files come into the system's cache
    seconds = import_seconds(20, "perf_counter")
    print(f"import beyond NumPy's: {1000 * statistics.median(seconds):.1f} ms, the median of {len(seconds)}")
    print(f"processors: {os.cpu_count()}")
