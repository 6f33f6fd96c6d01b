"""How many threads each of several ranks on one machine takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numformer as nf


def processors() -> frozenset[int]:
    """Return the processors that this process may run on; empty where the system does not tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def fair(mine: frozenset[int], all_here: Sequence[frozenset[int]], allowed: int) -> int:
    """Return the share of a rank in the processors of a machine, at least 1.

    Launchers bind ranks to processors, or do not: those that overlap share what they have. `all_here` are those of the
    machine's ranks, this one's among them. `allowed` is what a quota leaves all of them together, if it is less.
    """
    overlapping = sum(bool(mine & other) or mine == other for other in all_here)
    count = (len(mine) or allowed) // overlapping
    if allowed < len(mine):
        count = min(count, allowed // len(all_here))
    return max(1, count)


def set_fairly(all_here: Sequence[frozenset[int]]) -> None:
    """Take one's share, unless somebody has chosen a number already."""
    allowed = nf.info()["processors"]
    if "OMP_NUM_THREADS" not in os.environ and nf.get_num_threads() == allowed:
        nf.set_num_threads(fair(processors(), all_here, allowed))
