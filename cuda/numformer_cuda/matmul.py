"""Matrix product on a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numformer_cuda.arrays import (
    FLOAT32,
    FLOAT64,
    MAX_AXES,
    NAMES,
    Array,
    Described,
    array,
    describe,
    dtype_from,
    empty,
    fail_type,
    fail_value,
    finite,
    floats,
    launch,
    overlap,
    require_dtype,
    require_shape,
    scratch,
)

_ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


def matmul(
    a: Any,
    b: Any,
    bias: Any,
    activation: Any,
    residual: Any,
    scale: Any,
    accumulate: Any,
    dtype: Any,
    save_preactivation: Any,
    out: Any,
) -> Any:
    """See `numformer.matmul`; a product of two vectors is an array of no axes."""
    name = "matmul"
    a = floats(name, "a", a, layout="matrix")
    of_a, source = a.shape, a.dtype
    b = floats(name, "b", b, source, layout="matrix")
    of_b = b.shape
    for argument, sizes in (("a", of_a), ("b", of_b)):
        if not 1 <= len(sizes) <= MAX_AXES:
            fail_value(name, f"{argument} must have 1 to {MAX_AXES} axes, got shape {sizes}")
    left, right = (a[None, :] if len(of_a) == 1 else a), (b[:, None] if len(of_b) == 1 else b)
    depth, columns = of_b[-2:] if len(of_b) > 1 else (of_b[0], 1)
    if depth != of_a[-1]:
        fail_value(name, f"b must have {of_a[-1]} rows to match a {of_a}, got {of_b}")
    try:
        batch = _batch(of_a[:-2], of_b[:-2])
    except ValueError:
        fail_value(name, f"batch axes of a and b must broadcast, got {of_a} and {of_b}")
    shape = (*batch, *of_a[-2:-1], *((columns,) if len(of_b) > 1 else ()))
    factor = 1.0 if scale == 1.0 else finite(name, "scale", scale)
    if activation is not None:
        if not isinstance(activation, str):
            fail_type(name, "activation must be None or a string")
        if activation not in _ACTIVATIONS:
            names = ", ".join(f"'{one}'" for one in _ACTIVATIONS[:-1])
            fail_value(name, f"activation must be None, {names} or '{_ACTIVATIONS[-1]}', got '{activation}'")
    if bias is not None:
        bias = array(name, "bias", bias)
        if bias.dtype != FLOAT32 or source == FLOAT64:
            require_dtype(name, "bias", bias, source)
        require_shape(name, "bias", bias, (columns,))
    given, kind = None, source
    if out is not None:
        given = floats(name, "out", out, layout="any")
        kind = given.dtype
        require_shape(name, "out", given, shape)
    elif accumulate:
        fail_value(name, "accumulate=True needs out")
    if dtype is not None:
        wanted = dtype_from(name, "dtype", dtype)
        if given is not None and wanted != kind:
            fail_type(name, f"out must have dtype {wanted}, got {kind}")
        kind = wanted
    if (kind == FLOAT64) != (source == FLOAT64):
        fail_type(name, f"float64 is not mixed with other types: a is {source}, the output is to be {kind}")
    if residual is not None:
        residual = array(name, "residual", residual)
        require_dtype(name, "residual", residual, kind)
        require_shape(name, "residual", residual, shape)

    direct = False
    if given is not None and given.flags.c_contiguous:
        same = residual is not None and residual.data.ptr == given.data.ptr
        read = (a, b, bias, None if same else residual)
        direct = not overlap(given, *read)
    target: Array = given if direct else empty(shape, kind)
    if given is not None and not direct and accumulate:
        target[...] = given
    z = empty(shape, kind) if save_preactivation else None
    _run(target, left, right, bias, activation, residual, z, factor, bool(accumulate))
    if given is not None and not direct:
        given[...] = target
    y = target if given is None else given
    return y if z is None else (y, z)


def product(
    a: Array,
    b: Array,
    *,
    bias: Array | None = None,
    dtype: Any = None,
    out: Array | None = None,
    accumulate: bool = False,
) -> Array:
    """Return the product of two matrices whose arguments are known to be right."""
    target = empty((a.shape[0], b.shape[1]), dtype or a.dtype) if out is None else out
    _run(target, a, b, bias, None, None, None, 1.0, accumulate)
    return target


def _run(
    target: Array,
    a: Array,
    b: Array,
    bias: Array | None,
    activation: str | None,
    residual: Array | None,
    z: Array | None,
    scale: float,
    accumulate: bool,
) -> None:
    """Give the operands the axes of the output. Rows of a stack against one matrix are rows of one taller matrix."""
    of_a, of_b = a.shape, b.shape
    if len(of_b) == 2 and (len(of_a) == 2 or a.flags.c_contiguous):
        rows = math.prod(of_a[:-1])
        shape: tuple[int, ...] = (rows, of_b[1])
        left = describe(a) if len(of_a) == 2 else (a.data.ptr, (rows, of_a[-1]), None, NAMES[a.dtype])
        right = describe(b)
    else:
        batch = _batch(of_a[:-2], of_b[:-2])
        shape = (*batch, of_a[-2], of_b[-1])
        left, right = _repeated(a, batch), _repeated(b, batch)
    launch(
        "matmul",
        *(_shaped(target, shape), left, right, bias, activation, _shaped(residual, shape), _shaped(z, shape)),
        *(scale, accumulate, scratch()),
    )


def _batch(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes to which those of two stacks of matrices broadcast; ValueError where they do not."""
    if a == b or not b:
        return a
    return np.broadcast_shapes(a, b) if a else b


def _repeated(x: Array, batch: tuple[int, ...]) -> Described:
    """Describe a stack of matrices, repeated along the axes of `batch` that it has not."""
    shape, strides, item = x.shape, x.strides, x.dtype.itemsize
    repeats = len(batch) - len(shape) + 2
    steps = [0 if size == 1 else stride // item for size, stride in zip(shape[:-2], strides, strict=False)]
    strides = (*([0] * repeats), *steps, *(stride // item for stride in strides[-2:]))
    return x.data.ptr, (*batch, *shape[-2:]), strides, NAMES[x.dtype]


def _shaped(x: Array | None, shape: tuple[int, ...]) -> Described | None:
    """Describe an output: a matrix as it lies, and what is in C order with the axes of the product."""
    if x is None or not x.flags.c_contiguous:
        return describe(x)
    return x.data.ptr, shape, None, NAMES[x.dtype]
