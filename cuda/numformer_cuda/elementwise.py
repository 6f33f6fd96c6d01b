"""Activations, sums, conversion, embedding and dropout on a GPU."""

from __future__ import annotations

from typing import Any

from numformer_cuda.arrays import (
    FLOAT32,
    FLOAT64,
    Array,
    Result,
    array,
    boolean,
    dtype_from,
    empty,
    fail_value,
    finite,
    floats,
    in_range,
    integer,
    launch,
    output,
    require_axes,
    require_dtype,
    require_integers,
    require_shape,
    scratch,
    starts,
    text,
    to_device,
    wide,
    word,
)


def _activation(operation: str, name: str, x: Any) -> Array:
    x = floats(operation, "x", x)
    out = empty(x.shape, x.dtype)
    launch("activation", out, x, name)
    return out


def _activation_backward(operation: str, name: str, dy: Any, x: Any) -> Array:
    dy = floats(operation, "dy", dy)
    x = floats(operation, "x", x, dy.dtype)
    require_shape(operation, "x", x, dy.shape)
    dx = empty(x.shape, x.dtype)
    launch("activation_backward", dx, dy, x, name)
    return dx


def _gelu(operation: str, approximate: Any) -> str:
    kinds = {"none": "gelu", "tanh": "gelu_tanh"}
    kind = text(operation, "approximate", approximate)
    if kind not in kinds:
        fail_value(operation, f"approximate must be 'none' or 'tanh', got {kind!r}")
    return kinds[kind]


def relu(x: Any) -> Array:
    """See `numformer.relu`."""
    return _activation("relu", "relu", x)


def relu_backward(dy: Any, x: Any) -> Array:
    """See `numformer.relu_backward`."""
    return _activation_backward("relu_backward", "relu", dy, x)


def gelu(x: Any, approximate: Any) -> Array:
    """See `numformer.gelu`."""
    return _activation("gelu", _gelu("gelu", approximate), x)


def gelu_backward(dy: Any, x: Any, approximate: Any) -> Array:
    """See `numformer.gelu_backward`."""
    return _activation_backward("gelu_backward", _gelu("gelu_backward", approximate), dy, x)


def silu(x: Any) -> Array:
    """See `numformer.silu`."""
    return _activation("silu", "silu", x)


def silu_backward(dy: Any, x: Any) -> Array:
    """See `numformer.silu_backward`."""
    return _activation_backward("silu_backward", "silu", dy, x)


def add(a: Any, b: Any) -> Array:
    """See `numformer.add`."""
    a = floats("add", "a", a)
    b = wide("add", "b", b, a.dtype)
    if b.ndim > a.ndim or b.shape != a.shape[a.ndim - b.ndim :]:
        fail_value("add", f"b must have the shape of a, {a.shape}, or that of its last axes, got {b.shape}")
    out = empty(a.shape, a.dtype)
    launch("add", out, a, b)
    return out


def cast(x: Any, dtype: Any, scale: Any, out: Any) -> Array:
    """See `numformer.cast`."""
    x = floats("cast", "x", x)
    kind = dtype_from("cast", "dtype", dtype)
    factor = finite("cast", "scale", scale)
    given = None if out is None else output("cast", "out", out)
    if given is not None:
        require_dtype("cast", "out", given, kind)
        require_shape("cast", "out", given, x.shape)
    same = x.dtype == kind
    result = Result(given, x.shape, kind, reads=() if same else (x,), in_place=x if same else None)
    launch("cast", result.target, x, factor)
    return result.finish()


def sum_output(operation: str, argument: str, out: Any, dtype: Any, accumulate: bool) -> Array | None:
    """Return where a sum goes: of the dtype of what is summed, or float32 for a 16-bit one; None for a new array."""
    if out is None:
        if accumulate:
            fail_value(operation, f"accumulate=True needs {argument}")
        return None
    given = output(operation, argument, out)
    if given.dtype != FLOAT32 or dtype == FLOAT64:
        require_dtype(operation, argument, given, dtype)
    return given


def sum_rows(x: Any, accumulate: Any, out: Any) -> Array:
    """See `numformer.sum_rows`."""
    name = "sum_rows"
    x = floats(name, "x", x)
    require_axes(name, "x", x, 1)
    add_up = boolean(name, "accumulate", accumulate)
    given = sum_output(name, "out", out, x.dtype, add_up)
    if given is not None:
        require_shape(name, "out", given, x.shape[-1:])
    result = Result(given, x.shape[-1:], x.dtype, keep=add_up, reads=(x,))
    launch(name, result.target, x, add_up, scratch())
    return result.finish()


def embedding(weight: Any, ids: Any) -> Array:
    """See `numformer.embedding`; an id outside the table gives a row of NaN."""
    name = "embedding"
    weight = floats(name, "weight", weight)
    ids = array(name, "ids", ids)
    if weight.ndim != 2:
        fail_value(name, f"weight must have shape (V, C), got {weight.shape}")
    require_integers(name, "ids", ids)
    out = empty((*ids.shape, weight.shape[1]), weight.dtype)
    launch(name, out, weight, ids)
    return out


def embedding_backward(dy: Any, ids: Any, num_embeddings: Any, accumulate: Any, out: Any) -> Array:
    """See `numformer.embedding_backward`; ids outside the table are left out."""
    name = "embedding_backward"
    dy = floats(name, "dy", dy)
    ids = array(name, "ids", ids)
    add_up = boolean(name, "accumulate", accumulate)
    count = integer(name, "num_embeddings", num_embeddings)
    if count < 0:
        fail_value(name, f"num_embeddings must not be negative, got {count}")
    require_axes(name, "dy", dy, 1)
    require_shape(name, "dy", dy, (*ids.shape, dy.shape[-1]))
    require_integers(name, "ids", ids)
    shape = (count, dy.shape[-1])
    given = sum_output(name, "out", out, dy.dtype, add_up)
    if given is not None:
        require_shape(name, "out", given, shape)
    result = Result(given, shape, dy.dtype, keep=add_up, reads=(dy, ids))
    launch(name, result.target, dy, ids, add_up, scratch())
    return result.finish()


def _dropout(
    operation: str,
    argument: str,
    x: Any,
    p: Any,
    seed: Any,
    layer: Any,
    step: Any,
    sample: Any,
    residual: Any,
    cu_seqlens: Any,
) -> Array:
    x = floats(operation, argument, x)
    residual = None if residual is None else floats(operation, "residual", residual, x.dtype)
    require_axes(operation, argument, x, 1)
    share = in_range(operation, "p", p, 0, 1)
    place = {"seed": seed, "layer": layer, "step": step, "sample": sample}
    numbers = {name: word(operation, name, integer(operation, name, value)) for name, value in place.items()}
    if residual is not None:
        require_shape(operation, "residual", residual, x.shape)
    samples, row = x.shape[0], x.size // max(x.shape[0], 1)
    longest, firsts = row, None
    if cu_seqlens is not None:
        begins = starts(operation, "cu_seqlens", cu_seqlens, argument, x.shape[0])
        samples = len(begins) - 1
        longest = int((begins[1:] - begins[:-1]).max(initial=0)) * row
        firsts = to_device(begins * row)
    if samples > 0:
        word(operation, "sample + samples", numbers["sample"] + samples - 1)
        word(operation, "elements of a sample / 4", longest // 4)
    out = empty(x.shape, x.dtype)
    if x.size:
        launch("dropout", out, x, residual, share, *numbers.values(), samples, firsts)
    return out


def dropout(x: Any, p: Any, seed: Any, layer: Any, step: Any, sample: Any, residual: Any, cu_seqlens: Any) -> Array:
    """See `numformer.dropout`; `cu_seqlens` is on the host."""
    return _dropout("dropout", "x", x, p, seed, layer, step, sample, residual, cu_seqlens)


def dropout_backward(dy: Any, p: Any, seed: Any, layer: Any, step: Any, sample: Any, cu_seqlens: Any) -> Array:
    """See `numformer.dropout_backward`; `cu_seqlens` is on the host."""
    return _dropout("dropout_backward", "dy", dy, p, seed, layer, step, sample, None, cu_seqlens)
