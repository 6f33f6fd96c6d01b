"""Multi-head self-attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.backward import Backward, take
from numformer.nn.cache import KVCache
from numformer.nn.context import Context
from numformer.nn.dropout import Dropout
from numformer.nn.linear import Linear
from numformer.nn.module import Module
from numformer.ops.memory import empty

Array = NDArray[Any]


class MultiHeadAttention(Module):
    """Self-attention: y = dropout(concat(heads) W_o + b_o) + residual (Vaswani et al., 2017).

    One product makes queries, keys and values, the heads are views of it, and attention writes where the next product
    reads: nothing is copied, forward or backward.

    Parameters
    ----------
    width : int
        Size of x.
    heads : int
        Query heads; divides `width`.
    num_kv_heads : int, optional
        Key and value heads, which groups of query heads share; divides `heads`. As many as `heads` by default.
    causal : bool
        Position i sees positions up to i.
    bias : bool
        Whether the projections have one.
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
        heads: int,
        *,
        num_kv_heads: int | None = None,
        causal: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        transposed: bool = False,
        std: float | None = None,
        output_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        kv_heads = heads if num_kv_heads is None else num_kv_heads
        initial.size("MultiHeadAttention", width=width, heads=heads, num_kv_heads=kv_heads)
        if width % heads:
            raise ValueError(f"MultiHeadAttention: heads must divide width {width}, got {heads}")
        if heads % kv_heads:
            raise ValueError(f"MultiHeadAttention: num_kv_heads must divide heads {heads}, got {kv_heads}")
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.causal = causal
        channels = (heads + 2 * kv_heads) * self.size
        self.qkv = Linear(width, channels, bias=bias, transposed=transposed, std=std, dtype=dtype, rng=rng)
        self.output = Linear(width, width, bias=bias, transposed=transposed, std=output_std, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout)

    def _split(self, qkv: Array) -> tuple[Array, Array, Array]:
        """Return views of queries, keys and values, (batch, heads, positions, size) each."""
        batch, length, _ = qkv.shape
        h, g = self.heads, self.kv_heads
        every = qkv.reshape(batch, length, h + 2 * g, self.size).transpose(0, 2, 1, 3)
        return every[:, :h], every[:, h : h + g], every[:, h + g :]

    def _merged(self, x: Array) -> tuple[Array, Array]:
        """Make an array for the heads side by side, and its view by head."""
        merged = empty(x.shape, x.dtype)
        return merged, merged.reshape(*x.shape[:2], self.heads, self.size).transpose(0, 2, 1, 3)

    def __call__(
        self, x: Array, *, mask: Array | None = None, residual: Array | None = None, ctx: Context | None = None
    ) -> tuple[Array, Backward]:
        """Return y and its backward.

        Parameters
        ----------
        x : array
            (batch, positions, width).
        mask : boolean array, optional
            True where position i may attend to j; broadcast to (batch, heads, positions, positions).
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
        self._check(x)
        qkv, project = self.qkv(x)
        merged, heads = self._merged(x)
        q, k, v = self._split(qkv)
        _, lse = ops.attention(q, k, v, causal=self.causal, mask=mask, return_lse=True, out=heads)
        if self.dropout.p == 0.0:
            y, output = self.output(merged, residual=residual)
            dropout = None
        else:
            y, output = self.output(merged)
            y, dropout = self.dropout(y, residual=residual, ctx=ctx)
        return y, Backward(self._backward, [project, qkv, heads, lse, mask, output, dropout])

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Any:
        project, qkv, heads, lse, mask, output, dropout = take(saved)
        if dropout is not None:
            dy = dropout(dy)
        dheads = output(dy)
        dheads = dheads.reshape(*dheads.shape[:2], self.heads, self.size).transpose(0, 2, 1, 3)
        q, k, v = self._split(qkv)
        dqkv = empty(qkv.shape, qkv.dtype)
        ops.attention_backward(dheads, q, k, v, heads, lse, causal=self.causal, mask=mask, into=self._split(dqkv))
        del qkv, q, k, v, heads, dheads, lse
        return project(dqkv, residual=residual)

    def infer(
        self, x: Array, *, mask: Array | None = None, residual: Array | None = None, cache: KVCache | None = None
    ) -> Array:
        """Return y; with a `cache`, x continues the sequences in it."""
        self._check(x)
        q, k, v = self._split(self.qkv.infer(x))
        if cache is not None:
            k, v = cache.append(k, v)
        merged, heads = self._merged(x)
        ops.attention(q, k, v, causal=self.causal, mask=mask, out=heads)
        return self.output.infer(merged, residual=residual)

    def _check(self, x: Array) -> None:
        if x.ndim != 3 or x.shape[2] != self.heads * self.size:
            raise ValueError(
                f"MultiHeadAttention: x must have shape (batch, positions, {self.heads * self.size}), got {x.shape}"
            )
