"""Initial values of parameters."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Source(Protocol):
    """What initial values are drawn from; a ``numpy.random.Generator`` is one."""

    def standard_normal(self, size: tuple[int, ...], dtype: Any) -> Any:
        """Draw from the normal distribution of mean 0 and deviation 1."""
        ...


class Zeros:
    """A source for parameters that a checkpoint is about to fill.

    Parameters
    ----------
    most : int, optional
        Elements that may be asked for in all: ValueError beyond, before there is memory for them.
    """

    def __init__(self, most: int | None = None) -> None:
        self._left = most

    def standard_normal(self, size: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return zeros."""
        if self._left is not None:
            self._left -= math.prod(size)
            if self._left < 0:
                raise ValueError("it describes a model of more weights than the files beside it hold")
        return np.zeros(size, dtype)


def normal(rng: Source | None, shape: tuple[int, ...], std: float, dtype: DTypeLike) -> NDArray[Any]:
    """Draw from a normal distribution around 0; `rng` None seeds from the operating system."""
    kind = parameter_dtype(dtype)
    values = (np.random.default_rng() if rng is None else rng).standard_normal(shape, kind)
    values *= std
    return np.asarray(values)


def parameter_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype of a parameter: float32 or float64."""
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(
            f"dtype: parameters are float32 or float64, got {kind}; for 16-bit computation set Context.dtype"
        )
    return kind


def size(owner: str, **values: int) -> None:
    """Check sizes given by the user: whole numbers, at least 1."""
    for name, value in values.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {value}")


def seed(owner: str, value: int) -> int:
    """Check a seed: a whole number in [0, 2**32)."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{owner}: seed must be an integer, got {value!r}")
    if not 0 <= value < 2**32:
        raise ValueError(f"{owner}: seed must be in [0, 2**32), got {value}")
    return int(value)
