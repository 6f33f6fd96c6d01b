"""Fuzzing that is guided by the lines of numformer that an input reaches: by atheris, of the extra "fuzz"."""

from __future__ import annotations

import os
import random
import sys
import time

import atheris

with atheris.instrument_imports(include=["numformer"]):
    from soak import hostile
from soak.fuzz import ARGUMENTS, once, report
from soak.judge import Figures


def guided(seconds: float, seed: int, figures: Figures) -> None:
    """Alter the right files, and what led to new lines, by our means and by libFuzzer's; ends the process."""
    readers = [ARGUMENTS, *hostile.READERS]
    end = time.monotonic() + seconds

    def mutate(data: bytes, most: int, mutation_seed: int) -> bytes:
        random_ = random.Random(mutation_seed)
        which, content = (data[0] % len(readers), data[1:]) if data else (0, b"")
        if not data or random_.random() < 0.05 or (readers[which] != ARGUMENTS and not content):
            which = random_.randrange(len(readers))
            content = hostile.seeds().get(readers[which], random_.randbytes(8))
        if readers[which] == ARGUMENTS or random_.random() < 0.3:
            content = bytes(atheris.Mutate(content, max(1, min(most - 1, 100_000))))
        else:
            content = hostile.altered(content, random_)
        return bytes([which]) + content[: most - 1]

    def one(data: bytes) -> None:
        if time.monotonic() > end:
            report(figures)
            sys.stdout.flush()
            os._exit(0)
        if data:
            once(readers[data[0] % len(readers)], data[1:], figures)

    # No limit of libFuzzer's own: ours are of one call.
    options = [f"-seed={seed % 2**32}", "-max_len=200000", "-rss_limit_mb=0", "-timeout=120", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={hostile.scratch()}/"], one, custom_mutator=mutate)
    atheris.Fuzz()


def main(seconds: float, seed: int) -> None:
    """Fuzz for some seconds, and print the figures."""
    guided(seconds, seed, Figures())
