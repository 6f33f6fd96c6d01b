"""A command that several ranks run: one of them speaks, and one folder is written."""

from __future__ import annotations

import os
import sys

import numformer as nf
from numformer.train.parallel import Ranks, join, joined


def start(threads: int | None) -> Ranks:
    """Join the other ranks, if there are any, and set the number of threads of each."""
    ranks = join()
    if threads is not None:
        nf.set_num_threads(threads)
    if not ranks.first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    return ranks


def speaks(message: str) -> bool:
    """Whether this process is to say its mistake: of several that make one it is rank 0; one alone ends the job."""
    ranks = joined()
    return ranks is None or ranks.fail(message)
