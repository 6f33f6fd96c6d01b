"""Running a piece of Python in a process of its own."""

import os
import subprocess
import sys
import textwrap


def python(code: str, timeout: float = 120.0, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )


def answer(code: str, timeout: float = 120.0, **environment: str) -> str:
    """What it prints; that it ends well is asserted."""
    done = python(code, timeout, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
