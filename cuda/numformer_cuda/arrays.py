"""Arguments of calls: what they must be, as the CPU's bindings check it, and how the native module sees them.

All checks read shapes, strides and dtypes, which are on the host. What is in an array on a GPU is not looked at: that
would be to wait for it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, NoReturn

import cupy
import ml_dtypes
import numpy as np
from numformer.ops.dispatch import GPU

from numformer_cuda import DeviceError
from numformer_cuda.errors import CUDA, device_error, named
from numformer_cuda.timing import timing

namespace: Any = cupy
_core: Any = import_module("numformer_cuda._core")  # which has no types
Array = Any
"""A cupy.ndarray."""
Described = tuple[int, tuple[int, ...], tuple[int, ...] | None, str]
"""An array as the native module takes it: pointer, shape, strides in elements (None: C order), dtype."""

# A step of training makes hundreds of calls: they look dtypes up and never ask one for its name, which NumPy puts
# together anew each time.
FLOAT32, FLOAT64, FLOAT16 = map(np.dtype, (np.float32, np.float64, np.float16))
BFLOAT16, INT32, INT64, BOOL = map(np.dtype, (ml_dtypes.bfloat16, np.int32, np.int64, np.bool_))
NAMES = {x: x.name for x in (FLOAT32, FLOAT64, FLOAT16, BFLOAT16, INT32, INT64, BOOL)}
"""How the native module calls the dtypes that it knows."""
FLOATS = frozenset((FLOAT32, FLOAT64, FLOAT16, BFLOAT16))
MAX_AXES = 32
_ndarray: Any = cupy.ndarray
_stream: Any = cupy.cuda.get_current_stream


def fail_type(operation: str, message: str) -> NoReturn:
    """Raise TypeError with the operation in front."""
    raise TypeError(f"{operation}: {message}")


def fail_value(operation: str, message: str) -> NoReturn:
    """Raise ValueError with the operation in front."""
    raise ValueError(f"{operation}: {message}")


# Arrays


def array(operation: str, argument: str, x: Any, layout: str = "contiguous") -> Array:
    """Return an array on the GPU that has the layout: the argument, or what DLPack gives of it; else a copy on the GPU.

    Layouts: "any"; "last_axis", unit stride on it; "matrix", unit stride on one of the last two axes; "contiguous".
    """
    if not isinstance(x, _ndarray):
        x = _taken(operation, argument, x)
    if x.dtype not in NAMES:
        fail_type(
            operation,
            f"{argument} must have dtype float32, float64, float16 or bfloat16 (integers: int32 or int64; "
            f"masks: bool), got {x.dtype}",
        )
    return x if x.flags.c_contiguous or _fits(x, layout) else namespace.ascontiguousarray(x)


def optional(operation: str, argument: str, x: Any, layout: str = "contiguous") -> Array | None:
    """Return None for None."""
    return None if x is None else array(operation, argument, x, layout)


def output(operation: str, argument: str, x: Any) -> Array:
    """Return an array that is written: the argument itself, whatever its strides."""
    return array(operation, argument, x, "any")


def _taken(operation: str, argument: str, x: Any) -> Array:
    kind = type(x).__name__
    if isinstance(x, (np.ndarray, np.generic)):
        fail_type(
            operation,
            f"{argument} must be on the GPU, where other arguments are, got a numpy.{kind}; copy it with cupy.asarray",
        )
    device = getattr(x, "__dlpack_device__", None)
    if device is None:
        fail_type(operation, f"{argument} must be a cupy.ndarray (or have __dlpack__ of a GPU's memory), got {kind}")
    where = device()[0]
    if where not in GPU:
        fail_type(
            operation,
            f"{argument} must be on the GPU, where other arguments are, got a {kind} on a device of type {int(where)}",
        )
    return namespace.from_dlpack(x)  # on the current stream, for which its owner lets this wait


def _fits(x: Array, layout: str) -> bool:
    """Whether an array that is not contiguous has a layout."""
    if layout == "contiguous":
        return False
    item, shape, strides = x.dtype.itemsize, x.shape, x.strides
    for stride in strides:
        if stride % item:
            return False
    if layout == "any" or not shape or shape[-1] <= 1 or strides[-1] == item:
        return True
    return layout == "matrix" and len(shape) > 1 and (shape[-2] <= 1 or strides[-2] == item)


def floats(operation: str, argument: str, x: Any, expected: Any = None, layout: str = "contiguous") -> Array:
    """Return an array of floats, of the dtype `expected` where one is given."""
    found = array(operation, argument, x, layout)
    dtype = found.dtype
    if dtype not in FLOATS:
        fail_type(operation, f"{argument} must have dtype float32, float64, float16 or bfloat16, got {dtype}")
    if expected is not None and dtype != expected:
        require_dtype(operation, argument, found, expected)
    return found


def wide(operation: str, argument: str, x: Any, expected: Any) -> Array:
    """Return an array of floats of the dtype `expected`, or of float32 beside a 16-bit one."""
    found = floats(operation, argument, x)
    if found.dtype != FLOAT32 or expected == FLOAT64:
        require_dtype(operation, argument, found, expected)
    return found


def require_dtype(operation: str, argument: str, x: Array, expected: Any) -> None:
    """Refuse another dtype than that of the first array."""
    if x.dtype != expected:
        fail_type(operation, f"{argument} must have the dtype of the first array, {expected}, got {x.dtype}")


def require_shape(operation: str, argument: str, x: Array, expected: tuple[int, ...]) -> None:
    """Refuse another shape."""
    if x.shape != expected:
        fail_value(operation, f"{argument} must have shape {expected}, got {x.shape}")


def require_axes(operation: str, argument: str, x: Array, axes: int) -> None:
    """Refuse an array of fewer axes."""
    if x.ndim < axes:
        plural = "axis" if axes == 1 else "axes"
        fail_value(operation, f"{argument} must have at least {axes} {plural}, got shape {x.shape}")


def require_columns(operation: str, argument: str, x: Array) -> None:
    """Refuse rows of nothing."""
    require_axes(operation, argument, x, 1)
    if x.shape[-1] == 0:
        fail_value(operation, f"{argument} must have at least one element on its last axis, got shape {x.shape}")


def require_integers(operation: str, argument: str, x: Array) -> None:
    """Refuse another dtype than int32 and int64."""
    if x.dtype not in (INT32, INT64):
        fail_type(operation, f"{argument} must have dtype int32 or int64, got {x.dtype}")


def statistics_type(dtype: Any) -> Any:
    """Return the dtype of sums: float64 for it, else float32."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def dtype_from(operation: str, argument: str, dtype: Any) -> Any:
    """Return a dtype of floats; TypeError for what is none."""
    shown = dtype
    try:
        if dtype is not None:  # which NumPy takes for float64
            shown = found = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
            if found in FLOATS:
                return found
    except TypeError:
        pass
    fail_type(operation, f"{argument} must be float32, float64, float16 or bfloat16, got {shown}")


# Scalars


def number(operation: str, argument: str, value: Any) -> float:
    """Return a float; TypeError for what is no number, an array on the GPU included: it would have to be waited for."""
    if isinstance(value, (str, bytes, namespace.ndarray)):
        fail_type(operation, f"{argument} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except Exception:
        fail_type(operation, f"{argument} must be a number, got {type(value).__name__}")


def finite(operation: str, argument: str, value: Any) -> float:
    """Return a finite float."""
    found = number(operation, argument, value)
    if not math.isfinite(found):
        fail_value(operation, f"{argument} must be finite, got {found:g}")
    return found


def in_range(operation: str, argument: str, value: Any, low: float, high: float) -> float:
    """Return a float in [low, high]."""
    found = number(operation, argument, value)
    if not low <= found <= high:
        fail_value(operation, f"{argument} must be in [{low:g}, {high:g}], got {found:g}")
    return found


def integer(operation: str, argument: str, value: Any) -> int:
    """Return an integer of 64 bits."""
    try:
        found = operator.index(value)
    except Exception:
        fail_type(operation, f"{argument} must be an integer, got {type(value).__name__}")
    if not -(2**63) <= found < 2**63:
        fail_value(operation, f"{argument} must fit in 64 bits, got {found}")
    return found


def word(operation: str, argument: str, value: int) -> int:
    """Return an integer in [0, 2**32)."""
    if not 0 <= value < 2**32:
        fail_value(operation, f"{argument} must be in [0, 2**32), got {value}")
    return value


def boolean(operation: str, argument: str, value: Any) -> bool:
    """Return a truth."""
    try:
        return bool(value)
    except Exception:
        fail_type(operation, f"{argument} must be True or False, got {type(value).__name__}")


def text(operation: str, argument: str, value: Any) -> str:
    """Return a string."""
    if not isinstance(value, str):
        fail_type(operation, f"{argument} must be a string, got {type(value).__name__}")
    return value


def starts(operation: str, argument: str, x: Any, packed: str, total: int) -> Any:
    """Return where packed sequences begin, int64 on the host: lengths are checked before anything is launched."""
    if isinstance(x, namespace.ndarray):
        fail_type(
            operation, f"{argument} must be a numpy.ndarray: lengths are read before anything is launched, got cupy's"
        )
    if not isinstance(x, np.ndarray):
        fail_type(operation, f"{argument} must be a numpy.ndarray, got {type(x).__name__}")
    require_integers(operation, argument, x)
    if x.ndim != 1 or x.size == 0:
        fail_value(operation, f"{argument} must have shape (sequences + 1,), got {x.shape}")
    values = x.astype(np.int64)
    if values[0] != 0:
        fail_value(operation, f"{argument} must begin with 0, got {values[0]}")
    if (wrong := np.flatnonzero(values[1:] < values[:-1])).size:
        i = wrong[0]
        fail_value(operation, f"{argument} must not decrease, got {values[i + 1]} after {values[i]}")
    if values[-1] != total:
        fail_value(operation, f"{argument} must end with the rows of {packed}, {total}, got {values[-1]}")
    return values


# Memory


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return a new array of CuPy's pool, not initialised."""
    try:  # and no context manager: it costs more than the array
        return namespace.empty(shape, dtype)
    except CUDA as error:
        raise device_error(error) from error


def to_device(x: Any) -> Array:
    """Return a copy, on the GPU, of an array of the host."""
    with named():
        return namespace.asarray(np.ascontiguousarray(x) if x.ndim else x)


def to_host(x: Array) -> Any:
    """Return a copy, on the host, of an array on the GPU, once it is computed."""
    with named():
        return x.get()


def numbers_of(arrays: list[Array]) -> list[float]:
    """Return the numbers that arrays of no axes hold, once they are computed; they come in one copy."""
    with named():
        if len(arrays) == 1:
            return [float(arrays[0])]
        together = namespace.stack([x.astype("float64", copy=False) for x in arrays], axis=0)
        return [float(x) for x in together.get()]


def scratch() -> Callable[[int], int]:
    """Return what gives the native module memory to work in.

    It goes back to the pool with the function, that is when the launches that use it are on the stream: CuPy's pool
    gives memory of a stream to what comes later on that stream only.
    """
    held: list[Any] = []

    def allocate(count: int) -> int:
        try:
            memory = namespace.cuda.alloc(count)
        except CUDA as error:
            raise device_error(error) from error
        held.append(memory)
        return int(memory.ptr)

    return allocate


class Result:
    """Where a result goes: a new array, or the caller's. What cannot be written in place is computed beside and copied.

    Parameters
    ----------
    given : array or None
        That of the caller.
    shape, dtype
        Of a new one.
    keep : bool
        Whether the result is added to what is there.
    reads : iterable of arrays
        What the kernel reads, of which nothing may be overwritten.
    in_place : array, optional
        May be the very same array as `given`.
    """

    def __init__(
        self,
        given: Array | None,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        keep: bool = False,
        reads: Iterable[Array | None] = (),
        in_place: Array | None = None,
    ) -> None:
        self.given = given
        if given is not None and self._is_direct(given, reads, in_place):
            self.target: Array = given
            return
        self.target = empty(shape, dtype)
        if given is not None and keep:
            self.target[...] = given

    @staticmethod
    def _is_direct(given: Array, reads: Iterable[Array | None], in_place: Array | None) -> bool:
        if not given.flags.c_contiguous or overlap(given, *reads):
            return False
        return in_place is None or in_place.data.ptr == given.data.ptr or not overlap(given, in_place)

    def finish(self) -> Array:
        """Return the result."""
        if self.given is None or self.given is self.target:
            return self.target
        self.given[...] = self.target
        return self.given


def _extent(x: Array) -> tuple[int, int] | None:
    if x.size == 0:
        return None
    low = high = x.data.ptr
    if x.flags.c_contiguous:
        return low, low + x.nbytes
    for size, stride in zip(x.shape, x.strides, strict=True):
        if stride > 0:
            high += (size - 1) * stride
        else:
            low += (size - 1) * stride
    return low, high + x.dtype.itemsize


def overlap(a: Array, *others: Array | None) -> bool:
    """Whether an array and one of others may touch a common range of memory, by their extents."""
    one = _extent(a)
    if one is None:
        return False
    low, high = one
    for x in others:
        other = None if x is None else _extent(x)
        if other is not None and low < other[1] and other[0] < high:
            return True
    return False


# Calls


def describe(x: Array | None) -> Described | None:
    """Return an array as the native module takes it; None for None."""
    if x is None:
        return None
    dtype = x.dtype
    if x.flags.c_contiguous:
        return x.data.ptr, x.shape, None, NAMES[dtype]
    item = dtype.itemsize
    return x.data.ptr, x.shape, tuple([stride // item for stride in x.strides]), NAMES[dtype]


def launch(name: str, *arguments: Any) -> None:
    """Call the native module on the current stream; arrays among the arguments are described."""
    kernel = getattr(_core, name, None)
    if kernel is None:
        raise NotImplementedError(f"{name}: it is not implemented on a GPU yet")
    given = [describe(x) if isinstance(x, _ndarray) else x for x in arguments]
    try:
        given.append(_stream().ptr)
        if timing.on:
            timing.run(name, kernel, tuple(given))
        else:
            kernel(*given)
    except NotImplementedError:
        raise
    except RuntimeError as error:
        raise DeviceError(f"{name}: {error}") from error
