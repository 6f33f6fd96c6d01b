"""Self-attention with a memory and relative positions, as in Transformer-XL."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.backward import Backward, chain, take
from numformer.nn.context import Context
from numformer.nn.dropout import Dropout, map_and_drop
from numformer.nn.heads import by_head, check
from numformer.nn.linear import Linear
from numformer.nn.module import Module
from numformer.nn.parameter import Parameter
from numformer.ops.memory import empty

Array = NDArray[Any]


def distance_sines(length: int, width: int, dtype: DTypeLike = np.float32) -> Array:
    """Return sines and cosines of the distances 0 to length - 1, (length, width): sines first, then cosines.

    The wavelengths are those of Vaswani et al., 2017; the order is Transformer-XL's.
    """
    initial.size("distance_sines", width=width)
    if width % 2:
        raise ValueError(f"distance_sines: width must be even, got {width}")
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(dtype)


class RelativeAttention(Module):
    """Causal self-attention over a memory and x (Dai et al., "Transformer-XL", 2019, section 3).

    y = dropout(concat(heads) W_o + b_o) + residual. Position i sees the memory and the positions of x up to i; the
    score of distance d is scale * ((q + u) . k + (q + v) . (W_r sine(d))), with biases u and v of each head. Keys and
    values of the memory are projected anew, and nothing of the gradient goes to it.

    Parameters
    ----------
    width : int
        Size of x; even.
    heads : int
        Number of heads; divides `width`.
    bias : bool
        Whether the projections have one (that of the sines has none).
    dropout : float
        On the output.
    transposed : bool
        Weights are kept as (outputs, inputs), as in PyTorch's checkpoints; see :class:`Linear`.
    std, output_std : float, optional
        Of the initial weights; `bias_u` and `bias_v` have `std` too, 0.02 by default.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, optional
        Draws the initial weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = False,
        dropout: float = 0.0,
        transposed: bool = False,
        std: float | None = None,
        output_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        initial.size("RelativeAttention", width=width, heads=heads)
        if width % heads:
            raise ValueError(f"RelativeAttention: heads must divide width {width}, got {heads}")
        if width % 2:
            raise ValueError(f"RelativeAttention: width must be even, got {width}")
        self.heads, self.size = heads, width // heads
        common: dict[str, Any] = {"transposed": transposed, "dtype": dtype, "rng": rng}
        self.qkv = Linear(width, 3 * width, bias=bias, std=std, **common)
        self.positions = Linear(width, width, bias=False, std=std, **common)
        self.output = Linear(width, width, bias=bias, std=output_std, **common)
        of_bias = 0.02 if std is None else std
        self.bias_u = Parameter(initial.normal(rng, (heads, self.size), of_bias, dtype))
        self.bias_v = Parameter(initial.normal(rng, (heads, self.size), of_bias, dtype))
        self.dropout = Dropout(dropout)

    def _split(self, qkv: Array, memory: int) -> tuple[Array, Array, Array]:
        """Return views of queries of x, keys and values of memory and x, (batch, heads, positions, size) each."""
        h = self.heads
        every = by_head(qkv, 3 * h, self.size)
        return every[:, :h, memory:], every[:, h : 2 * h], every[:, 2 * h :]

    def _by_head(self, x: Array) -> Array:
        """Return a view, (batch, heads, positions, size), of heads side by side."""
        return by_head(x, self.heads, self.size)

    def _rows(self, r: Array) -> Array:
        """Return a view of projected sines, (heads, distances, size)."""
        return self._by_head(r).swapaxes(0, 1)

    def _with_memory(self, x: Array, memory: Array | None) -> tuple[Array, int]:
        """Return memory and x, one behind the other, and the length of the memory."""
        width = self.heads * self.size
        check("RelativeAttention", "x", x, width, None, positions="positions")
        if memory is None:
            return x, 0
        if memory.ndim != 3 or memory.shape[::2] != x.shape[::2]:
            raise ValueError(
                f"RelativeAttention: memory must have shape ({x.shape[0]}, positions, {width}), got {memory.shape}"
            )
        return np.concatenate([memory.astype(x.dtype, copy=False), x], axis=1), memory.shape[1]

    def __call__(
        self,
        x: Array,
        *,
        memory: Array | None = None,
        residual: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward.

        Parameters
        ----------
        x : array
            (batch, positions, width).
        memory : array, optional
            (batch, memory positions, width): what this layer was given for the positions before x. Only read.
        residual : array, optional
            Added to the output; its gradient is dy.
        ctx : Context, optional
            Seed and step of dropout.

        Returns
        -------
        y : array
            (batch, positions, width).
        backward : callable
            ``backward(dy, residual=None)`` gives dx, plus `residual` where one is given.
        """
        whole, before = self._with_memory(x, memory)
        qkv, project = self.qkv(whole)
        r, project_positions = self.positions(distance_sines(whole.shape[1], x.shape[2], x.dtype))
        u, v = (bias.use(bias.value.dtype) for bias in (self.bias_u, self.bias_v))  # float32 beside 16-bit x
        rel = (self._rows(r), u, v, 0)
        merged = empty(x.shape, x.dtype)
        q, k, values = self._split(qkv, before)
        _, lse = ops.attention(q, k, values, causal=True, rel=rel, return_lse=True, out=self._by_head(merged))
        y, ends = map_and_drop(self.output, self.dropout, merged, residual=residual, ctx=ctx)
        saved = [project, project_positions, qkv, before, r, rel, merged, lse, ends]
        return y, Backward(self._backward, saved)

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Array:
        project, project_positions, qkv, before, r, rel, merged, lse, ends = take(saved)
        dmerged = chain(ends, dy)
        dqkv = empty(qkv.shape, qkv.dtype)
        dqkv[:, :before, : self.heads * self.size] = 0  # the memory asks for nothing
        *_, more = ops.attention_backward(
            self._by_head(dmerged),
            *self._split(qkv, before),
            self._by_head(merged),
            lse,
            causal=True,
            rel=rel,
            grads=("rel",),
            into=self._split(dqkv, before),
        )
        del qkv, merged, dmerged, lse, rel
        dr, du, dv = more["rel"]
        self.bias_u.add(du)
        self.bias_v.add(dv)
        project_positions(np.ascontiguousarray(dr.transpose(1, 0, 2)).reshape(r.shape))
        if before == 0:
            return project(dqkv, residual=residual)
        dx = np.ascontiguousarray(project(dqkv)[:, before:])
        return dx if residual is None else ops.add(dx, residual)

    def infer(self, x: Array, *, memory: Array | None = None, residual: Array | None = None) -> Array:
        """Return y; x and memory as above."""
        whole, before = self._with_memory(x, memory)
        r = self.positions.infer(distance_sines(whole.shape[1], x.shape[2], x.dtype))
        rel = (self._rows(r), self.bias_u.value, self.bias_v.value, 0)
        merged = empty(x.shape, x.dtype)
        ops.attention(*self._split(self.qkv.infer(whole), before), causal=True, rel=rel, out=self._by_head(merged))
        return self.output.infer(merged, residual=residual)
