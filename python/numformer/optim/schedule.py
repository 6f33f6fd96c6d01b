"""Learning rates over time: functions from the step, counted from 0, to a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))


def _fraction(step: int, steps: int, warmup: int) -> float:
    """How much of the way from the end of the warm-up to the last step is done."""
    return min(1.0, max(0.0, (step - warmup) / max(1, steps - 1 - warmup)))


def constant(lr: float, *, warmup: int = 0) -> Schedule:
    """Rise linearly for `warmup` steps, then stay."""
    return lambda step: lr * _warm(step, warmup)


def linear(lr: float, *, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Rise for `warmup` steps, then fall linearly to `final` at the last of `steps`."""
    return lambda step: (
        final + (lr - final) * (1 - _fraction(step, steps, warmup)) if step >= warmup else lr * _warm(step, warmup)
    )


def cosine(lr: float, *, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Rise for `warmup` steps, then fall along half a cosine to `final` at the last of `steps`.

    I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """

    def rate(step: int) -> float:
        if step < warmup:
            return lr * _warm(step, warmup)
        return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * _fraction(step, steps, warmup)))

    return rate
