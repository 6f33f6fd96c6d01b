"""Where arrays are: new ones beside others, and copies from one memory to the other.

What layers, models and optimizers do with arrays beyond the functions of `numformer.ops` goes through here, so that
they need not know whether an array is NumPy's or on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import _core
from numformer.ops import dispatch

Array = NDArray[Any]


def empty(shape: tuple[int, ...], dtype: DTypeLike, *, like: Array | None = None) -> Array:
    """Return a new array that is not initialised, in the memory of `like`; the processor's comes from the pool.

    Large ones reuse memory whose pages are there already.
    """
    backend = None if like is None else dispatch.backend_of(like)
    return _core.empty(shape, dtype) if backend is None else backend.empty(shape, dtype)


def namespace(x: Array) -> ModuleType:
    """Return the module whose functions work on an array: NumPy, or CuPy for one on a GPU."""
    backend = dispatch.backend_of(x)
    return np if backend is None else backend.namespace


def device_of(x: Array) -> str:
    """Return "cpu" or "cuda"."""
    return "cpu" if dispatch.backend_of(x) is None else "cuda"


def check_device(owner: str, device: str) -> str:
    """Return a device that can be used; ValueError for an unknown one, RuntimeError for one that is not there."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"{owner}: device must be 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and dispatch.cuda() is None:
        raise RuntimeError(f"{owner}: device 'cuda' cannot be used: {dispatch.cuda_status()['reason']}")
    return device


def moved(x: Array, device: str) -> Array:
    """Return the array on a device: itself where it is there, else a copy."""
    if device_of(x) == device:
        return x
    if device == "cpu":
        return on_host(x)
    backend = dispatch.cuda()
    assert backend is not None  # check_device has seen to that
    return backend.to_device(x)


def beside(x: Array, like: Array) -> Array:
    """Return the array in the memory of another one: itself where it is there, else a copy."""
    if type(like) is np.ndarray and type(x) is np.ndarray:
        return x
    return moved(x, device_of(like))


def indices(owner: str, name: str, ids: Array, count: int, like: Array, *, ignored: int | None = None) -> Array:
    """Return integers in the memory of an array that they are used with.

    Those of the host that go to a GPU are looked at first: its kernels cannot raise.

    Raises
    ------
    ValueError
        Where one of these is not in [0, count), and not `ignored`.
    """
    if type(like) is np.ndarray or device_of(like) == device_of(ids):
        return ids
    if device_of(ids) == "cpu":
        wrong = ids[((ids < 0) | (ids >= count)) & (ids != ignored)]
        if wrong.size:
            also = "" if ignored is None else f" or {ignored}"
            raise ValueError(f"{owner}: {name} must be in [0, {count}){also}, got {wrong.flat[0]}")
    return beside(ids, like)


def on_host(x: Array) -> Array:
    """Return the array in the processor's memory; to copy it from a GPU waits for what it is computed by."""
    backend = dispatch.backend_of(x)
    return x if backend is None else backend.to_host(x)


def number(x: Any, *, wait: bool = True) -> Any:
    """Return a number that was computed; one on a GPU is waited for, and an error of the device has its name here.

    Without `wait` that is returned as it is: an array of no axes.
    """
    backend = dispatch.backend_of(x)
    if backend is None:
        return float(x)
    return backend.numbers_of([x])[0] if wait else x


def numbers(given: Sequence[Any]) -> list[float]:
    """Return several numbers; those on a GPU are waited for once."""
    there = [x for x in given if dispatch.backend_of(x) is not None]
    backend = dispatch.backend_of(there[0]) if there else None
    found = iter([] if backend is None else backend.numbers_of(there))
    return [float(x) if dispatch.backend_of(x) is None else next(found) for x in given]


def assign(target: Array, source: Any) -> None:
    """Copy values into an array, from whichever memory."""
    if dispatch.backend_of(target) is None and dispatch.backend_of(source) is None:
        target[...] = source
    else:
        target[...] = beside(np.asarray(source) if np.isscalar(source) else source, target)


def is_writeable(x: Array) -> bool:
    """Whether an array may be written; those on a GPU always."""
    return bool(getattr(x.flags, "writeable", True))
