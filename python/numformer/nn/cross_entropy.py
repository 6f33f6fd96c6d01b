"""The loss of a classifier over the last axis."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numformer import ops
from numformer.nn.backward import Backward, take
from numformer.nn.context import Context
from numformer.nn.module import Module
from numformer.ops.memory import indices

Array = NDArray[Any]


class CrossEntropy(Module):
    """Mean over the targets of -log softmax(logits)[target].

    Parameters
    ----------
    ignore_index : int
        Targets that do not count.
    label_smoothing : float
        Weight of the uniform distribution in the target.
    overwrite : bool
        The backward writes the gradient over the logits, which saves an array of their size.
    """

    def __init__(self, *, ignore_index: int = -100, label_smoothing: float = 0.0, overwrite: bool = False) -> None:
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"CrossEntropy: label_smoothing must be between 0 and 1, got {label_smoothing}")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.overwrite = overwrite

    def __call__(self, logits: Array, targets: Array, *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the loss and its backward; ``backward(dloss=1.0)`` gives the gradient of the logits."""
        targets = self._beside(targets, logits)
        loss, lse = ops.cross_entropy(
            logits, targets, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing, return_lse=True
        )
        return loss, Backward(self._backward, [logits, targets, lse])

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> Array:
        logits, targets, lse = take(saved)
        return ops.cross_entropy_backward(
            dloss,
            logits,
            targets,
            lse,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            out=logits if self.overwrite else None,
        )

    def _beside(self, targets: Array, logits: Array) -> Array:
        """Return the targets where the logits are, those of the host too."""
        count = logits.shape[-1] if logits.ndim else 0
        return indices("CrossEntropy", "targets", targets, count, logits, ignored=self.ignore_index)

    def infer(self, logits: Array, targets: Array) -> Any:
        """Return the loss."""
        targets = self._beside(targets, logits)
        return ops.cross_entropy(logits, targets, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing)
