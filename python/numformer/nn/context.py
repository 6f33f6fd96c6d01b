"""What a training pass knows besides its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


@dataclass(frozen=True, slots=True)
class Context:
    """Where in a training run a pass stands.

    Parameters
    ----------
    seed : int, optional
        Seed of dropout, in [0, 2**32). Dropout without one raises ValueError.
    step : int
        Number of the training step.
    sample : int
        Index in the global batch of the first sample of this pass: micro-batches of one batch draw the masks of the
        whole.
    dtype : dtype, optional
        Compute dtype; None is that of the parameters. With a 16-bit one layers give arrays of it to each other and read
        float32 matrices rounded to it; gradients of parameters are summed in float32.
    recompute : bool
        Blocks keep their inputs only and run forward once more in their backward: less memory, a third more time.
    wait : bool
        False: the loss of a model on a GPU may be an array of no axes there, which is not waited for.
    """

    seed: int | None = None
    step: int = 0
    sample: int = 0
    dtype: np.dtype[Any] | None = None
    recompute: bool = False
    wait: bool = True


DEFAULT = Context()


def compute_dtype(owner: str, dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype that is meant, "bfloat16" too; TypeError where nothing can be computed in it."""
    import ml_dtypes  # NumPy knows the name from then on

    known = [np.dtype(kind) for kind in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found not in known:  # NumPy takes None for float64
        raise TypeError(f"{owner}: dtype must be float32, float64, float16 or bfloat16, got {dtype!r}")
    return found
