"""The scale of the loss, without which gradients in float16 round to zero."""

from __future__ import annotations

import math
from typing import Any


class LossScale:
    """A factor on the loss that follows what float16 can hold (Micikevicius et al., "Mixed Precision Training", 2018).

    Gradients are computed of `value` times the loss, and divided by it, in float32, where weights are updated. Where
    one of them overflowed the step changes nothing and `value` becomes smaller; after `interval` steps one after the
    other that did not, it becomes larger. It stays a power of two where `initial` and the factors are, so that scaling
    rounds nothing.

    Parameters
    ----------
    initial : float
        Of the first step; at least 1.
    growth : float
        Factor after `interval` good steps; above 1.
    backoff : float
        Factor after a step that overflowed; between 0 and 1.
    interval : int
        Good steps until it grows.

    Attributes
    ----------
    value : float
        The scale of the next step: at least 1, at most 2**24.
    good : int
        Good steps since the last change.
    overflows : int
        Steps that overflowed, in all.
    """

    LEAST, MOST = 1.0, 2.0**24

    def __init__(
        self, initial: float = 2.0**16, *, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000
    ) -> None:
        if not self.LEAST <= initial <= self.MOST:
            raise ValueError(f"LossScale: initial must be between 1 and 2**24, got {initial}")
        if not (math.isfinite(growth) and growth > 1):
            raise ValueError(f"LossScale: growth must be above 1, got {growth}")
        if not 0 < backoff < 1:
            raise ValueError(f"LossScale: backoff must be between 0 and 1, got {backoff}")
        if isinstance(interval, bool) or not isinstance(interval, int):
            raise TypeError(f"LossScale: interval must be an integer, got {interval!r}")
        if interval < 1:
            raise ValueError(f"LossScale: interval must be at least 1, got {interval}")
        self.value = float(initial)
        self.growth, self.backoff, self.interval = float(growth), float(backoff), interval
        self.good = self.overflows = 0

    def update(self, finite: bool) -> bool:
        """Take note of a step; return whether it is explained: it was finite, or a smaller scale may help."""
        if finite:
            self.good += 1
            if self.good >= self.interval:
                self.value, self.good = min(self.value * self.growth, self.MOST), 0
            return True
        self.overflows += 1
        self.good = 0
        explained = self.value > self.LEAST
        self.value = max(self.value * self.backoff, self.LEAST)
        return explained

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"value": self.value, "good": self.good, "overflows": self.overflows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; ValueError where it is none."""
        try:
            value, good, overflows = float(state["value"]), int(state["good"]), int(state["overflows"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"LossScale: state must have value, good and overflows, got {state!r}") from None
        if not (self.LEAST <= value <= self.MOST and good >= 0 and overflows >= 0):
            raise ValueError(f"LossScale: state must be that of a LossScale, got {state!r}")
        self.value, self.good, self.overflows = value, good, overflows
