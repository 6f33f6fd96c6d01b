"""Embedding of integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.nn import initial
from numformer.nn.backward import Backward, take
from numformer.nn.context import DEFAULT, Context
from numformer.nn.module import Module
from numformer.nn.parameter import Parameter
from numformer.ops.memory import indices, namespace

Array = NDArray[Any]


class Embedding(Module):
    """Row `ids` of a table, times `scale`.

    Parameters
    ----------
    count, width : int
        Shape of the table.
    scale : float
        Multiplies the rows: the square root of the width where the table is the output layer too (Vaswani et al., 2017,
        section 3.4).
    padding : int, optional
        The id of padding: its row gets no gradient from what is looked up.
    std : float
        Of its initial values.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator, optional
        Draws the initial values.
    """

    def __init__(
        self,
        count: int,
        width: int,
        *,
        scale: float = 1.0,
        padding: int | None = None,
        std: float = 1.0,
        dtype: DTypeLike = np.float32,
        rng: initial.Source | None = None,
    ) -> None:
        initial.size("Embedding", count=count, width=width)
        self.count = count
        self.scale = float(scale)
        self.padding = padding
        self.weight = Parameter(initial.normal(rng, (count, width), std, dtype))

    def __call__(self, ids: Array, *, ctx: Context | None = None) -> tuple[Array, Backward]:
        """Return the rows and their backward; integers have no gradient, so ``backward(dy)`` gives None."""
        ids = self._beside(ids)
        self.weight.pending += 1
        return self.infer(ids, dtype=(ctx or DEFAULT).dtype), Backward(self._backward, [ids])

    def _backward(self, saved: list[Any], dy: Array) -> None:
        (ids,) = take(saved)
        weight = self.weight
        if self.scale != 1.0:
            dy = ops.cast(dy, weight.value.dtype, scale=self.scale)
        dy = without_padding(dy, ids, self.padding)
        ops.embedding_backward(dy, ids, self.count, out=weight.buffer(), accumulate=not weight.fresh)
        weight.done()

    def _beside(self, ids: Array) -> Array:
        """Return the numbers where the table is, those of the host too."""
        return indices("Embedding", "ids", ids, self.count, self.weight.value)

    def infer(self, ids: Array, *, dtype: np.dtype[Any] | None = None) -> Array:
        """Return the rows, in `dtype` where one is given."""
        ids = self._beside(ids)
        # Scaled rows are rounded once, so they come from the value itself.
        rows = ops.embedding(self.weight.table(dtype) if self.scale == 1.0 else self.weight.value, ids)
        kind = rows.dtype if dtype is None else dtype
        if self.scale == 1.0 and rows.dtype == kind:
            return rows
        return ops.cast(rows, kind, scale=self.scale, out=rows if rows.dtype == kind else None)


def without_padding(dy: Array, ids: Array, padding: int | None) -> Array:
    """Return dy with zeros in the rows where `ids` is that of padding."""
    if padding is None:
        return dy
    xp, is_padding = namespace(dy), ids == padding
    if xp is np and not is_padding.any():  # to ask a GPU would be to wait for it
        return dy
    rows: Array = xp.where(is_padding[..., None], xp.zeros((), dy.dtype), dy)
    return rows
