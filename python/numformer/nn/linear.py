"""Linear map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.activation import FORWARD, backward_of, check
from numformer.nn.backward import Backward, take, value
from numformer.nn.context import Context
from numformer.nn.module import Module
from numformer.nn.parameter import Parameter
from numformer.ops.packed_matrix import PackedMatrix

Array = NDArray[Any]


class Linear(Module):
    """y = activation(x W + b) + residual, in one pass of one kernel.

    Parameters
    ----------
    inputs, outputs : int
        Sizes of the last axis of x and y.
    bias : bool
        Whether there is a b.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        Applied to the sum.
    transposed : bool
        The weight is kept as (outputs, inputs) instead of (inputs, outputs); either is read in place.
    weight : Parameter, optional
        A weight to share (tied embeddings) instead of a new one.
    std : float, optional
        Of the initial weight; 1/sqrt(inputs) by default.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, optional
        Draws the initial weight.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        activation: str | None = None,
        transposed: bool = False,
        weight: Parameter | None = None,
        std: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        initial.size("Linear", inputs=inputs, outputs=outputs)
        shape = (outputs, inputs) if transposed else (inputs, outputs)
        if weight is None:
            weight = Parameter(initial.normal(rng, shape, inputs**-0.5 if std is None else std, dtype))
        elif weight.value.shape != shape:
            raise ValueError(f"Linear: weight must have shape {shape}, got {weight.value.shape}")
        self.inputs, self.outputs = inputs, outputs
        self.activation = check("Linear", activation)
        self.transposed = transposed
        self.weight = weight
        self.bias = Parameter(np.zeros(outputs, weight.value.dtype)) if bias else None

    def __call__(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        again: Callable[[], Array] | None = None,
        ctx: Context | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and its backward.

        ``backward(dy, residual=None)`` gives dx, plus `residual` where one is given. The gradient of the forward's
        residual is dy itself. With `again`, the backward makes x once more instead of keeping it.
        """
        kept = again or x
        weight = self.weight.use(x.dtype)
        if self.transposed:
            weight = weight.T
        bias = None if self.bias is None else self.bias.use(x.dtype)
        if self.activation is None:
            y = ops.matmul(x, weight, bias=bias, residual=residual)
            return y, Backward(self._backward, [kept, weight, None])
        y, z = ops.matmul(x, weight, bias=bias, activation=self.activation, residual=residual, save_preactivation=True)
        # y is activation(z), unless z was rounded to 16 bits since, or a residual was added.
        exact = z.dtype.itemsize >= 4 and residual is None
        return y, Backward(self._backward, [kept, weight, z], partial(FORWARD[self.activation], z) if exact else None)

    def _backward(self, saved: list[Any], dy: Array, *, residual: Array | None = None) -> Array:
        kept, weight, z = take(saved)
        if z is not None:
            dy = backward_of(self.activation)(dy, z)
            del z
        # dW = x^T dy and db = sum of dy over the rows, straight into the gradients.
        rows, drows = value(kept).reshape(-1, self.inputs), dy.reshape(-1, self.outputs)
        del kept
        grad, fresh = self.weight.buffer(), self.weight.fresh
        if self.transposed:
            ops.matmul(drows.T, rows, out=grad, accumulate=not fresh)
        else:
            ops.matmul(rows.T, drows, out=grad, accumulate=not fresh)
        self.weight.done()
        if self.bias is not None:
            ops.sum_rows(drows, out=self.bias.buffer(), accumulate=not self.bias.fresh)
            self.bias.done()
        del rows
        return ops.matmul(dy, weight.T, residual=residual)

    def infer(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        out: Array | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> Array:
        """Return y, in `dtype` where that is given, written into `out` where that is; nothing is kept."""
        bias = None if self.bias is None else self.bias.read(x.dtype)
        weight = self.weight.packed(transposed=self.transposed) or self._matrix(x.dtype)
        return ops.matmul(x, weight, bias=bias, activation=self.activation, residual=residual, dtype=dtype, out=out)

    def pack(self, dtype: DTypeLike | None = None) -> None:
        """Keep a packed copy of the weight for :meth:`infer`; see :meth:`Module.pack`."""
        self.weight.pack(dtype, transposed=self.transposed)

    @property
    def packed(self) -> PackedMatrix | None:
        """The packed copy that :meth:`infer` reads, where there is one."""
        return self.weight.packed(transposed=self.transposed)

    def _matrix(self, dtype: np.dtype[Any]) -> Array:
        weight = self.weight.read(dtype)
        return weight.T if self.transposed else weight

    def logits(self, x: Array) -> Array:
        """Return y of an output layer: of a 16-bit x in float32, where the sums are anyway."""
        return self.infer(x, dtype=np.dtype(np.float32) if x.dtype.itemsize == 2 else None)
