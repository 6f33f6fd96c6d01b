"""All that the Trainer knows of models and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from numformer.nn import Context, Parameter
from numformer.packed import Packed

Array = NDArray[Any]


class Model(Protocol):
    """A model that has a loss."""

    def loss(self, batch: Any, *, ctx: Context | None = None) -> tuple[float, Callable[..., Any]]:
        """Return the mean loss over the targets of a batch, and its backward."""
        ...

    def infer_loss(self, batch: Any, *, ctx: Context | None = None) -> float:
        """Return the mean loss without dropout; nothing is kept."""
        ...

    def parameters(self) -> list[Parameter]:
        """Return what is trained."""
        ...

    def state_dict(self) -> dict[str, Array]:
        """Return the weights by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy weights; ValueError names those that do not fit."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A model that carries something from step to step besides its weights, so that a checkpoint has it too."""

    def training_memory(self, step: int) -> dict[str, Array]:
        """Return arrays by name: what a run that goes on at `step` needs."""
        ...

    def load_training_memory(self, arrays: Mapping[str, Array]) -> None:
        """Set what `training_memory` returned; ValueError for what does not fit."""
        ...


class Data(Protocol):
    """Samples in order and by chance, in arrays along axis 0 or packed.

    The last part of a batch holds the targets, -100 where none counts.
    """

    def __len__(self) -> int: ...

    def samples(self, start: int, stop: int) -> tuple[Array | Packed, ...]:
        """Return the samples from `start` up to `stop`."""
        ...

    def draw(self, count: int, *, seed: int, step: int) -> tuple[Array | Packed, ...]:
        """Return `count` samples, a function of seed and step."""
        ...
