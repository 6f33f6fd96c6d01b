"""All that the Trainer knows of models and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from numformer.nn import Context, Parameter

Array = NDArray[Any]


class Model(Protocol):
    """A model that has a loss."""

    def loss(self, batch: Any, *, ctx: Context | None = None) -> tuple[float, Callable[..., Any]]: ...

    def infer_loss(self, batch: Any, *, ctx: Context | None = None) -> float: ...

    def parameters(self) -> list[Parameter]: ...

    def state_dict(self) -> dict[str, Array]: ...

    def load_state_dict(self, state: Mapping[str, Array]) -> None: ...


class Data(Protocol):
    """Samples that can be had in order and by chance; the last array of a batch holds the targets, -100 where none counts."""

    def __len__(self) -> int: ...

    def samples(self, start: int, stop: int) -> tuple[Array, ...]: ...

    def draw(self, count: int, *, seed: int, step: int) -> tuple[Array, ...]: ...
