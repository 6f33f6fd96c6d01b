"""Every file reader and the checks of arguments, with files and arguments that lie.

Run in a process of its own, since limits hold for a process. ``soak.guided`` does the same, guided by what is reached.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict

from soak import hostile
from soak.judge import Figures, judge

ARGUMENTS = "arguments"


def once(reader: str, content: bytes, figures: Figures) -> None:
    """Judge one file, or the arguments that these bytes are the seed of; AssertionError says which."""
    try:
        if reader == ARGUMENTS:
            judge(hostile.arguments(random.Random(content)), None, figures)
        else:
            judge(*hostile.read(reader, content), figures)
            hostile.mend(reader)
    except AssertionError as error:
        raise AssertionError(f"{reader}: {error}; the input was {content[:2000]!r}") from error


def listed(figures: Figures, most: int | None = None) -> list[str]:
    """Judge the files that are listed by hand, or of each reader `most` of them; what went wrong."""
    wrong = []
    for reader in hostile.READERS:
        cases = list(hostile.hostile(reader))
        if most is not None and len(cases) > most:
            cases = random.Random(reader).sample(cases, most)
        for what, content in cases:
            try:
                once(reader, content, figures)
            except AssertionError as error:
                wrong.append(f"{what}: {error!s:.400}")
    return wrong


def plain(seconds: float, seed: int, figures: Figures) -> None:
    """Alter the right files at random, and what was altered before."""
    random_ = random.Random(seed)
    readers = [ARGUMENTS, *hostile.READERS]
    kept = {reader: [content] for reader, content in hostile.seeds().items()}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        reader = random_.choice(readers)
        if reader == ARGUMENTS:
            once(reader, random_.randbytes(8), figures)
            continue
        content = hostile.altered(random_.choice(kept[reader]), random_)
        once(reader, content, figures)
        if len(content) < 100_000 and random_.random() < 0.1:
            kept[reader] = [*kept[reader][-20:], content, hostile.seeds()[reader]]


def report(figures: Figures) -> None:
    """Print the figures as one line of JSON."""
    print(json.dumps(asdict(figures)))


def main(seconds: float, seed: int) -> None:
    """Fuzz for some seconds, and print the figures."""
    figures = Figures()
    plain(seconds, seed, figures)
    report(figures)
