"""How fast a run is, beside what the machine can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from numformer import profiling

T = TypeVar("T")


class Speed:
    """Times steps; counts the arithmetic of one of them, as its kernels declare it.

    The second step of a run is counted, because the first finds empty caches and pools. A profile that is on already is
    left alone, and then there is no count.

    Parameters
    ----------
    counts : bool
        Whether to count at all.
    """

    def __init__(self, counts: bool = True) -> None:
        self.counts = counts
        self.seconds = 0.0
        self.tokens = 0
        self.steps = 0
        self._least = 0.0  # seconds a token at the ceiling

    def step(self, call: Callable[[], T], tokens: Callable[[T], int]) -> T:
        """Make a step and return what it returns; `tokens` says how many targets it had."""
        start = time.perf_counter()
        result, least = counted(call) if self.counts and self.steps == 1 else (call(), None)
        self.seconds += time.perf_counter() - start
        self.steps += 1
        count = tokens(result)
        self.tokens += count
        if least is not None and count:
            self._least = least / count
        return result

    @property
    def tokens_per_second(self) -> float:
        """Targets a second of all steps so far, without what is between them."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def share(self) -> float | None:
        """Of the multiply-add ceiling; None where nothing was counted."""
        return self._least * self.tokens_per_second or None


def counted(call: Callable[[], T]) -> tuple[T, float | None]:
    """Return what `call` returns, and the seconds of its arithmetic at the ceiling, None while a profile is on."""
    profile = profiling.profile(1)  # the sums have all calls
    try:
        profile.__enter__()
    except RuntimeError:
        return call(), None
    try:
        result = call()
    finally:
        profile.__exit__(None, None, None)
    from numformer.profiling import ceilings

    flops: dict[str, float] = {}
    for row in profile.recording.sums:
        dtype = profile.recording.dtype_of(int(row["dtype"]))
        flops[dtype] = flops.get(dtype, 0.0) + float(row["flops"])
    return result, sum(count / ceilings.arithmetic(dtype) for dtype, count in flops.items() if count)
