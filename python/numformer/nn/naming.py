"""The names under which layers appear in profiles."""

from __future__ import annotations

from typing import Any

METHODS = ("__call__", "infer", "loss", "infer_loss", "project", "weights")

# By id, while a profile is on: the module, so that its id stays its own, and its name within the module around it.
_names: dict[int, tuple[Any, str]] = {}


def forget() -> None:
    """Let go of the modules."""
    _names.clear()


def _name(module: Any, name: str) -> str:
    """Name a module and, once and for all, what is below it; of two names of a shared module the first holds."""
    _names[id(module)] = (module, name)
    for child_name, child in module.children():
        if id(child) not in _names:
            _name(child, child_name)
    return name


def label(module: Any, method: str) -> str:
    """Return the name of the attribute that holds a module, or its class where no module that ran holds it."""
    found = _names.get(id(module))
    return _name(module, type(module).__name__) if found is None else found[1]


def backward_label(backward: Any, method: str) -> str:
    """Return the name of the module whose backward it is; " backward" behind that of an outermost one."""
    owner = getattr(backward._function, "__self__", None)
    if not hasattr(owner, "children"):
        return "backward"
    name = label(owner, method)
    return f"{name} backward" if name == type(owner).__name__ else name
