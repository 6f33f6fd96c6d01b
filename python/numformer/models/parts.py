"""What several models do between layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import Backward, Context, Linear, Module, initial
from numformer.nn.backward import take

Array = NDArray[Any]


def chain(saved: list[Any], gradient: Any = 1.0) -> Any:
    """Run backward what ran forward one after the other: the function of a :class:`Backward`."""
    while saved:
        gradient = saved.pop()(gradient)
    return gradient


def select_rows(x: Array, rows: Array) -> tuple[Array, Backward]:
    """Return these rows of (..., width), (rows, width), and the backward that puts gradients among zeros.

    What is not looked at costs nothing: an output layer is computed where a target counts.
    """
    flat = x.reshape(-1, x.shape[-1])
    if rows.size == flat.shape[0]:
        return flat, Backward(_flat_backward, [x.shape])
    return ops.embedding(flat, rows), Backward(_rows_backward, [rows, x.shape])


def _flat_backward(saved: list[Any], dy: Array) -> Array:
    (shape,) = take(saved)
    return dy.reshape(shape)


def _rows_backward(saved: list[Any], dy: Array) -> Array:
    rows, shape = take(saved)
    return ops.embedding_backward(dy, rows, math.prod(shape[:-1])).reshape(shape)


def first_position(x: Array) -> tuple[Array, Backward]:
    """Return the first position of each sequence, (batch, width), and the backward."""
    return np.ascontiguousarray(x[:, 0]), Backward(_first_backward, [x.shape])


def _first_backward(saved: list[Any], dy: Array) -> Array:
    (shape,) = take(saved)
    dx = np.zeros(shape, dy.dtype)
    dx[:, 0] = dy
    return dx


class Pooler(Module):
    """tanh(x W + b): a summary of a sequence out of its first position (Devlin et al., 2019)."""

    def __init__(
        self, width: int, *, std: float = 0.02, dtype: DTypeLike = np.float32, rng: initial.Source | None = None
    ) -> None:
        self.dense = Linear(width, width, transposed=True, std=std, dtype=dtype, rng=rng)

    def __call__(self, x: Array, *, ctx: Context | None = None) -> tuple[Array, Backward]:
        """Return y and its backward; x is (batch, width)."""
        z, dense = self.dense(x)
        y = np.tanh(z)
        return y, Backward(self._backward, [y, dense])

    def _backward(self, saved: list[Any], dy: Array) -> Any:
        y, dense = take(saved)
        return dense(dy * (1 - y * y))

    def infer(self, x: Array) -> Array:
        """Return y."""
        return np.asarray(np.tanh(self.dense.infer(x)))
