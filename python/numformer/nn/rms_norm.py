"""Root-mean-square normalisation."""

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


class RMSNorm(Module):
    """y = x / sqrt(mean(x**2) + eps) * weight over the last axis (Zhang, Sennrich, 2019).

    Parameters
    ----------
    width : int
        Size of the last axis.
    eps : float
        Keeps the root away from 0.
    dtype : dtype
        float32 or float64.
    """

    def __init__(self, width: int, *, eps: float = 1e-6, dtype: DTypeLike = np.float32) -> None:
        initial.size("RMSNorm", width=width)
        self.eps = eps
        self.weight = Parameter(np.ones(width, initial.parameter_dtype(dtype)))

    def __call__(self, x: Array, *, ctx: Context | None = None) -> tuple[Array, Backward]:
        """Return y and its backward; ``backward(dy, residual=None)`` gives dx, plus `residual` where one is given."""
        weight = self.weight.use(x.dtype)
        y, rstd = ops.rms_norm(x, weight, eps=self.eps, return_stats=True)
        again = partial(ops.rms_norm, x, weight, eps=self.eps)
        return y, Backward(self._backward, [x, rstd, weight], again)

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Array:
        x, rstd, weight = take(saved)
        dx, dweight = ops.rms_norm_backward(dy, x, rstd, weight, residual=residual)
        assert dweight is not None
        self.weight.add(dweight)
        return dx

    def infer(self, x: Array) -> Array:
        """Return y."""
        return ops.rms_norm(x, self.weight.read(x.dtype), eps=self.eps)
