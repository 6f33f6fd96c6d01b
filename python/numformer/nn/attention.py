"""Multi-head self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer.nn import initial
from numformer.nn.backward import Backward, chain, take
from numformer.nn.cache import KVCache
from numformer.nn.context import Context
from numformer.nn.dropout import Dropout, map_and_drop
from numformer.nn.heads import Starts, attend, attend_backward, by_head, check, check_unused, flat, samples
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
        """Return views of queries, keys and values by head."""
        h, g = self.heads, self.kv_heads
        every = by_head(qkv, h + 2 * g, self.size)
        return every[:, :h], every[:, h : h + g], every[:, h + g :]

    def _merged(self, x: Array, starts: Starts = None) -> tuple[Array, Array]:
        """Make an array for the heads side by side, and its view by head."""
        merged = empty(x.shape, x.dtype, like=x)
        return merged, by_head(flat(merged, starts), self.heads, self.size)

    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        residual: Array | None = None,
        again: Callable[[], Array] | None = None,
        cu_seqlens: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward.

        Parameters
        ----------
        x : array
            (batch, positions, width), or packed (total, width).
        mask : boolean array, optional
            True where position i may attend to j; broadcast to (batch, heads, positions, positions).
        cu_seqlens : (sequences + 1,) integers, optional
            Where packed sequences begin, and the total; see `numformer.attention_varlen`. Where x has three axes, its
            rows, one after the other, hold the sequences, and a row is a sample of dropout.
        residual : array, optional
            Added to the output; its gradient is dy.
        again : callable, optional
            Makes x once more: the backward calls it instead of keeping x.
        ctx : Context, optional
            Seed and step of dropout.

        Returns
        -------
        y : array
            In the shape of x.
        backward : callable
            ``backward(dy, residual=None)`` gives dx, plus `residual` where one is given.
        """
        starts = self._check(x, cu_seqlens, mask=mask)
        qkv, project = self.qkv(x, again=again)
        merged, heads = self._merged(x, starts)
        seen: dict[str, Any] = {"causal": self.causal, "mask": mask, "starts": starts}
        _, lse = attend(*self._split(flat(qkv, starts)), heads, return_lse=True, **seen)
        cu_seqlens = samples(x, cu_seqlens)
        y, ends = map_and_drop(self.output, self.dropout, merged, residual=residual, cu_seqlens=cu_seqlens, ctx=ctx)
        return y, Backward(self._backward, [project, qkv, heads, lse, seen, ends])

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Any:
        project, qkv, heads, lse, seen, ends = take(saved)
        starts = seen["starts"]
        dheads = by_head(flat(chain(ends, dy), starts), self.heads, self.size)
        dqkv = empty(qkv.shape, qkv.dtype, like=qkv)
        split = self._split(flat(qkv, starts)), self._split(flat(dqkv, starts))
        attend_backward(dheads, *split[0], heads, lse, split[1], **seen)
        del qkv, heads, dheads, lse, split
        return project(dqkv, residual=residual)

    def infer(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        residual: Array | None = None,
        cu_seqlens: Array | None = None,
        cache: KVCache | None = None,
    ) -> Array:
        """Return y; with a `cache`, x continues the sequences in it; with `cu_seqlens`, x is packed."""
        starts = self._check(x, cu_seqlens, mask=mask, cache=cache)
        q, k, v = self._split(flat(self.qkv.infer(x), starts))
        if cache is not None:
            k, v = cache.append(k, v)
        merged, heads = self._merged(x, starts)
        attend(q, k, v, heads, causal=self.causal, mask=mask, starts=starts)
        return self.output.infer(merged, residual=residual)

    def _check(self, x: Array, cu_seqlens: Array | None, **unpacked: object) -> Starts:
        """Check the input of a call; return where its queries and keys begin."""
        if cu_seqlens is None and x.ndim == 3 and x.shape[2] == self.heads * self.size:
            return None
        check("MultiHeadAttention", "x", x, self.heads * self.size, cu_seqlens, positions="positions", rows=True)
        check_unused("MultiHeadAttention", cu_seqlens, **unpacked)
        return None if cu_seqlens is None else (cu_seqlens, cu_seqlens)
