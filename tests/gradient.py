"""Central differences along random directions, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numformer.nn import Parameter
from numpy.typing import NDArray

Array = NDArray[Any]

STEP = 1e-5
# Truncation is STEP**2 times a third derivative, rounding 1e-16 / STEP: together about 1e-10 of numbers of size 1 to
# 100.
TOLERANCE = 1e-7


def along(loss: Callable[[], float], array: Array, gradient: Array, rng: np.random.Generator) -> None:
    """Assert that `gradient` is that of `loss` by `array`, which is changed and restored."""
    assert gradient.shape == array.shape
    for _ in range(2):
        direction = rng.standard_normal(array.shape)
        kept = array.copy()
        array[...] = kept + STEP * direction
        above = loss()
        array[...] = kept - STEP * direction
        below = loss()
        array[...] = kept
        numeric, exact = (above - below) / (2 * STEP), float((gradient * direction).sum())
        assert abs(numeric - exact) <= TOLERANCE * max(1.0, abs(exact)), (numeric, exact)


def check(
    forward: Callable[[Array], tuple[Array, Any]], x: Array, parameters: list[Parameter], rng: np.random.Generator
) -> None:
    """Check dx and every parameter's gradient of sum(y * weights), on a fresh and on an added gradient."""
    y, backward = forward(x)
    weights = rng.standard_normal(y.shape)
    dx = backward(weights)

    def loss() -> float:
        return float((forward(x)[0] * weights).sum())

    along(loss, x, dx, rng)
    once = [None if p.grad is None else p.grad.copy() for p in parameters]
    for parameter, gradient in zip(parameters, once, strict=True):
        assert gradient is not None, f"{parameter} has no gradient"
        along(loss, parameter.value, gradient, rng)
    for parameter in parameters:
        assert not parameter.fresh
    forward(x)[1](weights)
    for parameter, gradient in zip(parameters, once, strict=True):
        assert gradient is not None
        np.testing.assert_allclose(parameter.grad, 2 * gradient, rtol=1e-12, atol=1e-12)
