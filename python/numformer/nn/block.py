"""Transformer blocks: attention, then a feed-forward network, each with a norm and a residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer.nn import initial
from numformer.nn.attention import MultiHeadAttention
from numformer.nn.backward import Backward, take
from numformer.nn.cache import KVCache
from numformer.nn.context import Context
from numformer.nn.feed_forward import FeedForward
from numformer.nn.layer_norm import LayerNorm
from numformer.nn.module import Module
from numformer.nn.recompute import recomputable
from numformer.nn.rms_norm import RMSNorm

Array = NDArray[Any]


class Block(Module):
    """The parts of a block, in whichever order they are called.

    Parameters
    ----------
    width, heads : int
        Size of x and number of heads.
    hidden : int, optional
        Inner size of the feed-forward network, 4 * width by default.
    num_kv_heads : int, optional
        Key and value heads, `heads` by default.
    causal : bool
        Position i sees positions up to i.
    activation : str
        Of the feed-forward network.
    norm : {"layer", "rms"}
        Which norm.
    bias : bool
        Whether maps and layer norms have one.
    dropout : float
        On both residual branches.
    eps : float
        Of the norms.
    transposed : bool
        Weights are kept as (outputs, inputs), as in PyTorch's checkpoints; see :class:`Linear`.
    std, output_std : float, optional
        Of the initial weights; `output_std` is for the two maps that end in the residual.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, optional
        Draws the initial weights.
    attention : callable
        Makes the layer that attends, with the parameters of :class:`MultiHeadAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int | None = None,
        num_kv_heads: int | None = None,
        causal: bool = False,
        activation: str = "gelu",
        norm: str = "layer",
        bias: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-5,
        transposed: bool = False,
        std: float | None = None,
        output_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
        attention: Callable[..., MultiHeadAttention] = MultiHeadAttention,
    ) -> None:
        if norm not in ("layer", "rms"):
            raise ValueError(f"{type(self).__name__}: norm must be 'layer' or 'rms', got {norm!r}")

        def new_norm() -> LayerNorm | RMSNorm:
            if norm == "rms":
                return RMSNorm(width, eps=eps, dtype=dtype)
            return LayerNorm(width, bias=bias, eps=eps, dtype=dtype)

        self.norm1 = new_norm()
        self.attention = attention(
            width,
            heads,
            num_kv_heads=num_kv_heads,
            causal=causal,
            bias=bias,
            dropout=dropout,
            transposed=transposed,
            std=std,
            output_std=output_std,
            dtype=dtype,
            rng=rng,
        )
        self.norm2 = new_norm()
        self.mlp = FeedForward(
            width,
            hidden,
            activation=activation,
            bias=bias,
            dropout=dropout,
            transposed=transposed,
            std=std,
            output_std=output_std,
            dtype=dtype,
            rng=rng,
        )


class PreNormBlock(Block):
    """h = x + attention(norm1(x)); y = h + mlp(norm2(h)), as in GPT-2; the parameters are those of :class:`Block`."""

    @recomputable
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        cu_seqlens: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward; ``backward(dy)`` gives dx. With `cu_seqlens`, x is packed, (total, width)."""
        n, norm1 = self.norm1(x)
        h, attention = self.attention(n, mask=mask, residual=x, again=norm1.again, cu_seqlens=cu_seqlens, ctx=ctx)
        n, norm2 = self.norm2(h)
        y, mlp = self.mlp(n, residual=h, again=norm2.again, cu_seqlens=cu_seqlens, ctx=ctx)
        return y, Backward(self._backward, [norm1, attention, norm2, mlp])

    def _backward(self, saved: list[Any], dy: Array) -> Array:
        norm1, attention, norm2, mlp = take(saved)
        # Both branches of a residual meet inside the norm's kernel, so no sum has a pass of its own.
        dh: Array = norm2(mlp(dy), residual=dy)
        del dy
        dx: Array = norm1(attention(dh), residual=dh)
        return dx

    def infer(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        cu_seqlens: Array | None = None,
        cache: KVCache | None = None,
    ) -> Array:
        """Return y; with a `cache`, x continues the sequences in it; with `cu_seqlens`, x is packed."""
        h = self.attention.infer(self.norm1.infer(x), mask=mask, residual=x, cu_seqlens=cu_seqlens, cache=cache)
        return self.mlp.infer(self.norm2.infer(h), residual=h)


class PostNorm(Module):
    """The way back through h = norm1(x + attention(x)); y = norm2(h + mlp(h))."""

    def _backward(self, saved: list[Any], dy: Array) -> Array:
        norm1, attention, norm2, mlp = take(saved)
        ds: Array = norm2(dy)
        del dy
        # The gradient that passes by the branch is the residual of the branch's last product.
        dh: Array = mlp(ds, residual=ds)
        ds = norm1(dh)
        del dh
        dx: Array = attention(ds, residual=ds)
        return dx


class PostNormBlock(PostNorm, Block):
    """h = norm1(x + attention(x)); y = norm2(h + mlp(h)) (Vaswani et al., 2017).

    The parameters are those of :class:`Block`.
    """

    @recomputable
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        cu_seqlens: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward; ``backward(dy)`` gives dx. With `cu_seqlens`, x is packed, (total, width)."""
        s, attention = self.attention(x, mask=mask, residual=x, cu_seqlens=cu_seqlens, ctx=ctx)
        h, norm1 = self.norm1(s)
        s, mlp = self.mlp(h, residual=h, again=norm1.again, cu_seqlens=cu_seqlens, ctx=ctx)
        y, norm2 = self.norm2(s)
        return y, Backward(self._backward, [norm1, attention, norm2, mlp])

    def infer(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        cu_seqlens: Array | None = None,
        cache: KVCache | None = None,
    ) -> Array:
        """Return y; with a `cache`, x continues the sequences in it; with `cu_seqlens`, x is packed."""
        h = self.norm1.infer(self.attention.infer(x, mask=mask, residual=x, cu_seqlens=cu_seqlens, cache=cache))
        return self.norm2.infer(self.mlp.infer(h, residual=h))
