"""Dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from numformer import ops
from numformer.nn.backward import Backward, take
from numformer.nn.context import DEFAULT, Context
from numformer.nn.linear import Linear
from numformer.nn.module import Module

Array = NDArray[Any]


class Dropout(Module):
    """Sets each element to 0 with probability p and scales the others by 1/(1-p) (Srivastava et al., 2014).

    The mask is a function of seed, step, layer and sample, so that backward makes it again and nothing is kept. Axis 0
    is the sample; that of packed sequences is what each of them has alone.

    Parameters
    ----------
    p : float
        In [0, 1).
    layer : int
        Which of the dropouts of a model this is; see :func:`number_dropouts`.
    """

    def __init__(self, p: float, *, layer: int = 0) -> None:
        if not 0.0 <= p < 1.0:
            raise ValueError(f"Dropout: p must be at least 0 and below 1, got {p}")
        self.p = float(p)
        self.layer = layer

    def __call__(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        cu_seqlens: Array | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return dropout(x) + residual and its backward; ``backward(dy)`` gives dx; that of the residual is dy.

        With `cu_seqlens`, x is (total, ...), packed samples.
        """
        if self.p == 0.0:
            return (x if residual is None else ops.add(x, residual)), Backward(self._identity, [])
        ctx = ctx or DEFAULT
        if ctx.seed is None:
            raise ValueError(f"Dropout: p is {self.p}, so ctx must be a Context with a seed, got {ctx}")
        place: dict[str, Any] = {
            "seed": ctx.seed,
            "layer": self.layer,
            "step": ctx.step,
            "sample": ctx.sample,
            "cu_seqlens": cu_seqlens,
        }
        return ops.dropout(x, self.p, residual=residual, **place), Backward(self._backward, [place])

    def _backward(self, saved: list[Any], dy: Array) -> Array:
        (place,) = take(saved)
        return ops.dropout_backward(dy, self.p, **place)

    def _identity(self, saved: list[Any], dy: Array) -> Array:
        return dy

    def infer(self, x: Array, *, residual: Array | None = None) -> Array:
        """Return x + residual: at inference nothing is dropped."""
        return x if residual is None else ops.add(x, residual)


def number_dropouts(model: Module) -> None:
    """Give each dropout of a model an index of its own, so that no two share a mask."""
    layer = 0
    for _, module in model.modules():
        if isinstance(module, Dropout):
            module.layer = layer
            layer += 1


def map_and_drop(
    output: Linear,
    dropout: Dropout,
    x: Array,
    *,
    residual: Array | None,
    again: Callable[[], Array] | None = None,
    cu_seqlens: Array | None = None,
    ctx: Context | None,
) -> tuple[Array, list[Backward]]:
    """Return dropout(output(x)) + residual, and what :func:`chain` runs backward.

    It is how attention and feed-forward end. Where nothing is dropped the product adds the residual.
    """
    if dropout.p == 0.0:
        y, project = output(x, residual=residual, again=again)
        return y, [project]
    y, project = output(x, again=again)
    y, drop = dropout(y, residual=residual, cu_seqlens=cu_seqlens, ctx=ctx)
    return y, [project, drop]
