"""Self-attention with a memory and relative positions, as in Transformer-XL."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.cache import KVCache
from numformer.nn import initial
from numformer.nn.backward import Backward, chain, take
from numformer.nn.context import Context
from numformer.nn.dropout import Dropout, map_and_drop
from numformer.nn.heads import by_head, check
from numformer.nn.linear import Linear
from numformer.nn.module import Module
from numformer.nn.parameter import Parameter
from numformer.ops.memory import beside, device_of, empty, moved, namespace

Array = NDArray[Any]


def distance_sines(length: int, width: int, dtype: DTypeLike = np.float32, *, clamp: int | None = None) -> Array:
    """Return sines and cosines of the distances 0 to length - 1, (length, width): sines first, then cosines.

    The wavelengths are those of Vaswani et al., 2017; the order is Transformer-XL's. Distances above `clamp` count as
    `clamp`. The array is read-only: the last few are kept, as all layers ask for the same one.
    """
    initial.size("distance_sines", width=width)
    if width % 2:
        raise ValueError(f"distance_sines: width must be even, got {width}")
    return _sines(length, width, np.dtype(dtype), clamp, "cpu")


@functools.lru_cache(maxsize=4)
def _sines(length: int, width: int, dtype: np.dtype[Any], clamp: int | None, device: str) -> Array:
    distances = np.arange(length) if clamp is None else np.minimum(np.arange(length), clamp)
    angles = distances[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    rows = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(dtype)
    rows.flags.writeable = False
    return moved(rows, device)


class RelativeCache(KVCache):
    """Keys and values of what was read, and the rows of relative positions, of one :class:`RelativeAttention`.

    Keys and values of a memory are the same whenever they are computed, and rows of distances the same for every
    token: kept, they make the cost of a token that of its own projections.

    Parameters
    ----------
    memory : int
        Positions before the new ones that are attended to.
    """

    def __init__(self, memory: int) -> None:
        super().__init__(min(64, memory + 1), window=memory)
        self.rows: Array | None = None


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
    clamp : int, optional
        The largest distance that is told from others; larger ones count as this one.
    window : int, optional
        How many positions before its own one sees; all of x and memory by default.
    dropout : float
        On the output.
    biases : pair of Parameter, optional
        u and v, (heads, width / heads) each, to share with other layers instead of new ones.
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
        clamp: int | None = None,
        window: int | None = None,
        dropout: float = 0.0,
        biases: tuple[Parameter, Parameter] | None = None,
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
        if clamp is not None:
            initial.size("RelativeAttention", clamp=clamp)
        if window is not None and window < 0:
            raise ValueError(f"RelativeAttention: window must be at least 0, got {window}")
        self.heads, self.size, self.clamp = heads, width // heads, clamp
        self.window = None if window is None else (window, None)
        common: dict[str, Any] = {"transposed": transposed, "dtype": dtype, "rng": rng}
        self.qkv = Linear(width, 3 * width, bias=bias, std=std, **common)
        self.positions = Linear(width, width, bias=False, std=std, **common)
        self.output = Linear(width, width, bias=bias, std=output_std, **common)
        of_bias = 0.02 if std is None else std
        u, v = biases or [Parameter(initial.normal(rng, (heads, self.size), of_bias, dtype)) for _ in range(2)]
        self.bias_u, self.bias_v = u, v
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
        memory = beside(memory, x).astype(x.dtype, copy=False)
        return namespace(x).concatenate([memory, x], axis=1), memory.shape[1]

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
        r, project_positions = self.positions(self._sines(whole.shape[1], x))
        u, v = (bias.use(bias.value.dtype) for bias in (self.bias_u, self.bias_v))  # float32 beside 16-bit x
        rel = (self._rows(r), u, v, 0)
        merged = empty(x.shape, x.dtype, like=x)
        q, k, values = self._split(qkv, before)
        seen: dict[str, Any] = {"causal": True, "window": self.window, "rel": rel}
        _, lse = ops.attention(q, k, values, return_lse=True, out=self._by_head(merged), **seen)
        y, ends = map_and_drop(self.output, self.dropout, merged, residual=residual, ctx=ctx)
        saved = [project, project_positions, qkv, before, r, seen, merged, lse, ends]
        return y, Backward(self._backward, saved)

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Array:
        project, project_positions, qkv, before, r, seen, merged, lse, ends = take(saved)
        dmerged = chain(ends, dy)
        dqkv = empty(qkv.shape, qkv.dtype, like=qkv)
        dqkv[:, :before, : self.heads * self.size] = 0  # the memory asks for nothing
        *_, more = ops.attention_backward(
            self._by_head(dmerged),
            *self._split(qkv, before),
            self._by_head(merged),
            lse,
            grads=("rel",),
            into=self._split(dqkv, before),
            **seen,
        )
        del qkv, merged, dmerged, lse, seen
        dr, du, dv = more["rel"]
        self.bias_u.add(du)
        self.bias_v.add(dv)
        project_positions(dr.swapaxes(0, 1).reshape(r.shape))
        if before == 0:
            return project(dqkv, residual=residual)
        dx: Array = namespace(dqkv).ascontiguousarray(project(dqkv)[:, before:])
        return dx if residual is None else ops.add(dx, residual)

    def infer(
        self,
        x: Array,
        *,
        memory: Array | None = None,
        mask: Array | None = None,
        residual: Array | None = None,
        cache: RelativeCache | None = None,
    ) -> Array:
        """Return y; x and memory as above.

        With a `cache` instead of a memory, x continues the sequences in it. `mask`, (batch, 1, 1, keys), is True where
        a position of what is before and of x is real.
        """
        if cache is not None:
            if memory is not None:
                raise ValueError("RelativeAttention: memory must be None with a cache")
            check("RelativeAttention", "x", x, self.heads * self.size, None, positions="positions")
            q, k, v = self._split(self.qkv.infer(x), 0)
            k, v = cache.append(k, v)
            r = self._kept_rows(cache, k.shape[2], x)
        else:
            whole, before = self._with_memory(x, memory)
            q, k, v = self._split(self.qkv.infer(whole), before)
            r = self.positions.infer(self._sines(k.shape[2], x))
        rel = (self._rows(r), self.bias_u.value, self.bias_v.value, 0)
        merged = empty(x.shape, x.dtype, like=x)
        window = self.window
        if window is not None and cache is not None and cache.window is not None:
            window = (max(cache.window - 1, 0), None)
        ops.attention(q, k, v, causal=True, window=window, mask=mask, rel=rel, out=self._by_head(merged))
        return self.output.infer(merged, residual=residual)

    def _sines(self, length: int, x: Array) -> Array:
        return _sines(length, x.shape[2], x.dtype, self.clamp, device_of(x))

    def _kept_rows(self, cache: RelativeCache, length: int, x: Array) -> Array:
        """Return projected sines of at least so many distances; their number doubles when they do not reach."""
        if cache.rows is None or len(cache.rows) < length:
            cache.rows = self.positions.infer(self._sines(max(length, 2 * length if length > 1 else 64), x))
        return cache.rows
