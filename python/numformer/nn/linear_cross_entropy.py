"""The loss of a language model: the output layer and the classifier's loss in one, without logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import ops
from numformer.nn.backward import Backward, take
from numformer.nn.context import Context
from numformer.nn.linear import Linear
from numformer.nn.module import Module
from numformer.ops.memory import beside, indices
from numformer.ops.packed_matrix import PackedMatrix

Array = NDArray[Any]

_ROWS = 256
"""Whose logits are there at once: of 50,000 tokens 51 MB."""


class LinearCrossEntropy(Module):
    """Mean over the targets of -log softmax(head(x))[target].

    The gradients are made in the forward pass, where the logits of a chunk of rows are there for a moment; they are
    linear in the gradient of the loss, by which the backward scales them.

    Parameters
    ----------
    ignore_index : int
        Targets that do not count; their rows cost nothing.
    label_smoothing : float
        Weight of the uniform distribution in the target.
    """

    def __init__(self, *, ignore_index: int = -100, label_smoothing: float = 0.0) -> None:
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"LinearCrossEntropy: label_smoothing must be between 0 and 1, got {label_smoothing}")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def __call__(
        self, head: Linear, x: Array, targets: Array, *, bias: Array | None = None, ctx: Context | None = None
    ) -> tuple[Any, Backward]:
        """Return the loss and its backward; ``backward(dloss=1.0)`` gives dx, (..., inputs).

        `head` has its weight as (outputs, inputs) and no activation; its gradients are those of its parameters. `bias`,
        (outputs,), is for a head without one: it is added to the logits and not trained.
        """
        _check(head, bias)
        targets = indices("LinearCrossEntropy", "targets", targets, head.outputs, x, ignored=self.ignore_index)
        parameters = [head.weight] if head.bias is None else [head.weight, head.bias]
        values = [p.use(x.dtype) for p in parameters]
        drafts = [p.draft() for p in parameters]
        # float16 has no room for the gradient of a mean over many rows before that is scaled.
        dloss = float(max(math.prod(x.shape[:-1]), 1)) if x.dtype == np.float16 else 1.0
        loss, dx, *_ = ops.linear_cross_entropy(
            x,
            values[0],
            targets,
            bias=_constant(bias, x) if head.bias is None else values[1],
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            dloss=dloss,
            dweight=drafts[0].array,
            dbias=None if head.bias is None else drafts[1].array,
        )
        return loss, Backward(self._backward, [parameters, drafts, dx, dloss])

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> Array:
        parameters, drafts, dx, made = take(saved)
        scale = float(dloss) / made
        for parameter, draft in zip(parameters, drafts, strict=True):
            parameter.settle(draft, scale)
        return ops.cast(dx, dx.dtype, scale=scale, out=dx) if scale != 1.0 else dx

    def infer(self, head: Linear, x: Array, targets: Array, *, bias: Array | None = None) -> Any:
        """Return the loss without label smoothing; nothing is kept."""
        _check(head, bias)
        targets = indices("LinearCrossEntropy", "targets", targets, head.outputs, x, ignored=self.ignore_index)
        added = _constant(bias, x) if head.bias is None else head.bias.read(x.dtype)
        if head.packed is not None:
            return self._packed_loss(head.packed, x.reshape(-1, head.inputs), np.asarray(targets).reshape(-1), added)
        return ops.linear_cross_entropy(
            x,
            head.weight.read(x.dtype),
            targets,
            bias=added,
            ignore_index=self.ignore_index,
            gradients=False,
        )

    def _packed_loss(self, weight: PackedMatrix, rows: Array, targets: Array, bias: Array | None) -> Any:
        """Return the loss by a packed head, a chunk of rows at a time."""
        counted = targets != self.ignore_index
        if not counted.all():
            rows, targets = rows[counted], targets[counted]
        wide = np.dtype(np.float32) if rows.dtype.itemsize == 2 else None
        total = 0.0
        for first in range(0, len(rows), _ROWS):
            logits = ops.matmul(rows[first : first + _ROWS], weight, bias=bias, dtype=wide)
            part = targets[first : first + _ROWS]
            total += float(ops.cross_entropy(logits, part, ignore_index=self.ignore_index, reduction="sum"))
        kind = np.dtype(np.float64 if rows.dtype == np.float64 else np.float32)
        return kind.type(total / max(len(rows), 1))


def _constant(bias: Array | None, x: Array) -> Array | None:
    return None if bias is None or x.dtype.itemsize == 2 else beside(bias.astype(x.dtype, copy=False), x)


def _check(head: Linear, bias: Array | None) -> None:
    if not head.transposed or head.activation is not None:
        raise ValueError("LinearCrossEntropy: head must be transposed and without an activation")
    if bias is not None and head.bias is not None:
        raise ValueError("LinearCrossEntropy: bias must be None where head has one")
