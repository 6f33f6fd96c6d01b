"""Self-attention in a window that slides along, with some global tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.attention import MultiHeadAttention
from numformer.nn.backward import Backward, take
from numformer.nn.cache import KVCache
from numformer.nn.context import Context
from numformer.nn.linear import Linear

Array = NDArray[Any]

UNREAD, LOCAL, GLOBAL = 0, 1, 2
"""What a token is: not attended to, attended to from its neighbourhood, attending to all and attended to by all."""


class SlidingAttention(MultiHeadAttention):
    """Self-attention to the neighbours, whose cost is linear in the length (Beltagy et al., "Longformer", 2020).

    Position i sees the positions i - window .. i + window and the global tokens. Global tokens see everything, through
    projections of their own: queries of these few, keys and values of all. The rows of global tokens are computed
    by a second call of attention and put among those of the first, which leaves them out.

    Parameters
    ----------
    width, heads : int
        Size of x and number of heads.
    window : int
        How far a position sees to either side.
    bias, dropout, transposed, std, output_std, dtype, rng
        As for :class:`MultiHeadAttention`.
    num_kv_heads, causal
        There are as many as `heads`, and it is not causal: other values raise ValueError.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
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
        initial.size("SlidingAttention", window=window)
        if causal or num_kv_heads not in (None, heads):
            raise ValueError("SlidingAttention: causal must be False and num_kv_heads those of heads")
        common: dict[str, Any] = {"bias": bias, "transposed": transposed, "std": std, "dtype": dtype, "rng": rng}
        super().__init__(width, heads, dropout=dropout, output_std=output_std, **common)
        self.window = window
        self.query_global = Linear(width, width, **common)
        self.kv_global = Linear(width, 2 * width, **common)

    def __call__(
        self, x: Array, *, mask: Array | None = None, residual: Array | None = None, ctx: Context | None = None
    ) -> tuple[Array, Backward]:
        """Return y and its backward.

        Parameters
        ----------
        x : array
            (batch, positions, width).
        mask : integer array, optional
            (batch, positions): 0 for tokens that are not read (padding), 1 for others, 2 for global ones. None: all
            are 1.
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
        options, rows = self._seen(x, mask)
        qkv, project = self.qkv(x)
        merged, heads = self._merged(x)
        _, lse = ops.attention(*self._split(qkv), return_lse=True, out=heads, **options)
        saved = None
        if rows is not None:
            q, query = self.query_global(_gathered(x, rows))
            kv, keys_values = self.kv_global(x)
            out, outs = self._merged(q)
            every = (self._by_head(q, self.heads), *self._keys_values(kv))
            _, lse_global = ops.attention(*every, mask=options["mask"], return_lse=True, out=outs)
            merged[rows[:2]] = out[rows[0], rows[2]]
            saved = [query, keys_values, q, kv, out, lse_global]
        if self.dropout.p == 0.0:
            y, output = self.output(merged, residual=residual)
            dropout = None
        else:
            y, output = self.output(merged)
            y, dropout = self.dropout(y, residual=residual, ctx=ctx)
        return y, Backward(self._backward, [project, qkv, heads, lse, options, rows, saved, output, dropout])

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Any:
        project, qkv, heads, lse, options, rows, saved_global, output, dropout = take(saved)
        if dropout is not None:
            dy = dropout(dy)
        dmerged = output(dy)
        dqkv = np.empty(qkv.shape, qkv.dtype)
        # Rows of global tokens saw nothing in this call, so what stands there now does not matter.
        ops.attention_backward(
            self._by_head(dmerged, self.heads), *self._split(qkv), heads, lse, into=self._split(dqkv), **options
        )
        del qkv, heads, lse
        dx = project(dqkv, residual=residual)
        del dqkv
        if rows is not None:
            query, keys_values, q, kv, out, lse = take(saved_global)
            dq, dkv = np.empty(q.shape, q.dtype), np.empty(kv.shape, kv.dtype)
            ops.attention_backward(
                self._by_head(_gathered(dmerged, rows), self.heads),
                self._by_head(q, self.heads),
                *self._keys_values(kv),
                self._by_head(out, self.heads),
                lse,
                mask=options["mask"],
                into=(self._by_head(dq, self.heads), *self._keys_values(dkv)),
            )
            del q, kv, out, lse, dmerged
            dx = keys_values(dkv, residual=dx)
            dx[rows[:2]] += query(dq)[rows[0], rows[2]]
        return dx

    def infer(
        self, x: Array, *, mask: Array | None = None, residual: Array | None = None, cache: KVCache | None = None
    ) -> Array:
        """Return y; there is no use of a `cache`, as tokens see what comes after them."""
        if cache is not None:
            raise ValueError("SlidingAttention: there is no cache, as tokens see what comes after them")
        self._check(x)
        options, rows = self._seen(x, mask)
        merged, heads = self._merged(x)
        ops.attention(*self._split(self.qkv.infer(x)), out=heads, **options)
        if rows is not None:
            q = self._by_head(self.query_global.infer(_gathered(x, rows)), self.heads)
            out = ops.attention(q, *self._keys_values(self.kv_global.infer(x)), mask=options["mask"])
            merged[rows[:2]] = out.transpose(0, 2, 1, 3).reshape(len(x), -1, x.shape[2])[rows[0], rows[2]]
        return self.output.infer(merged, residual=residual)

    def _seen(self, x: Array, mask: Array | None) -> tuple[dict[str, Any], tuple[Array, Array, Array] | None]:
        """Return the options of the call in the window, and where global tokens are: batch, position, number."""
        options: dict[str, Any] = {"window": (self.window, self.window), "mask": None}
        if mask is None:
            return options, None
        if mask.shape != x.shape[:2] or mask.dtype.kind not in "iu":
            raise ValueError(
                f"SlidingAttention: mask must be integers of shape {x.shape[:2]}, got {mask.dtype} of {mask.shape}"
            )
        if not (mask != UNREAD).all():
            options["mask"] = (mask != UNREAD)[:, None, None, :]
        tokens = mask == GLOBAL
        if not tokens.any():
            return options, None
        options |= {"global_tokens": tokens, "global_rows": False}
        batch, position = np.nonzero(tokens)
        return options, (batch, position, (np.cumsum(tokens, axis=1) - 1)[batch, position])

    def _by_head(self, x: Array, heads: int) -> Array:
        return x.reshape(*x.shape[:2], heads, self.size).transpose(0, 2, 1, 3)

    def _keys_values(self, kv: Array) -> tuple[Array, Array]:
        every = self._by_head(kv, 2 * self.heads)
        return every[:, : self.heads], every[:, self.heads :]


def _gathered(x: Array, rows: tuple[Array, Array, Array]) -> Array:
    """Return the rows of global tokens, (batch, the most of a sequence, width), filled up with zeros."""
    batch, position, number = rows
    found = np.zeros((len(x), int(number.max()) + 1, x.shape[2]), x.dtype)
    found[batch, number] = x[batch, position]
    return found
