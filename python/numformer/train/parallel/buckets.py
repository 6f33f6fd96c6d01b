"""Which gradients travel together, and which part of them is whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

LINE = 64
"""Bytes to which parameters and pieces are aligned: a cache line, which two processes should not write."""

LIMIT = 8 << 20
"""Bytes of a bucket: many times what a network moves during its latency, few enough that the last one, for which
nothing is left to compute meanwhile, is short."""


@dataclass(frozen=True)
class Plan:
    """A bucket: parameters one after another in flat memory, of which each rank has a piece.

    Parameters
    ----------
    members : tuple of int
        Indices of the parameters.
    starts : tuple of int
        Where each begins, in numbers.
    cuts : tuple of int
        The piece of rank r is from ``cuts[r]`` up to ``cuts[r + 1]``; the last one is the length.
    """

    members: tuple[int, ...]
    starts: tuple[int, ...]
    cuts: tuple[int, ...]


def plan(sizes: Sequence[int], itemsize: int, ranks: int, *, whole: bool = False, limit: int = LIMIT) -> list[Plan]:
    """Divide parameters among buckets, and these among ranks.

    Parameters
    ----------
    sizes : sequence of int
        Numbers in each parameter, in the order in which their gradients are complete.
    itemsize : int
        Bytes of a number.
    ranks : int
        How many there are.
    whole : bool
        Whether each parameter belongs to one rank; else pieces are of one length and cut through parameters.
    limit : int
        Bytes of a bucket; one larger parameter is a bucket of its own.
    """
    line = max(1, LINE // itemsize)
    owners = _owners(sizes, ranks) if whole else [0] * len(sizes)
    plans: list[Plan] = []
    members: list[int] = []
    room = limit // itemsize
    for index, size in enumerate(sizes):
        if members and size > room:
            plans.append(_bucket(members, sizes, owners, line, ranks, whole))
            members, room = [], limit // itemsize
        members.append(index)
        room -= size
    if members:
        plans.append(_bucket(members, sizes, owners, line, ranks, whole))
    return plans


def _bucket(
    members: Sequence[int], sizes: Sequence[int], owners: Sequence[int], line: int, ranks: int, whole: bool
) -> Plan:
    members = sorted(members, key=lambda index: owners[index])
    *starts, total = accumulate((-(-sizes[index] // line) * line for index in members), initial=0)
    if whole:
        lengths = [0] * ranks
        for index in members:
            lengths[owners[index]] += -(-sizes[index] // line) * line
    else:
        lengths = [-(-total // (line * ranks)) * line] * ranks
    return Plan(tuple(members), tuple(starts), tuple(accumulate(lengths, initial=0)))


def _owners(sizes: Sequence[int], ranks: int) -> list[int]:
    """Give each parameter to a rank: the largest first, to the one that has least (R. L. Graham, 1969)."""
    owners, load = [0] * len(sizes), [0] * ranks
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owners[index] = min(range(ranks), key=load.__getitem__)
        load[owners[index]] += sizes[index]
    return owners
