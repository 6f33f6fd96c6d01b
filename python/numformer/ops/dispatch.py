"""Which backend a call goes to: the one that holds its arrays.

The functions of `numformer.ops` document arguments and defaults once and hand them, by position, to `core`. For NumPy
arrays that is the native module; a call whose first array is in the memory of a GPU goes to the function of the same
name in `numformer_cuda.backend`, which is imported on first use. What that costs a call on NumPy arrays is one call of
a Python function that looks at the type of one argument. An array of the other memory among the others is refused by
whoever got the call.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from numformer import _core

Array = np.ndarray

GPU = (2, 13)
"""DLPack's numbers of devices whose memory the CUDA backend reads: kDLCUDA, kDLCUDAManaged."""

# How many arguments a function has, by position; the first one decides where the call goes.
_ARITY = {
    "add": 2,
    "attention": 6,
    "attention_backward": 10,
    "cast": 4,
    "cross_entropy": 6,
    "dropout": 8,
    "dropout_backward": 7,
    "embedding": 2,
    "embedding_backward": 5,
    "from_dlpack": 1,
    "gelu": 2,
    "gelu_backward": 3,
    "layer_norm": 5,
    "layer_norm_backward": 7,
    "linear_cross_entropy": 13,
    "matmul": 10,
    "relu": 1,
    "relu_backward": 2,
    "rms_norm": 4,
    "rms_norm_backward": 5,
    "silu": 1,
    "silu_backward": 2,
    "softmax": 2,
    "softmax_backward": 3,
    "sum_rows": 3,
    # and here another one:
    "as_array": 3,
    "cross_entropy_backward": 8,
}
_DECIDING = {"as_array": 2, "cross_entropy_backward": 1}
# Their first argument is a list of arrays.
_LISTS_FIRST = ("adagrad_update", "adam_update", "adamw_update", "global_norm", "rmsprop_update", "sgd_update")

_loaded: dict[type, ModuleType] = {}
"""The backend by the type of its arrays, once there was one."""


def backend_of(x: Any) -> ModuleType | None:
    """Return the backend whose memory an array is in; None for what is the processor's, or no array.

    Raises
    ------
    RuntimeError
        Where the array is on a GPU and `numformer_cuda` is there but cannot be used.
    """
    kind = type(x)
    if kind is Array:
        return None
    backend = _loaded.get(kind)
    if backend is not None:
        return backend
    device = getattr(kind, "__dlpack_device__", None)
    if device is None or isinstance(x, Array):
        return None
    try:
        where = device(x)[0]
    except Exception:  # whoever reads the array says what is wrong with it
        return None
    return cuda() if where in GPU else None


def cuda() -> ModuleType | None:
    """Import the CUDA backend; None where it is not installed.

    Raises
    ------
    RuntimeError
        Where it is installed and cannot be used: the message says why.
    """
    for backend in _loaded.values():
        return backend
    if importlib.util.find_spec("numformer_cuda") is None:
        return None
    status = cuda_status()
    if not status["usable"]:
        raise RuntimeError(f"numformer_cuda cannot be used: {status['reason']}")
    backend = importlib.import_module("numformer_cuda.backend")
    _loaded[backend.namespace.ndarray] = backend
    return backend


def cuda_status() -> dict[str, Any]:
    """Return whether the CUDA backend is usable, and if not, the reason; CuPy is not imported to find out."""
    if importlib.util.find_spec("numformer_cuda") is None:
        reason = "numformer-cuda is not installed (pip install 'numformer[cuda]')"
        return {"usable": False, "reason": reason}
    try:
        status: dict[str, Any] = importlib.import_module("numformer_cuda").status()
    except ImportError as error:
        return {"usable": False, "reason": f"numformer_cuda cannot be imported: {error}"}
    return status


def wait_for(x: Any) -> None:
    """Return when an array is computed, for a library that knows nothing of the stream that it is computed on."""
    if backend_of(x) is not None:
        importlib.import_module("numformer_cuda").synchronize()


# With as many parameters as the function has: to collect *arguments would cost three times the look at a type.
_CALL = """
def call({all}):
    if type({deciding}) is Array:
        return native({all})
    return elsewhere({all})
"""


def _by_array(name: str, native: Callable[..., Any]) -> Callable[..., Any]:
    place = _DECIDING.get(name, 0)

    def elsewhere(*arguments: Any) -> Any:
        backend = backend_of(arguments[place])
        return native(*arguments) if backend is None else getattr(backend, name)(*arguments)

    names = [f"a{i}" for i in range(_ARITY[name])]
    scope: dict[str, Any] = {"Array": Array, "native": native, "elsewhere": elsewhere}
    exec(_CALL.format(all=", ".join(names), deciding=names[place]), scope)
    call: Callable[..., Any] = scope["call"]
    return call


def _by_list(name: str, native: Callable[..., Any]) -> Callable[..., Any]:
    def call(first: Any, *rest: Any) -> Any:
        if isinstance(first, Iterator):  # to look at its first array and still have it
            first = list(first)
        backend = backend_of(first[0] if type(first) in (list, tuple) and first else first)
        return native(first, *rest) if backend is None else getattr(backend, name)(first, *rest)

    return call


if TYPE_CHECKING:
    core = _core
else:
    core = SimpleNamespace(
        **{name: _by_array(name, getattr(_core, name)) for name in _ARITY},
        **{name: _by_list(name, getattr(_core, name)) for name in _LISTS_FIRST},
    )
