"""Matrix product on a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numformer_cuda.arrays import (
    MAX_AXES,
    Array,
    array,
    dtype_from,
    empty,
    fail_type,
    fail_value,
    finite,
    floats,
    launch,
    namespace,
    output,
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
    b = floats(name, "b", b, a.dtype, layout="matrix")
    for argument, operand in (("a", a), ("b", b)):
        if not 1 <= operand.ndim <= MAX_AXES:
            fail_value(name, f"{argument} must have 1 to {MAX_AXES} axes, got shape {operand.shape}")
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    if right.shape[-2] != left.shape[-1]:
        fail_value(name, f"b must have {left.shape[-1]} rows to match a {a.shape}, got {b.shape}")
    try:
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        fail_value(name, f"batch axes of a and b must broadcast, got {a.shape} and {b.shape}")
    shape = (*batch, *(left.shape[-2:-1] if a.ndim > 1 else ()), *(right.shape[-1:] if b.ndim > 1 else ()))
    factor = finite(name, "scale", scale)
    if activation is not None:
        if not isinstance(activation, str):
            fail_type(name, "activation must be None or a string")
        if activation not in _ACTIVATIONS:
            names = ", ".join(f"'{one}'" for one in _ACTIVATIONS[:-1])
            fail_value(name, f"activation must be None, {names} or '{_ACTIVATIONS[-1]}', got '{activation}'")
    if bias is not None:
        bias = array(name, "bias", bias)
        if bias.dtype.name != "float32" or a.dtype.name == "float64":
            require_dtype(name, "bias", bias, a.dtype)
        require_shape(name, "bias", bias, right.shape[-1:])
    given, kind = None, a.dtype
    if out is not None:
        given = floats(name, "out", output(name, "out", out), layout="any")
        kind = given.dtype
        require_shape(name, "out", given, shape)
    elif accumulate:
        fail_value(name, "accumulate=True needs out")
    if dtype is not None:
        wanted = dtype_from(name, "dtype", dtype)
        if given is not None and wanted != kind:
            fail_type(name, f"out must have dtype {wanted}, got {kind}")
        kind = wanted
    if (kind.name == "float64") != (a.dtype.name == "float64"):
        fail_type(name, f"float64 is not mixed with other types: a is {a.dtype}, the output is to be {kind}")
    if residual is not None:
        residual = array(name, "residual", residual)
        require_dtype(name, "residual", residual, kind)
        require_shape(name, "residual", residual, shape)

    same = residual is not None and given is not None and residual.data.ptr == given.data.ptr
    read = (a, b, bias, None if same else residual)
    direct = given is not None and given.flags.c_contiguous
    direct = direct and not any(x is not None and overlap(given, x) for x in read)
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
    m, n = a.shape[-2], b.shape[-1]
    if b.ndim == 2 and a.ndim > 2 and a.flags.c_contiguous:
        m = math.prod(a.shape[:-1])
        a = a.reshape(m, a.shape[-1])
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = namespace.broadcast_to(a, (*batch, *a.shape[-2:]))
    b = namespace.broadcast_to(b, (*batch, *b.shape[-2:]))
    shape = (*batch, m, n)
    outputs = [None if x is None else x.reshape(shape) for x in (target, residual, z)]
    launch("matmul", outputs[0], a, b, bias, activation, outputs[1], outputs[2], scale, accumulate, scratch())
