"""tools/aarch64 says what it lacks before it begins."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "aarch64"


@pytest.fixture
def tool(tmp_path):
    """Run it where no command is found but dirname and sed."""
    if not TOOL.is_file() or sys.platform != "linux":
        pytest.skip("tools/ is not here, or this is not Linux")
    for name in ("dirname", "sed"):
        (tmp_path / name).symlink_to(Path("/usr/bin", name))

    def run(*arguments, python=sys.executable):
        environment = {"PATH": str(tmp_path), "PYTHON": python}
        command = ["/bin/sh", TOOL, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


def test_what_it_lacks(tool):
    done = tool("--tests", "tests/kernels/test_matmul.py", python="/nowhere/python")
    assert done.returncode == 1
    for name in ("crossbuild-essential-arm64", "qemu-user-static", "cmake", "ninja", "in /nowhere/python"):
        assert name in done.stderr


def test_arguments_that_it_does_not_know(tool):
    done = tool("tests/kernels")
    assert done.returncode == 2 and "--tests [PYTEST ARGUMENTS]" in done.stderr
