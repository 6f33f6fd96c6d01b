"""Averages of weights over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import ops
from numformer.nn import Parameter
from numformer.ops.memory import moved
from numformer.optim.optimizer import copy_state, number

Array = NDArray[Any]


class Average:
    """Exponential moving average of parameters: average += (1 - decay) * (value - average) after each step.

    The average begins as the values after the first update (Polyak, Juditsky, 1992, with weights that fall).

    Parameters
    ----------
    parameters : list of Parameter
        What is averaged.
    decay : float
        In [0, 1): how much of the average stays; 0.999 looks back about a thousand steps.
    """

    def __init__(self, parameters: Iterable[Parameter], *, decay: float = 0.999) -> None:
        self.decay = number("Average", "decay", decay, 0.0, 1.0)
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("Average: parameters must not be empty")
        self.values = [p.value.copy() for p in self.parameters]
        self.updates = 0

    def to(self, device: str) -> None:
        """Have the averages on a device, "cpu" or "cuda", as `Module.to` has the parameters."""
        self.values = [moved(value, device) for value in self.values]

    def update(self) -> None:
        """Take in the values of now."""
        self.updates += 1
        dtypes = {p.value.dtype for p in self.parameters}
        for dtype in dtypes:
            pairs = [(a, p.value) for a, p in zip(self.values, self.parameters, strict=True) if a.dtype == dtype]
            averages, values = [a for a, _ in pairs], [v for _, v in pairs]
            if self.updates == 1:
                for average, value in pairs:
                    average[...] = value
            else:
                # Descent along (average - value): the kernel of SGD does it in one pass.
                ops.sgd_update(averages, values, None, lr=1 - self.decay, weight_decay=1.0, grad_scale=-1.0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the averages in the place of the parameters' values; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self.parameters):
            parameter.value, self.values[index] = self.values[index], parameter.value

    def state_dict(self) -> dict[str, Array]:
        """Return what a checkpoint needs, by name; not copies."""
        state = {"updates": np.array([self.updates], np.int64)}
        for index, (parameter, value) in enumerate(zip(self.parameters, self.values, strict=True)):
            state[f"value.{parameter.name or index}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy a state; ValueError names what does not fit, and nothing was changed."""
        own = self.state_dict()
        copy_state(type(self).__name__, own, state)
        self.updates = int(own["updates"][0])
