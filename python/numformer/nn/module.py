"""The base of layers and models: parameters, names, the state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from numformer import profiling
from numformer.nn import naming
from numformer.nn.parameter import Parameter


class Module:
    """Whatever has parameters: those in its attributes, in the order in which they were set.

    Attributes that are modules, or lists of modules, are searched too. The name of a parameter is its path, with dots;
    `renames` maps parts of paths to the names that a published checkpoint uses.
    """

    renames: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        profiling.trace(cls, naming.METHODS, naming.label, cleanup=naming.forget)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Walk over the modules right below this one, with their names."""
        for name, attribute in vars(self).items():
            if isinstance(attribute, Module):
                yield name, attribute
            elif isinstance(attribute, list):
                for index, item in enumerate(attribute):
                    if isinstance(item, Module):
                        yield f"{name}.{index}", item

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Walk over this module and all below it, with their paths."""
        yield prefix, self
        for name, child in self.children():
            yield from child.modules(f"{prefix}{name}.")

    def named_parameters(self) -> dict[str, Parameter]:
        """Return the parameters by name; a shared one appears once, under its first name."""
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        for prefix, module in self.modules():
            for name, attribute in vars(module).items():
                if isinstance(attribute, Parameter) and id(attribute) not in seen:
                    seen.add(id(attribute))
                    found[self._rename(prefix + name)] = attribute
        return found

    def _rename(self, path: str) -> str:
        for ours, theirs in self.renames.items():
            path = path.replace(ours, theirs)
        return path

    def parameters(self) -> list[Parameter]:
        """Return the parameters, each once, with their names set."""
        named = self.named_parameters()
        for name, parameter in named.items():
            parameter.name = name
        return list(named.values())

    def zero_grad(self) -> None:
        """Forget the gradients: the next ones are written, not added."""
        for parameter in self.named_parameters().values():
            parameter.reset()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the values by name. They are the arrays that are trained, not copies."""
        return {name: parameter.value for name, parameter in self.named_parameters().items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Copy values into the parameters.

        Parameters
        ----------
        state : mapping
            An array for each name of :meth:`state_dict`.

        Raises
        ------
        ValueError
            Where names are missing or unexpected or shapes differ; every one is named, and nothing was changed.
        """
        named = self.named_parameters()
        wrong = [f"missing {name}" for name in named if name not in state]
        wrong += [f"unexpected {name}" for name in state if name not in named]
        wrong += [
            f"{name} must have shape {parameter.value.shape}, got {np.shape(state[name])}"
            for name, parameter in named.items()
            if name in state and np.shape(state[name]) != parameter.value.shape
        ]
        if wrong:
            shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
            raise ValueError(f"load_state_dict: the entries do not fit {type(self).__name__}: {shown}")
        for name, parameter in named.items():
            parameter.value[...] = state[name]
