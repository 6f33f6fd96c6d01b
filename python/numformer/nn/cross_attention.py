"""Multi-head attention from one sequence to another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.backward import Backward, chain, take
from numformer.nn.context import Context
from numformer.nn.dropout import Dropout, map_and_drop
from numformer.nn.heads import Starts, attend, attend_backward, by_head, check, check_unused
from numformer.nn.linear import Linear
from numformer.nn.module import Module
from numformer.ops.memory import empty

Array = NDArray[Any]


class CrossAttention(Module):
    """y = dropout(concat(heads) W_o + b_o) + residual; queries from x, keys and values from a memory.

    It is the encoder-decoder attention of Vaswani et al., 2017, section 3.2.3. One product makes keys and values, the
    heads are views, and attention writes where the next product reads, forward and backward.

    Parameters
    ----------
    width : int
        Size of x.
    heads : int
        Number of heads; divides `width`.
    memory_width : int, optional
        Size of the memory's rows, `width` by default.
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
        memory_width: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        transposed: bool = False,
        std: float | None = None,
        output_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        memory_width = width if memory_width is None else memory_width
        initial.size("CrossAttention", width=width, heads=heads, memory_width=memory_width)
        if width % heads:
            raise ValueError(f"CrossAttention: heads must divide width {width}, got {heads}")
        self.heads, self.size, self.memory_width = heads, width // heads, memory_width
        self.query = Linear(width, width, bias=bias, transposed=transposed, std=std, dtype=dtype, rng=rng)
        self.kv = Linear(memory_width, 2 * width, bias=bias, transposed=transposed, std=std, dtype=dtype, rng=rng)
        self.output = Linear(width, width, bias=bias, transposed=transposed, std=output_std, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout)

    def _by_head(self, x: Array) -> Array:
        return by_head(x, self.heads, self.size)

    def _keys_values(self, kv: Array) -> tuple[Array, Array]:
        every = by_head(kv, 2 * self.heads, self.size)
        return every[:, : self.heads], every[:, self.heads :]

    def __call__(
        self,
        x: Array,
        memory: Array,
        *,
        mask: Array | None = None,
        residual: Array | None = None,
        cu_seqlens: Array | None = None,
        memory_cu_seqlens: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward.

        Parameters
        ----------
        x : array
            (batch, positions, width), or packed (total, width).
        memory : array
            (batch, memory positions, memory_width), or packed (memory total, memory_width).
        mask : boolean array, optional
            True where position i may attend to j; broadcast to (batch, heads, positions, memory positions).
        residual : array, optional
            Added to the output; its gradient is dy.
        cu_seqlens, memory_cu_seqlens : (sequences + 1,) integers, optional
            Where packed sequences and their memories begin, and the totals; see `numformer.attention_varlen`.
        ctx : Context, optional
            Seed and step of dropout.

        Returns
        -------
        y : array
            In the shape of x.
        backward : callable
            ``backward(dy, residual=None, dmemory=None)`` gives (dx, dmemory), plus `residual` and `dmemory` where they
            are given: the layers of a decoder add up the gradient of the memory that they share.
        """
        starts = self._check(x, memory, cu_seqlens, memory_cu_seqlens, mask=mask)
        q, query = self.query(x)
        kv, project = self.kv(memory)
        merged = empty(q.shape, q.dtype, like=q)
        seen: dict[str, Any] = {"mask": mask, "starts": starts}
        _, lse = attend(self._by_head(q), *self._keys_values(kv), self._by_head(merged), return_lse=True, **seen)
        y, ends = map_and_drop(self.output, self.dropout, merged, residual=residual, cu_seqlens=cu_seqlens, ctx=ctx)
        return y, Backward(self._backward, [query, project, q, kv, merged, lse, seen, ends])

    def _backward(
        self, saved: list[Any], dy: Array, *, residual: Array | None = None, dmemory: Array | None = None
    ) -> tuple[Array, Array]:
        query, project, q, kv, merged, lse, seen, ends = take(saved)
        dmerged = chain(ends, dy)
        dq, dkv = empty(q.shape, q.dtype, like=q), empty(kv.shape, kv.dtype, like=kv)
        attend_backward(
            self._by_head(dmerged),
            self._by_head(q),
            *self._keys_values(kv),
            self._by_head(merged),
            lse,
            (self._by_head(dq), *self._keys_values(dkv)),
            **seen,
        )
        del q, kv, merged, dmerged, lse
        return query(dq, residual=residual), project(dkv, residual=dmemory)

    def project(self, memory: Array) -> Array:
        """Return the keys and values of a memory, (..., 2 * width), for :meth:`infer` to reuse."""
        return self.kv.infer(memory)

    def infer(
        self,
        x: Array,
        memory: Array | None = None,
        *,
        kv: Array | None = None,
        mask: Array | None = None,
        residual: Array | None = None,
        cu_seqlens: Array | None = None,
        memory_cu_seqlens: Array | None = None,
    ) -> Array:
        """Return y.

        Parameters
        ----------
        x : array
            (batch * n, positions, width): n sequences one after the other for each memory (the beams of a search); or
            packed (total, width).
        memory : array, optional
            (batch, memory positions, memory_width), or packed (memory total, memory_width).
        kv : array, optional
            From :meth:`project`, instead of the memory.
        mask : boolean array, optional
            (batch, 1, 1, memory positions) or the like: where n or positions are above 1, it cannot depend on them.
        residual : array, optional
            Added to the output.
        cu_seqlens, memory_cu_seqlens : (sequences + 1,) integers, optional
            Where packed sequences and their memories begin, and the totals.
        """
        kv, starts = self._memory(x, memory, kv, cu_seqlens, memory_cu_seqlens, mask=mask)
        q = self.query.infer(x)
        if starts is None:
            # All queries of one memory stand side by side: a memory is never repeated for its n sequences.
            q = q.reshape(kv.shape[0], -1, x.shape[2])
        merged = empty(q.shape, q.dtype, like=q)
        attend(self._by_head(q), *self._keys_values(kv), self._by_head(merged), mask=mask, starts=starts)
        return self.output.infer(merged.reshape(x.shape), residual=residual)

    def weights(
        self, x: Array, memory: Array | None = None, *, kv: Array | None = None, mask: Array | None = None
    ) -> Array:
        """Return softmax(scores), (batch, heads, positions, memory positions): to look at, in plain NumPy."""
        kv, _ = self._memory(x, memory, kv)
        k, _ = self._keys_values(kv)
        wide = np.float32 if x.dtype.itemsize == 2 else x.dtype
        scores = self._by_head(self.query.infer(x)).astype(wide) @ k.swapaxes(-1, -2).astype(wide) * self.size**-0.5
        if mask is None:
            return ops.softmax(scores)
        # The second `where` gives zeros, not NaN, to a row that may attend to nothing.
        return np.where(mask, ops.softmax(np.where(mask, scores, np.array(-np.inf, scores.dtype))), 0)

    def _memory(
        self,
        x: Array,
        memory: Array | None,
        kv: Array | None,
        cu_seqlens: Array | None = None,
        memory_cu_seqlens: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, Starts]:
        """Check the inputs of inference; return keys and values, and where packed queries and keys begin."""
        if (memory is None) == (kv is None):
            raise ValueError("CrossAttention: give either memory or kv")
        starts = cu_seqlens, memory_cu_seqlens
        if memory is not None:
            begins = self._check(x, memory, *starts, several=True, mask=mask)
            return self.project(memory), begins
        assert kv is not None
        return kv, self._check(x, kv, *starts, several=True, name="kv", mask=mask)

    def _check(
        self,
        x: Array,
        memory: Array,
        cu_seqlens: Array | None,
        memory_cu_seqlens: Array | None,
        *,
        mask: Array | None,
        several: bool = False,
        name: str = "memory",
    ) -> Starts:
        """Check the inputs of a call; return where packed queries and keys begin."""
        owner, width = "CrossAttention", self.heads * self.size
        if (cu_seqlens is None) != (memory_cu_seqlens is None):
            raise ValueError("CrossAttention: give both cu_seqlens and memory_cu_seqlens, or neither")
        check(owner, "x", x, width, cu_seqlens, positions="positions")
        rows = self.memory_width if name == "memory" else 2 * width
        check(owner, name, memory, rows, cu_seqlens, positions="memory positions")
        check_unused(owner, cu_seqlens, mask=mask)
        if cu_seqlens is not None and memory_cu_seqlens is not None:
            return cu_seqlens, memory_cu_seqlens
        if x.shape[0] != memory.shape[0] and not (several and memory.shape[0] and x.shape[0] % memory.shape[0] == 0):
            raise ValueError(f"CrossAttention: x has a batch of {x.shape[0]}, but {name} one of {memory.shape[0]}")
        return None
