"""Learning rates over time: functions from the step, counted from 0, to a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from numformer.nn import initial
from numformer.optim.optimizer import number

Schedule = Callable[[int], float]


def warm(schedule: Schedule, warmup: int) -> Schedule:
    """Rise linearly for `warmup` steps to where `schedule` begins, then follow it from its start."""
    if warmup < 0:
        raise ValueError(f"warm: warmup must be at least 0, got {warmup}")
    first = schedule(0)
    return lambda step: first * ((step + 1) / (warmup + 1)) if step < warmup else schedule(step - warmup)


def _fraction(step: int, steps: int) -> float:
    """How much of the way to the last step is done."""
    return min(1.0, max(0.0, step / max(1, steps - 1)))


def constant(lr: float, *, warmup: int = 0) -> Schedule:
    """Rise linearly for `warmup` steps, then stay."""
    return warm(lambda step: lr, warmup)


def linear(lr: float, *, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Rise for `warmup` steps, then fall linearly to `final` at the last of `steps`."""
    return warm(lambda step: final + (lr - final) * (1 - _fraction(step, steps - warmup)), warmup)


def cosine(lr: float, *, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Rise for `warmup` steps, then fall along half a cosine to `final` at the last of `steps`.

    I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """
    return warm(lambda step: _half_cosine(lr, final, _fraction(step, steps - warmup)), warmup)


def cosine_restarts(lr: float, *, period: int, factor: int = 1, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Rise for `warmup` steps, then fall along half a cosine towards `final` again and again.

    The first fall takes `period` steps, each later one `factor` times as many as the one before.

    I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """
    initial.size("cosine_restarts", period=period, factor=factor)

    def rate(step: int) -> float:
        length = period
        if factor == 1:
            step %= period
        else:
            while step >= length:
                step, length = step - length, length * factor
        return _half_cosine(lr, final, step / length)

    return warm(rate, warmup)


def _half_cosine(lr: float, final: float, fraction: float) -> float:
    return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * fraction))


def inverse_sqrt(lr: float | None = None, *, warmup: int = 4000, width: int | None = None) -> Schedule:
    """Rise linearly to `lr` at step `warmup`, then fall with the square root of the step.

    Parameters
    ----------
    lr : float, optional
        The highest rate. By default that of the paper, (width * warmup)**-0.5, with which the rate is
        width**-0.5 * min(s**-0.5, s * warmup**-1.5) for s = step + 1.
    warmup : int
        Steps of the rise, at least 1.
    width : int, optional
        Channels of the model; instead of `lr`.

    References
    ----------
    A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, equation 3.
    """
    initial.size("inverse_sqrt", warmup=warmup)
    if (lr is None) == (width is None):
        raise ValueError(f"inverse_sqrt: lr or width must be given, and not both, got {lr} and {width}")
    if width is not None:
        initial.size("inverse_sqrt", width=width)
    peak = number("inverse_sqrt", "lr", lr) if lr is not None else (width or 1) ** -0.5 * warmup**-0.5
    return lambda step: peak * min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
