"""Names of activations and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from numformer import ops


def _gelu_tanh_backward(dy: NDArray[Any], z: NDArray[Any]) -> NDArray[Any]:
    return ops.gelu_backward(dy, z, approximate="tanh")


def _gelu_tanh(z: NDArray[Any]) -> NDArray[Any]:
    return ops.gelu(z, approximate="tanh")


FORWARD: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "relu": ops.relu,
    "gelu": ops.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": ops.silu,
}
BACKWARD: dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]] = {
    "relu": ops.relu_backward,
    "gelu": ops.gelu_backward,
    "gelu_tanh": _gelu_tanh_backward,
    "silu": ops.silu_backward,
}


def check(owner: str, name: str | None) -> str | None:
    """Return the name of an activation, or raise ValueError."""
    if name is not None and name not in BACKWARD:
        raise ValueError(f"{owner}: activation must be None or one of {', '.join(BACKWARD)}, got {name!r}")
    return name


def backward_of(name: str | None) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    """Return the function that turns (dy, pre-activation) into the gradient of the pre-activation."""
    assert name is not None
    return BACKWARD[name]
