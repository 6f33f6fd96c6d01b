"""Runs the rounds for as long as is wanted, and prints what they measured."""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import time
from collections.abc import Callable

import numformer as nf

from soak import rounds

Round = Callable[[int, float], dict[str, float]]


def between(least: int, wanted: float, most: int) -> int:
    """Return how often something is done in the time that there is."""
    return min(most, max(least, int(wanted)))


# Share of the time, and the round.
ROUNDS: dict[str, tuple[float, Round]] = {
    "16 Python threads": (0.25, lambda seed, seconds: rounds.python_threads(seed, seconds)),
    "small calls": (0.15, lambda seed, seconds: rounds.small_calls(seed, between(20_000, 60_000 * seconds, 1_000_000))),
    "fork after use": (0.1, lambda seed, seconds: rounds.forks(between(5, 8 * seconds, 100))),
    "SIGKILL and resume": (0.2, lambda seed, seconds: rounds.kills(between(3, seconds / 3, 100))),
    "hostile files and arguments": (0.3, lambda seed, seconds: rounds.fuzz(seconds, seed)),
    "idle, as it is": (0.0, lambda seed, seconds: rounds.idle(OMP_WAIT_POLICY="", GOMP_SPINCOUNT="")),
    "idle, OMP_WAIT_POLICY=passive": (0.0, lambda seed, seconds: rounds.idle(OMP_WAIT_POLICY="passive")),
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="What holds under stress, measured.")
    parser.add_argument("--minutes", type=float, default=10, help="for all rounds together")
    parser.add_argument("--seed", type=int, default=None, help="of what is drawn at random")
    parser.add_argument("--only", choices=ROUNDS, action="append", help="one of the rounds; may be given again")
    options = parser.parse_args()
    seed = random.randrange(2**31) if options.seed is None else options.seed
    chosen = {name: ROUNDS[name] for name in options.only or ROUNDS}
    shares = sum(share for share, _ in chosen.values()) or 1.0
    machine = f"{os.cpu_count()} processors, Python {platform.python_version()}, seed {seed}"
    print(f"numformer {nf.__version__} at {nf.info()['isa']}, {machine}")
    failed = []
    for name, (share, run) in chosen.items():
        start = time.monotonic()
        try:
            found = run(seed, 60 * options.minutes * share / shares)
            said = ", ".join(f"{value:,} {what}" for what, value in found.items())
        except (AssertionError, OSError, TimeoutError) as error:
            said = f"FAILED: {error}"
            failed.append(name)
        print(f"{name:<32} {time.monotonic() - start:6.0f} s  {said}", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
