"""Self-attention in a window that slides along, with some global tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.attention import MultiHeadAttention
from numformer.nn.backward import Backward, chain, take
from numformer.nn.cache import KVCache
from numformer.nn.context import Context
from numformer.nn.dilated import attend_dilated, attend_dilated_backward
from numformer.nn.dropout import map_and_drop
from numformer.nn.heads import by_head, check
from numformer.nn.linear import Linear
from numformer.nn.parameter import Parameter
from numformer.ops.memory import beside, empty, namespace

Array = NDArray[Any]

UNREAD, LOCAL, GLOBAL = 0, 1, 2
"""What a token is: not attended to, attended to from its neighbourhood, attending to all and attended to by all."""


class SlidingAttention(MultiHeadAttention):
    """Self-attention to the neighbours, whose cost is linear in the length (Beltagy et al., "Longformer", 2020).

    Position i sees the positions i - window .. i + window and the global tokens. Global tokens see everything, through
    projections of their own. Their rows are computed by a second call of attention and put among those of the first,
    which leaves them out.

    Keys and values of the second call are projections of all tokens for the sake of a few queries, so the maps change
    sides: q . (W_k x) = (W_k^T q) . x, and the sum of p W_v x is W_v times the sum of p x. That is 4 N D operations a
    global token and head on sequences of N rows of D, instead of 4 N D^2 for all: less up to about D / (2 heads) global
    tokens. The bias of keys adds the same to all scores of a query and so does nothing.

    Parameters
    ----------
    width, heads : int
        Size of x and number of heads.
    window : int
        How many positions one sees to either side.
    dilation : int or sequence of int
        Every how manieth of its neighbours a position sees, of all heads or of each: a window of w reaches w times as
        far (section 3.1 of the paper).
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
        dilation: int | Sequence[int] = 1,
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
        self.dilations = (dilation,) * heads if isinstance(dilation, (int, np.integer)) else tuple(dilation)
        for one in self.dilations:
            initial.size("SlidingAttention", dilation=one)
        if len(self.dilations) != heads:
            raise ValueError(
                f"SlidingAttention: dilation must be one number or {heads}, one for each head, "
                f"got {len(self.dilations)}"
            )
        self.query_global = Linear(width, width, **common)
        self.key_global = Linear(width, width, **common)
        self.value_global = Linear(width, width, **common)

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
            (batch, positions, width).
        mask : integer array, optional
            (batch, positions): 0 for tokens that are not read (padding), 1 for others, 2 for global ones. None: all
            are 1. It is looked at, so it is on the host, also where x is on a GPU.
        residual : array, optional
            Added to the output; its gradient is dy.
        again : callable, optional
            Makes x once more: the backward calls it instead of keeping x, where there are no global tokens.
        cu_seqlens : None
            Sequences cannot be packed here.
        ctx : Context, optional
            Seed and step of dropout.

        Returns
        -------
        y : array
            (batch, positions, width).
        backward : callable
            ``backward(dy, residual=None)`` gives dx, plus `residual` where one is given.
        """
        options, rows = self._seen(x, mask, cu_seqlens=cu_seqlens)
        qkv, project = self.qkv(x, again=again)
        merged, heads = self._merged(x)
        lse = self._near(*self._split(qkv), heads, options)
        far = []
        for sequence, places in rows:
            q, query = self.query_global(ops.embedding(x[sequence], places))
            maps = self._maps(x.dtype, Parameter.use)
            if self.key_global.bias is not None:
                self.key_global.bias.use(x.dtype)
            read = _read(options, sequence, x)
            y, *kept = self._far(q, x[sequence], read, *maps)
            _add_rows(merged[sequence], places, y)  # to zeros
            far.append([sequence, places, read, query, q, *maps[:2], *kept])
        y, ends = map_and_drop(self.output, self.dropout, merged, residual=residual, ctx=ctx)
        return y, Backward(self._backward, [x if far else None, project, qkv, heads, lse, options, far, ends])

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Any:
        x, project, qkv, heads, lse, options, far, ends = take(saved)
        dmerged = chain(ends, dy)
        dqkv = empty(qkv.shape, qkv.dtype, like=qkv)
        # Rows of global tokens saw nothing in this call, so what stands there now does not matter.
        given = (by_head(dmerged, self.heads, self.size), *self._split(qkv), heads, lse)
        if self._is_dilated():
            attend_dilated_backward(*given, self._split(dqkv), dilations=self.dilations, **_without_rows(options))
        else:
            ops.attention_backward(*given, into=self._split(dqkv), **options)
        del given
        del qkv, heads, lse
        dx = project(dqkv, residual=residual)
        while far:
            sequence, places, *kept = far.pop()
            dfar = ops.embedding(dmerged[sequence], places)
            drows = self._far_backward(kept, dfar, x[sequence], dx[sequence])
            _add_rows(dx[sequence], places, drows)
        return dx

    def infer(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        residual: Array | None = None,
        cu_seqlens: Array | None = None,
        cache: KVCache | None = None,
    ) -> Array:
        """Return y; there is no use of a `cache`, as tokens see what comes after them, and nothing is packed."""
        options, rows = self._seen(x, mask, cu_seqlens=cu_seqlens, cache=cache)
        merged, heads = self._merged(x)
        self._near(*self._split(self.qkv.infer(x)), heads, options)
        for sequence, places in rows:
            q = self.query_global.infer(ops.embedding(x[sequence], places))
            maps = self._maps(x.dtype, Parameter.read)
            y = self._far(q, x[sequence], _read(options, sequence, x), *maps)[0]
            _add_rows(merged[sequence], places, y)
        return self.output.infer(merged, residual=residual)

    def _seen(self, x: Array, mask: Array | None, **unused: object) -> tuple[dict[str, Any], list[tuple[int, Array]]]:
        """Return the options of the call in the window, and where each sequence that has any has global tokens."""
        width = self.heads * self.size
        for name, value in unused.items():
            if value is not None:
                raise ValueError(f"SlidingAttention: {name} must be None, got {type(value).__name__}")
        check("SlidingAttention", "x", x, width, None, positions="positions")
        options: dict[str, Any] = {"window": (self.window, self.window), "mask": None}
        if mask is None:
            return options, []
        if mask.shape != x.shape[:2] or mask.dtype.kind not in "iu":
            raise ValueError(
                f"SlidingAttention: mask must be integers of shape {x.shape[:2]}, got {mask.dtype} of {mask.shape}"
            )
        read, tokens = mask != UNREAD, mask == GLOBAL
        near = mask if self._is_dilated() else x  # strided views are made of what is looked at
        if not read.all():
            options["mask"] = beside(read[:, None, None, :], near)
        if tokens.any():
            options |= {"global_tokens": beside(tokens, near), "global_rows": False}
        # One sequence after the other: each has the bits that it has alone.
        rows = np.flatnonzero(tokens.any(axis=1))
        return options, [(int(i), beside(np.flatnonzero(tokens[i]), x)) for i in rows]

    def _is_dilated(self) -> bool:
        return any(one != 1 for one in self.dilations)

    def _near(self, q: Array, k: Array, v: Array, out: Array, options: dict[str, Any]) -> Array:
        """Write the attention in the window and to global tokens to `out`; return lse."""
        if self._is_dilated():
            return attend_dilated(q, k, v, out, dilations=self.dilations, **_without_rows(options))
        return ops.attention(q, k, v, return_lse=True, out=out, **options)[1]

    def _maps(self, dtype: Any, read: Callable[[Parameter, Any], Array]) -> tuple[Array, Array, Array | None]:
        """Return the maps of keys and values by head, (heads, size, width), and the bias of values."""
        key, value = (
            (one if layer.transposed else one.T).reshape(self.heads, self.size, -1)
            for layer in (self.key_global, self.value_global)
            for one in [read(layer.weight, dtype)]
        )
        bias = self.value_global.bias
        return key, value, None if bias is None else read(bias, dtype)

    def _far(
        self, q: Array, x: Array, read: Array | None, key: Array, value: Array, bias: Array | None
    ) -> tuple[Array, Array, Array, Array]:
        """Attend to everything: W_v,h (softmax(q_h W_k,h x^T) x) + b_v; and what the backward needs.

        q is (global tokens, width), x (positions, width).
        """
        asked = ops.matmul(self._by_head(q), key)  # (heads, global tokens, width)
        means, lse = ops.attention(
            asked.reshape(-1, x.shape[1]), x, x, scale=self.size**-0.5, mask=read, return_lse=True
        )
        means = means.reshape(asked.shape)
        far = ops.matmul(means, value.swapaxes(1, 2)).swapaxes(0, 1).reshape(q.shape)
        return far if bias is None else ops.add(far, bias), asked, means, lse

    def _far_backward(self, saved: list[Any], dfar: Array, x: Array, dx: Array) -> Any:
        """Add to dx and to the gradients of the global projections; return the gradient of the global rows."""
        read, query, q, key, value, asked, means, lse = take(saved)
        if (bias := self.value_global.bias) is not None:
            ops.sum_rows(dfar, out=bias.buffer(), accumulate=not bias.fresh)
            bias.done()
        if (bias := self.key_global.bias) is not None:
            bias.add(namespace(x).zeros(bias.value.shape, bias.value.dtype))
        d = self._by_head(dfar)
        self._add(self.value_global, d, means)
        flat = (-1, x.shape[1])
        dasked, dkeys, dvalues = ops.attention_backward(
            ops.matmul(d, value).reshape(flat),
            asked.reshape(flat),
            x,
            x,
            means.reshape(flat),
            lse,
            scale=self.size**-0.5,
            mask=read,
        )
        dx[...] = ops.add(dx, ops.add(dkeys, dvalues))
        dasked = dasked.reshape(asked.shape)
        self._add(self.key_global, self._by_head(q), dasked)
        return query(ops.matmul(dasked, key.swapaxes(1, 2)).swapaxes(0, 1).reshape(q.shape))

    def _add(self, layer: Linear, left: Array, right: Array) -> None:
        """Add the gradient of a map's weight: left is (heads, n, size), right (heads, n, width)."""
        gradient = ops.matmul(left.swapaxes(1, 2), right, dtype=layer.weight.value.dtype).reshape(-1, right.shape[2])
        layer.weight.add(gradient if layer.transposed else gradient.T)

    def _by_head(self, rows: Array) -> Array:
        """Return a view of rows, (n, width), by head: (heads, n, size)."""
        return by_head(rows, self.heads, self.size).swapaxes(0, 1)


def _without_rows(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "global_rows"}


def _read(options: dict[str, Any], sequence: int, x: Array) -> Array | None:
    """Return which keys of a sequence are read, (1, positions), where x is; None where all are."""
    mask = options["mask"]
    return None if mask is None else beside(mask[sequence, 0], x)


def _add_rows(x: Array, places: Array, rows: Array) -> None:
    """Add rows to those of a matrix at different places."""
    ops.embedding_backward(rows, places, len(x), out=x, accumulate=True)
