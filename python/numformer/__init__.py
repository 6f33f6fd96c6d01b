"""Transformers on NumPy arrays, on native C++ kernels, with no framework underneath."""

import importlib
from typing import TYPE_CHECKING, Any

from numformer import _core, ops
from numformer._core import __version__
from numformer.cache import KVCache
from numformer.ops import *  # noqa: F403 - the functions that ops lists in __all__
from numformer.ops import dispatch
from numformer.ops.packed_matrix import PackedMatrix

if TYPE_CHECKING:
    from numformer import data as data
    from numformer import models as models
    from numformer import nn as nn
    from numformer import optim as optim
    from numformer import reference as reference
    from numformer import train as train
    from numformer.profiling.explain import explain as explain
    from numformer.profiling.session import profile as profile

_LAZY = ("data", "models", "nn", "optim", "reference", "train")
_PROFILING = ("explain", "profile")  # of numformer.profiling, whose import takes as long as all the rest

__all__ = [
    *ops.__all__,
    *_LAZY,
    "KVCache",
    "PackedMatrix",
    "__version__",
    "empty_pool",
    "explain",
    "get_num_threads",
    "info",
    "ops",
    "profile",
    "set_num_threads",
    "set_pool_limit",
]


def set_num_threads(n: int) -> None:
    """Set how many threads a kernel may use (1 to 1024). Results do not depend on it.

    A build without OpenMP (``info()["parallel"]`` is ``"none"``) stays on one.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is out of range.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"set_num_threads: n must be an int, got {type(n).__name__}")
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """How many threads a kernel may use: `set_num_threads`, else OMP_NUM_THREADS, else the processors of
    this process.
    """
    return int(_core.get_num_threads())


def set_pool_limit(bytes: int) -> None:
    """Keep at most `bytes` of freed memory for reuse; the rest goes back to the system at once.

    Raises
    ------
    TypeError
        If `bytes` is not an integer.
    ValueError
        If `bytes` is negative.
    """
    if isinstance(bytes, bool) or not isinstance(bytes, int):
        raise TypeError(f"set_pool_limit: bytes must be an int, got {type(bytes).__name__}")
    _core.set_pool_limit(min(bytes, 2**62))


def empty_pool() -> None:
    """Give all memory that is kept for reuse back to the system."""
    _core.empty_pool()


def info() -> dict[str, Any]:
    """Version, instruction set (and those the machine has), threads, what they run on (``"openmp"``, or ``"none"``
    in a build for one thread), processors, the pool's counters in bytes, and of the CUDA backend, ``"cuda"``, whether
    it is usable, and which device and versions there are or, where it is not, the reason.
    """
    return {
        "version": __version__,
        "isa": _core.isa,
        "isa_available": _core.isa_available(),
        "threads": get_num_threads(),
        "parallel": "openmp" if _core.has_threads() else "none",
        "processors": _core.available_processors(),
        "cuda": dispatch.cuda_status(),
        "pool": _core.pool_statistics(),
    }


def __getattr__(name: str) -> Any:
    if name in _LAZY or name == "profiling":
        return importlib.import_module(f"numformer.{name}")
    if name in _PROFILING:
        return getattr(importlib.import_module("numformer.profiling"), name)
    raise AttributeError(f"module 'numformer' has no attribute {name!r}")
