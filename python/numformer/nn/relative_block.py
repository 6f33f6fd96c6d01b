"""The block of Transformer-XL."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer.nn import initial
from numformer.nn.backward import Backward
from numformer.nn.block import PostNorm
from numformer.nn.context import Context
from numformer.nn.feed_forward import FeedForward
from numformer.nn.layer_norm import LayerNorm
from numformer.nn.parameter import Parameter
from numformer.nn.recompute import recomputable
from numformer.nn.relative_attention import RelativeAttention, RelativeCache

Array = NDArray[Any]


class RelativeBlock(PostNorm):
    """h = norm1(x + attention(memory, x)); y = norm2(h + mlp(h)) (Dai et al., "Transformer-XL", 2019).

    Parameters
    ----------
    width, heads : int
        Size of x and number of heads.
    hidden : int, optional
        Inner size of the feed-forward network, 4 * width by default.
    clamp, window, biases
        As for :class:`RelativeAttention`.
    dropout : float
        On both residual branches.
    eps : float
        Of the norms.
    std, output_std : float, optional
        Of the initial weights; `output_std` is for the two maps that end in the residual.
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
        clamp: int | None = None,
        window: int | None = None,
        biases: tuple[Parameter, Parameter] | None = None,
        dropout: float = 0.0,
        eps: float = 1e-5,
        std: float | None = None,
        output_std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        common: dict[str, Any] = {
            "dropout": dropout,
            "transposed": True,
            "std": std,
            "output_std": output_std,
            "dtype": dtype,
            "rng": rng,
        }
        self.attention = RelativeAttention(width, heads, clamp=clamp, window=window, biases=biases, **common)
        self.norm1 = LayerNorm(width, eps=eps, dtype=dtype)
        self.mlp = FeedForward(width, hidden, activation="relu", **common)
        self.norm2 = LayerNorm(width, eps=eps, dtype=dtype)

    @recomputable
    def __call__(self, x: Array, *, memory: Array | None = None, ctx: Context | None = None) -> tuple[Array, Backward]:
        """Return y and its backward; ``backward(dy)`` gives dx. No gradient goes to `memory`."""
        s, attention = self.attention(x, memory=memory, residual=x, ctx=ctx)
        h, norm1 = self.norm1(s)
        s, mlp = self.mlp(h, residual=h, again=norm1.again, ctx=ctx)
        y, norm2 = self.norm2(s)
        return y, Backward(self._backward, [norm1, attention, norm2, mlp])

    def infer(
        self,
        x: Array,
        *,
        memory: Array | None = None,
        mask: Array | None = None,
        cache: RelativeCache | None = None,
    ) -> Array:
        """Return y; `memory`, `mask` and `cache` as for :class:`RelativeAttention`."""
        h = self.norm1.infer(self.attention.infer(x, memory=memory, mask=mask, residual=x, cache=cache))
        return self.norm2.infer(self.mlp.infer(h, residual=h))
