"""Central differences along random directions, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numformer.nn import Parameter
from numpy.typing import NDArray

Array = NDArray[Any]

STEP = 1e-5
# Of the difference of fourth order, (8 (f(h) - f(-h)) - (f(2 h) - f(-2 h))) / (12 h): rounding is 1e-16 / STEP, about
# 1e-10 of numbers of size 1 to 100. (One of second order rarely missed by more than the tolerance: STEP**2 times a
# third derivative, which is in the thousands where a softmax is steep. A wider step would meet more of ReLU's corners.)
TOLERANCE = 1e-7


def along(loss: Callable[[], float], array: Array, gradient: Array, rng: np.random.Generator) -> None:
    """Assert that `gradient` is that of `loss` by `array`, which is changed and restored."""
    assert gradient.shape == array.shape
    for _ in range(2):
        direction = rng.standard_normal(array.shape)
        kept = array.copy()
        at = {}
        for steps in (-2, -1, 1, 2):
            array[...] = kept + steps * STEP * direction
            at[steps] = loss()
        array[...] = kept
        numeric = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * STEP)
        exact = float((gradient * direction).sum())
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
