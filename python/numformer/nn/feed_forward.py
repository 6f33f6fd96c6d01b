"""The position-wise network of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer.nn import initial
from numformer.nn.backward import Backward, chain, take
from numformer.nn.context import Context
from numformer.nn.dropout import Dropout, map_and_drop
from numformer.nn.heads import samples
from numformer.nn.linear import Linear
from numformer.nn.module import Module
from numformer.ops.memory import empty

Array = NDArray[Any]

# Rows of inference that are worth a call of the kernels: the weights are read once more for each.
_PIECE = 1024


class FeedForward(Module):
    """y = dropout(activation(x W1 + b1) W2 + b2) + residual.

    Parameters
    ----------
    width, hidden : int
        Sizes of x and of what is between; hidden is 4 * width by default.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}
        Between the two maps.
    bias : bool
        Whether the maps have one.
    dropout : float
        On the output.
    transposed : bool
        Weights are kept as (outputs, inputs), as in PyTorch's checkpoints; see :class:`Linear`.
    std, output_std : float, optional
        Of the initial weights.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, optional
        Draws the initial weights.
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        *,
        activation: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        transposed: bool = False,
        std: float | None = None,
        output_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        hidden = 4 * width if hidden is None else hidden
        self.inner = Linear(
            width, hidden, bias=bias, activation=activation, transposed=transposed, std=std, dtype=dtype, rng=rng
        )
        self.outer = Linear(hidden, width, bias=bias, transposed=transposed, std=output_std, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        again: Callable[[], Array] | None = None,
        cu_seqlens: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward; ``backward(dy, residual=None)`` gives dx, plus `residual` where one is given.

        `cu_seqlens`, of packed sequences, concerns dropout only, and only where x has two axes: each position is by
        itself, and rows are samples. With `again`, the backward makes x once more instead of keeping it. What is
        between the two maps it makes from the pre-activation, which the gradient of the activation needs anyway.
        """
        h, inner = self.inner(x, again=again)
        cu_seqlens = samples(x, cu_seqlens)
        y, ends = map_and_drop(
            self.outer, self.dropout, h, residual=residual, again=inner.again, cu_seqlens=cu_seqlens, ctx=ctx
        )
        return y, Backward(self._backward, [inner, ends])

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Any:
        inner, ends = take(saved)
        return inner(chain(ends, dy), residual=residual)

    def infer(self, x: Array, *, residual: Array | None = None) -> Array:
        """Return y; of a long x piece by piece, so that the inner rows of all are never in memory."""
        if x.size < 2 * _PIECE * x.shape[-1]:
            return self.outer.infer(self.inner.infer(x), residual=residual)
        rows = x.reshape(-1, x.shape[-1])
        ends = np.arange(len(rows) // _PIECE) * _PIECE  # the last piece has up to 2 * _PIECE - 1 rows
        y = empty((len(rows), self.outer.outputs), x.dtype, like=x)
        more = None if residual is None else residual.reshape(y.shape)
        for begin, end in zip(ends, [*ends[1:], len(rows)], strict=True):
            h = self.inner.infer(rows[begin:end])
            self.outer.infer(h, residual=None if more is None else more[begin:end], out=y[begin:end])
        return y.reshape(*x.shape[:-1], -1)
