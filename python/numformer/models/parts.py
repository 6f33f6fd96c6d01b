"""What several models do between layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import Backward, Context, LayerNorm, LearnedPositions, Linear, Module, initial
from numformer.nn.backward import chain, take
from numformer.ops.memory import beside, namespace

Array = NDArray[Any]


def select_rows(x: Array, rows: Array) -> tuple[Array, Backward]:
    """Return these rows of (..., width), (rows, width), and the backward that puts gradients among zeros.

    What is not looked at costs nothing: an output layer is computed where a target counts.
    """
    flat = x.reshape(-1, x.shape[-1])
    if rows.size == flat.shape[0]:
        return flat, Backward(_flat_backward, [x.shape])
    rows = beside(rows, flat)
    return ops.embedding(flat, rows), Backward(_rows_backward, [rows, x.shape])


def _flat_backward(saved: list[Any], dy: Array) -> Array:
    (shape,) = take(saved)
    return dy.reshape(shape)


def _rows_backward(saved: list[Any], dy: Array) -> Array:
    rows, shape = take(saved)
    return ops.embedding_backward(dy, rows, math.prod(shape[:-1])).reshape(shape)


def first_position(x: Array) -> tuple[Array, Backward]:
    """Return the first position of each sequence, (batch, width), and the backward."""
    return namespace(x).ascontiguousarray(x[:, 0]), Backward(_first_backward, [x.shape])


def _first_backward(saved: list[Any], dy: Array) -> Array:
    (shape,) = take(saved)
    dx: Array = namespace(dy).zeros(shape, dy.dtype)
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
        y = namespace(z).tanh(z)
        return y, Backward(self._backward, [y, dense])

    def _backward(self, saved: list[Any], dy: Array) -> Any:
        y, dense = take(saved)
        return dense(dy * (1 - y * y))

    def infer(self, x: Array) -> Array:
        """Return y."""
        z = self.dense.infer(x)
        y: Array = namespace(z).tanh(z)
        return y


class NormedPositions(Module):
    """norm(x plus a trained row for each position), as BART begins both its stacks.

    Parameters
    ----------
    length, width : int
        Number of positions and size of a row.
    eps, std, dtype, rng
        Of the norm and of the table.
    """

    skipped = 2
    """Rows at the beginning of the table that no position uses."""

    def __init__(
        self,
        length: int,
        width: int,
        *,
        eps: float = 1e-5,
        std: float = 0.02,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        self.table = LearnedPositions(length + self.skipped, width, std=std, dtype=dtype, rng=rng)
        self.norm = LayerNorm(width, eps=eps, dtype=dtype)

    def __call__(
        self, x: Array, *, offset: int = 0, ids: Array | None = None, ctx: Context | None = None
    ) -> tuple[Array, Backward]:
        """Return y and its backward; `ids` number the positions one by one instead of from `offset`."""
        y, table = self.table(x, **self._rows(offset, ids))
        y, norm = self.norm(y)
        return y, Backward(chain, [table, norm])

    def infer(self, x: Array, *, offset: int = 0, ids: Array | None = None) -> Array:
        """Return y."""
        return self.norm.infer(self.table.infer(x, **self._rows(offset, ids)))

    def _rows(self, offset: int, ids: Array | None) -> dict[str, Any]:
        return {"offset": offset + self.skipped} if ids is None else {"ids": ids + self.skipped}


class Scores(Linear):
    """An output layer with a bias that is added and not trained."""

    constant: Array | None = None

    def __call__(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        again: Callable[[], Array] | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward."""
        y, backward = super().__call__(x, residual=residual, again=again, ctx=ctx)
        backward.again = None  # it does not know the constant
        return self._moved(y), backward

    def infer(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        out: Array | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> Array:
        """Return y."""
        return self._moved(super().infer(x, residual=residual, out=out, dtype=dtype))

    def _moved(self, y: Array) -> Array:
        if self.constant is not None:
            y += beside(self.constant.astype(y.dtype, copy=False), y)
        return y
