"""The whole list of trust, for as long as is asked: ``python -m tests.soak --minutes 30``.

Runs, from the root of the repository: the tests of tests/trust with more rounds, coverage-guided fuzzing of every
reader (where atheris is installed), ThreadSanitizer and valgrind (where clang and valgrind are). Prints a line for each
and writes them to build/soak.json; ends with 1 where one failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FUZZED = ("tensors", "config", "index", "vocabulary", "pairs", "checkpoint", "arguments")


def steps(minutes: float) -> list[tuple[str, list[str], dict[str, str], str | None]]:
    """Name, command, environment, and why it cannot be run here."""
    python = sys.executable
    scale = max(minutes / 10, 0.1)
    more = {
        "NUMFORMER_SOAK_EXAMPLES": str(int(200 * scale)),
        "NUMFORMER_SOAK_ROUNDS": str(max(2, int(3 * scale))),
        "NUMFORMER_SOAK_CALLS": str(int(1_000_000 * min(scale, 1))),
        "NUMFORMER_SOAK_FORKS": "100",
        "NUMFORMER_SOAK_CHANGES": str(int(2000 * scale)),
    }
    parts = sorted(path.stem for path in (ROOT / "tests" / "trust").glob("test_*.py"))
    found: list[tuple[str, list[str], dict[str, str], str | None]] = [
        (part.removeprefix("test_"), [python, "-m", "pytest", "-q", f"tests/trust/{part}.py"], more, None)
        for part in parts
    ]
    missing = None if importlib.util.find_spec("atheris") else "atheris is not installed"
    seconds = str(max(10, int(60 * minutes * 0.4 / len(FUZZED))))
    found += [
        (f"fuzz {target}", [python, "-m", "tests.soak.fuzz", target, "--seconds", seconds], {}, missing)
        for target in FUZZED
    ]
    for tool, needs in (("thread-sanitizer", "clang++"), ("memcheck", "valgrind")):
        lacks = None if shutil.which(needs) else f"{needs} is not installed"
        found.append((tool, [str(ROOT / "tools" / tool)], {"PYTHON": python}, lacks))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="about how long all of it may take")
    parser.add_argument("--only", help="run the parts whose names contain this")
    chosen = parser.parse_args()
    lines, failed = [], False
    for name, command, environment, lacks in steps(chosen.minutes):
        if chosen.only and chosen.only not in name:
            continue
        if lacks:
            lines.append({"part": name, "result": f"not run: {lacks}", "seconds": 0})
        else:
            start = time.monotonic()
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
            )
            told = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            runs = [line for line in told if line.startswith("stat::number_of_executed_units")]
            last = f"{int(runs[-1].split()[-1]):,} inputs" if runs else (told[-1] if told else "")
            if done.returncode:
                failed = True
                print("\n".join(told[-60:]))
            result = last if done.returncode == 0 else f"FAILED ({done.returncode}): {last}"
            lines.append({"part": name, "result": result, "seconds": round(time.monotonic() - start)})
        print(f"{lines[-1]['part']:24} {lines[-1]['seconds']:>5} s  {lines[-1]['result']}", flush=True)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "soak.json").write_text(json.dumps(lines, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
