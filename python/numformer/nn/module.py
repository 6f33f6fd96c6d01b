"""The base of layers and models: parameters, names, the state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops, profiling
from numformer.nn import naming
from numformer.nn.parameter import Parameter
from numformer.ops.memory import assign, check_device, device_of, namespace, on_host


class Module:
    """Whatever has parameters: those in its attributes, in the order in which they were set.

    Attributes that are modules, or lists of modules, are searched too. The name of a parameter is its path, with dots;
    `renames` maps parts of paths to the names that a published checkpoint uses. `splits` names the equal parts, along
    the first axis, in which a checkpoint keeps one parameter: queries, keys and values.
    """

    renames: ClassVar[Mapping[str, str]] = {}
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {}

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

    def pack(self, dtype: DTypeLike | None = None) -> None:
        """Keep a packed copy of the weight of every linear map for inference, see `numformer.PackedMatrix`.

        One copy more in memory makes batches of a few dozen rows faster; a copy in fewer bits makes generation faster,
        which takes as long as reading the weights. A training pass, an optimizer or `load_state_dict` lets the copies
        go.

        Parameters
        ----------
        dtype : dtype, optional
            float32, float16, bfloat16 or int8; that of the weights by default.

        Raises
        ------
        TypeError
            For another dtype, or one that is not float64 for weights that are.
        """
        for _, child in self.children():
            child.pack(dtype)

    def unpack(self) -> None:
        """Let the packed copies go."""
        for parameter in self.named_parameters().values():
            parameter.unpack()

    def to(self, device: str) -> Self:
        """Have values and gradients on a device, and return the module.

        Parameters
        ----------
        device : {"cpu", "cuda"}
            "cuda" needs `numformer_cuda`; arrays are CuPy's then, and what the layers are called on must be too.

        Raises
        ------
        ValueError
            For another device.
        RuntimeError
            Where there is no GPU that can be used; the message says why.
        """
        check_device(type(self).__name__, device)
        for parameter in self.named_parameters().values():
            parameter.to(device)
        return self

    def zero_grad(self) -> None:
        """Forget the gradients: the next ones are written, not added."""
        for parameter in self.named_parameters().values():
            parameter.reset()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the values by name. They are the arrays that are trained, or views of them, not copies."""
        found: dict[str, NDArray[Any]] = {}
        for name, parameter in self.named_parameters().items():
            found |= self._parts(name, parameter.value)
        return found

    def gradients(self) -> dict[str, NDArray[Any]]:
        """Return the gradients by the names of :meth:`state_dict`, without those of parameters that got none."""
        found: dict[str, NDArray[Any]] = {}
        for name, parameter in self.named_parameters().items():
            if parameter.grad is not None and not parameter.fresh:
                found |= self._parts(name, parameter.grad)
        return found

    def _parts(self, name: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        for ours, theirs in self.splits.items():
            if ours in name:
                parts = namespace(array).split(array, len(theirs))
                return {name.replace(ours, one): part for one, part in zip(theirs, parts, strict=True)}
        return {name: array}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]], *, adopt: bool = False) -> None:
        """Copy values into the parameters.

        Parameters
        ----------
        state : mapping
            An array for each name of :meth:`state_dict`.
        adopt : bool
            Whether parameters take the arrays themselves, where dtype and layout allow it, instead of copies.

        Raises
        ------
        ValueError
            Where names are missing or unexpected or shapes differ; every one is named, and nothing was changed.
        """
        state = {name: on_host(value) for name, value in state.items()}
        named = self.state_dict()
        wrong = [f"missing {name}" for name in named if name not in state]
        wrong += [f"unexpected {name}" for name in state if name not in named]
        wrong += [
            f"{name} must have shape {value.shape}, got {np.shape(state[name])}"
            for name, value in named.items()
            if name in state and np.shape(state[name]) != value.shape
        ]
        if wrong:
            shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
            raise ValueError(f"load_state_dict: the entries do not fit {type(self).__name__}: {shown}")
        adopted = set()
        for name, parameter in self.named_parameters().items():
            given, own = state.get(name), parameter.value
            fits = given is not None and (given.dtype, given.shape) == (own.dtype, own.shape)
            if adopt and fits and device_of(own) == "cpu":
                parameter.value = np.ascontiguousarray(state[name])
                adopted.add(name)
            else:
                parameter.own(copy=False)
        for name, value in self.state_dict().items():
            if name not in adopted:
                _fill(value, np.asarray(state[name]))
        for parameter in self.named_parameters().values():
            parameter.changed()


def _fill(value: NDArray[Any], given: NDArray[Any]) -> None:
    """Copy, rounding by our kernel where 16 bits are involved: that of NumPy takes one number at a time."""
    if device_of(value) != "cpu":
        host = np.empty(value.shape, value.dtype)
        _fill(host, given)
        assign(value, host)
    elif value.dtype != given.dtype and 2 in (value.itemsize, given.itemsize) and given.dtype.kind in "fV":
        ops.cast(given, value.dtype, out=value)
    else:
        value[...] = given
