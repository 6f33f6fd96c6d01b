"""Layer normalisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.backward import Backward, take
from numformer.nn.context import Context
from numformer.nn.module import Module
from numformer.nn.parameter import Parameter

Array = NDArray[Any]


class LayerNorm(Module):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba, Kiros, Hinton, 2016).

    Parameters
    ----------
    width : int
        Size of the last axis.
    bias : bool
        Whether there is a bias.
    eps : float
        Keeps the root away from 0.
    dtype : dtype
        float32 or float64.
    """

    def __init__(self, width: int, *, bias: bool = True, eps: float = 1e-5, dtype: DTypeLike = np.float32) -> None:
        initial.size("LayerNorm", width=width)
        kind = initial.parameter_dtype(dtype)
        self.eps = eps
        self.weight = Parameter(np.ones(width, kind))
        self.bias = Parameter(np.zeros(width, kind)) if bias else None

    def __call__(self, x: Array, *, ctx: Context | None = None) -> tuple[Array, Backward]:
        """Return y and its backward; ``backward(dy, residual=None)`` gives dx, plus `residual` where one is given."""
        weight = self.weight.use(x.dtype)
        bias = None if self.bias is None else self.bias.use(x.dtype)
        y, mean, rstd = ops.layer_norm(x, weight, bias, eps=self.eps, return_stats=True)
        again = partial(ops.layer_norm, x, weight, bias, eps=self.eps)
        return y, Backward(self._backward, [x, mean, rstd, weight], again)

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Array:
        x, mean, rstd, weight = take(saved)
        dx, dweight, dbias = ops.layer_norm_backward(
            dy, x, mean, rstd, weight, bias=self.bias is not None, residual=residual
        )
        assert dweight is not None
        self.weight.add(dweight)
        if self.bias is not None:
            assert dbias is not None
            self.bias.add(dbias)
        return dx

    def infer(self, x: Array) -> Array:
        """Return y."""
        bias = None if self.bias is None else self.bias.read(x.dtype)
        return ops.layer_norm(x, self.weight.read(x.dtype), bias, eps=self.eps)
