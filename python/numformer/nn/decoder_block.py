"""Blocks of a decoder: attention to itself, attention to a memory, and a feed-forward network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer.nn import initial
from numformer.nn.attention import MultiHeadAttention
from numformer.nn.backward import Backward, take
from numformer.nn.cache import KVCache
from numformer.nn.context import Context
from numformer.nn.cross_attention import CrossAttention
from numformer.nn.feed_forward import FeedForward
from numformer.nn.layer_norm import LayerNorm
from numformer.nn.module import Module
from numformer.nn.recompute import recomputable

Array = NDArray[Any]


class DecoderBlock(Module):
    """The parts of a decoder's block, in whichever order they are called.

    Parameters
    ----------
    width, heads : int
        Size of x and of the memory's rows, and number of heads of both attentions.
    hidden : int, optional
        Inner size of the feed-forward network, 4 * width by default.
    activation : str
        Of the feed-forward network.
    bias : bool
        Whether maps and norms have one.
    dropout : float
        On the three residual branches.
    eps : float
        Of the norms.
    transposed : bool
        Weights are kept as (outputs, inputs), as in PyTorch's checkpoints; see :class:`Linear`.
    std, output_std : float, optional
        Of the initial weights; `output_std` is for the three maps that end in the residual.
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
        hidden: int | None = None,
        activation: str = "relu",
        bias: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-5,
        transposed: bool = False,
        std: float | None = None,
        output_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        common: dict[str, Any] = {
            "bias": bias,
            "dropout": dropout,
            "transposed": transposed,
            "std": std,
            "output_std": output_std,
            "dtype": dtype,
            "rng": rng,
        }
        self.norm1 = LayerNorm(width, bias=bias, eps=eps, dtype=dtype)
        self.attention = MultiHeadAttention(width, heads, causal=True, **common)
        self.norm2 = LayerNorm(width, bias=bias, eps=eps, dtype=dtype)
        self.cross_attention = CrossAttention(width, heads, **common)
        self.norm3 = LayerNorm(width, bias=bias, eps=eps, dtype=dtype)
        self.mlp = FeedForward(width, hidden, activation=activation, **common)

    def _look(self, x: Array, weights: list[Array] | None, memory: dict[str, Any]) -> None:
        """Append the weights of the attention to the memory, where somebody wants to see them."""
        if weights is not None:
            weights.append(self.cross_attention.weights(x, **memory))


class PreNormDecoderBlock(DecoderBlock):
    """g = x + attention(norm1(x)); h = g + cross_attention(norm2(g), memory); y = h + mlp(norm3(h)).

    The parameters are those of :class:`DecoderBlock`.
    """

    @recomputable
    def __call__(
        self,
        x: Array,
        memory: Array,
        *,
        mask: Array | None = None,
        cu_seqlens: Array | None = None,
        memory_cu_seqlens: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward; `mask` is that of the memory.

        ``backward(dy, dmemory=None)`` gives (dx, dmemory), with the `dmemory` that is given added to it. With
        `cu_seqlens` and `memory_cu_seqlens`, x and memory are packed, (total, width) each.
        """
        n, norm1 = self.norm1(x)
        g, attention = self.attention(n, residual=x, again=norm1.again, cu_seqlens=cu_seqlens, ctx=ctx)
        n, norm2 = self.norm2(g)
        h, cross_attention = self.cross_attention(
            n, memory, mask=mask, residual=g, cu_seqlens=cu_seqlens, memory_cu_seqlens=memory_cu_seqlens, ctx=ctx
        )
        n, norm3 = self.norm3(h)
        y, mlp = self.mlp(n, residual=h, again=norm3.again, cu_seqlens=cu_seqlens, ctx=ctx)
        return y, Backward(self._backward, [norm1, attention, norm2, cross_attention, norm3, mlp])

    def _backward(self, saved: list[Any], dy: Array, *, dmemory: Array | None = None) -> tuple[Array, Array]:
        norm1, attention, norm2, cross_attention, norm3, mlp = take(saved)
        # Both branches of a residual meet inside the norm's kernel, so no sum has a pass of its own.
        dh: Array = norm3(mlp(dy), residual=dy)
        del dy
        dn, dmemory = cross_attention(dh, dmemory=dmemory)
        dg: Array = norm2(dn, residual=dh)
        del dn, dh
        return norm1(attention(dg), residual=dg), dmemory

    def infer(
        self,
        x: Array,
        memory: Array | None = None,
        *,
        kv: Array | None = None,
        mask: Array | None = None,
        cu_seqlens: Array | None = None,
        memory_cu_seqlens: Array | None = None,
        cache: KVCache | None = None,
        weights: list[Array] | None = None,
    ) -> Array:
        """Return y.

        With a `cache`, x continues the sequences in it; `kv` from ``cross_attention.project`` stands for the memory;
        with `cu_seqlens` and `memory_cu_seqlens`, x and memory are packed; the weights of the attention to the memory
        are appended to `weights` (not of packed ones).
        """
        g = self.attention.infer(self.norm1.infer(x), residual=x, cu_seqlens=cu_seqlens, cache=cache)
        n = self.norm2.infer(g)
        self._look(n, weights, {"memory": memory, "kv": kv, "mask": mask})
        h = self.cross_attention.infer(
            n, memory, kv=kv, mask=mask, residual=g, cu_seqlens=cu_seqlens, memory_cu_seqlens=memory_cu_seqlens
        )
        return self.mlp.infer(self.norm3.infer(h), residual=h)


class PostNormDecoderBlock(DecoderBlock):
    """g = norm1(x + attention(x)); h = norm2(g + cross_attention(g, memory)); y = norm3(h + mlp(h)).

    It is the decoder's layer of Vaswani et al., 2017. The parameters are those of :class:`DecoderBlock`.
    """

    @recomputable
    def __call__(
        self,
        x: Array,
        memory: Array,
        *,
        mask: Array | None = None,
        cu_seqlens: Array | None = None,
        memory_cu_seqlens: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward; `mask` is that of the memory.

        ``backward(dy, dmemory=None)`` gives (dx, dmemory), with the `dmemory` that is given added to it. With
        `cu_seqlens` and `memory_cu_seqlens`, x and memory are packed, (total, width) each.
        """
        s, attention = self.attention(x, residual=x, cu_seqlens=cu_seqlens, ctx=ctx)
        g, norm1 = self.norm1(s)
        s, cross_attention = self.cross_attention(
            g, memory, mask=mask, residual=g, cu_seqlens=cu_seqlens, memory_cu_seqlens=memory_cu_seqlens, ctx=ctx
        )
        h, norm2 = self.norm2(s)
        s, mlp = self.mlp(h, residual=h, again=norm2.again, cu_seqlens=cu_seqlens, ctx=ctx)
        y, norm3 = self.norm3(s)
        return y, Backward(self._backward, [norm1, attention, norm2, cross_attention, norm3, mlp])

    def _backward(self, saved: list[Any], dy: Array, *, dmemory: Array | None = None) -> tuple[Array, Array]:
        norm1, attention, norm2, cross_attention, norm3, mlp = take(saved)
        ds: Array = norm3(dy)
        del dy
        # The gradient that passes by a branch is the residual of the branch's last product.
        dh: Array = mlp(ds, residual=ds)
        ds = norm2(dh)
        del dh
        dg, dmemory = cross_attention(ds, residual=ds, dmemory=dmemory)
        ds = norm1(dg)
        del dg
        return attention(ds, residual=ds), dmemory

    def infer(
        self,
        x: Array,
        memory: Array | None = None,
        *,
        kv: Array | None = None,
        mask: Array | None = None,
        cu_seqlens: Array | None = None,
        memory_cu_seqlens: Array | None = None,
        cache: KVCache | None = None,
        weights: list[Array] | None = None,
    ) -> Array:
        """Return y.

        With a `cache`, x continues the sequences in it; `kv` from ``cross_attention.project`` stands for the memory;
        with `cu_seqlens` and `memory_cu_seqlens`, x and memory are packed; the weights of the attention to the memory
        are appended to `weights` (not of packed ones).
        """
        g = self.norm1.infer(self.attention.infer(x, residual=x, cu_seqlens=cu_seqlens, cache=cache))
        self._look(g, weights, {"memory": memory, "kv": kv, "mask": mask})
        h = self.norm2.infer(
            self.cross_attention.infer(
                g, memory, kv=kv, mask=mask, residual=g, cu_seqlens=cu_seqlens, memory_cu_seqlens=memory_cu_seqlens
            )
        )
        return self.norm3.infer(self.mlp.infer(h, residual=h))
