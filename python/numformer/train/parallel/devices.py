"""Which GPU a rank takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Offer(TypedDict):
    """What a rank sees: the name of its machine, the GPUs by what identifies them, and why there are none."""

    machine: str
    gpus: list[str]
    reason: str | None


def assign(owner: str, every: Sequence[Offer]) -> list[int]:
    """Return the number, among those that it sees, of the GPU of each rank: the first that no rank before it has.

    So it is right where a launcher shows each rank all GPUs of a machine, and where it shows each its own.

    Raises
    ------
    ValueError
        Where one has none; the same on all ranks.
    """
    taken: set[str] = set()
    numbers = []
    for rank, offer in enumerate(every):
        free = [number for number, gpu in enumerate(offer["gpus"]) if gpu not in taken]
        if not free:
            seen = len(offer["gpus"])
            ranks = sum(other["machine"] == offer["machine"] for other in every)
            why = offer["reason"] or f"it sees {seen}, which other ranks have; {ranks} ranks run there"
            who = f"rank {rank} on {offer['machine']}"
            raise ValueError(f"{owner}: device 'cuda' needs a GPU for each rank, and {who} has none: {why}")
        numbers.append(free[0])
        taken.add(offer["gpus"][free[0]])
    return numbers
