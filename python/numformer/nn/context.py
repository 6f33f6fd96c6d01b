"""What a training pass knows besides its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


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
        Compute dtype; None is that of the parameters. A 16-bit one reads float32 parameters through a rounded copy
        and keeps their gradients in float32.
    recompute : bool
        Blocks keep their inputs only and run forward once more in their backward: less memory, a third more time.
    """

    seed: int | None = None
    step: int = 0
    sample: int = 0
    dtype: np.dtype[Any] | None = None
    recompute: bool = False


DEFAULT = Context()
