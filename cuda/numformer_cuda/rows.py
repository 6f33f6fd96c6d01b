"""Softmax, norms and losses on a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numformer_cuda.arrays import (
    FLOAT32,
    FLOAT64,
    Array,
    Result,
    array,
    boolean,
    empty,
    fail_type,
    fail_value,
    finite,
    floats,
    in_range,
    integer,
    launch,
    namespace,
    number,
    optional,
    output,
    require_axes,
    require_columns,
    require_dtype,
    require_integers,
    require_shape,
    scratch,
    statistics_type,
    text,
    wide,
)
from numformer_cuda.elementwise import cast, sum_output, sum_rows
from numformer_cuda.matmul import product

# Softmax


def _axis(operation: str, x: Array, axis: Any) -> int:
    found = integer(operation, "axis", axis)
    require_axes(operation, "x", x, 1)
    if not -x.ndim <= found < x.ndim:
        fail_value(operation, f"axis must be in [{-x.ndim}, {x.ndim}) for shape {x.shape}, got {found}")
    return found % x.ndim


def softmax(x: Any, axis: Any) -> Array:
    """See `numformer.softmax`; along another axis than the last one copies."""
    x = floats("softmax", "x", x)
    along = _axis("softmax", x, axis)
    rows = namespace.ascontiguousarray(namespace.moveaxis(x, along, -1))
    out = empty(rows.shape, x.dtype)
    launch("softmax", out, rows)
    return namespace.ascontiguousarray(namespace.moveaxis(out, -1, along))


def softmax_backward(dy: Any, y: Any, axis: Any) -> Array:
    """See `numformer.softmax_backward`; along another axis than the last one copies."""
    name = "softmax_backward"
    dy = floats(name, "dy", dy)
    y = floats(name, "y", y, dy.dtype)
    require_shape(name, "y", y, dy.shape)
    along = _axis(name, y, axis)
    rows, drows = (namespace.ascontiguousarray(namespace.moveaxis(array, along, -1)) for array in (y, dy))
    dx = empty(rows.shape, y.dtype)
    launch(name, dx, drows, rows)
    return namespace.ascontiguousarray(namespace.moveaxis(dx, -1, along))


# Norms


def _weight_and_bias(operation: str, x: Array, weight: Any, bias: Any) -> tuple[Array | None, Array | None]:
    weight = None if weight is None else wide(operation, "weight", weight, x.dtype)
    bias = None if bias is None else wide(operation, "bias", bias, x.dtype)
    require_columns(operation, "x", x)
    for argument, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            require_shape(operation, argument, vector, x.shape[-1:])
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        fail_type(operation, f"bias must have the dtype of weight, {weight.dtype}, got {bias.dtype}")
    return weight, bias


def _eps(operation: str, eps: Any) -> float:
    found = finite(operation, "eps", eps)
    if found < 0:
        fail_value(operation, f"eps must not be negative, got {found}")
    return found


def layer_norm(x: Any, weight: Any, bias: Any, eps: Any, return_stats: Any) -> Any:
    """See `numformer.layer_norm`."""
    name = "layer_norm"
    x = floats(name, "x", x)
    weight, bias = _weight_and_bias(name, x, weight, bias)
    small, wanted = _eps(name, eps), boolean(name, "return_stats", return_stats)
    y, kind = empty(x.shape, x.dtype), statistics_type(x.dtype)
    mean, rstd = (empty(x.shape[:-1], kind) if wanted else None for _ in range(2))
    launch(name, y, mean, rstd, x, weight, bias, small)
    return (y, mean, rstd) if wanted else y


def rms_norm(x: Any, weight: Any, eps: Any, return_stats: Any) -> Any:
    """See `numformer.rms_norm`."""
    name = "rms_norm"
    x = floats(name, "x", x)
    weight, _ = _weight_and_bias(name, x, weight, None)
    small, wanted = _eps(name, eps), boolean(name, "return_stats", return_stats)
    y = empty(x.shape, x.dtype)
    rstd = empty(x.shape[:-1], statistics_type(x.dtype)) if wanted else None
    launch(name, y, rstd, x, weight, small)
    return (y, rstd) if wanted else y


def _norm_backward(
    operation: str, dy: Any, x: Any, statistics: dict[str, Any], weight: Any, residual: Any
) -> tuple[Array, Array, list[Array], Array | None, Array | None]:
    """Return what the two have in common, checked: dy, x, statistics, weight, residual."""
    dy = floats(operation, "dy", dy)
    x = floats(operation, "x", x, dy.dtype)
    kind = statistics_type(dy.dtype)
    given = []
    for argument, values in statistics.items():
        found = array(operation, argument, values)
        if found.dtype != kind:
            fail_type(operation, f"{argument} must have dtype {kind}, got {found.dtype}")
        given.append(found)
    weight = None if weight is None else wide(operation, "weight", weight, dy.dtype)
    residual = None if residual is None else floats(operation, "residual", residual, dy.dtype)
    require_columns(operation, "x", x)
    if weight is not None:
        require_shape(operation, "weight", weight, x.shape[-1:])
    require_shape(operation, "dy", dy, x.shape)
    for argument, found in zip(statistics, given, strict=True):
        require_shape(operation, argument, found, x.shape[:-1])
    if residual is not None:
        require_shape(operation, "residual", residual, x.shape)
    return dy, x, given, weight, residual


def layer_norm_backward(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, bias: Any, residual: Any
) -> tuple[Array, Array | None, Array | None]:
    """See `numformer.layer_norm_backward`."""
    name = "layer_norm_backward"
    dy, x, (mean, rstd), weight, residual = _norm_backward(name, dy, x, {"mean": mean, "rstd": rstd}, weight, residual)
    kind, row = (dy if weight is None else weight).dtype, x.shape[-1:]
    dweight = None if weight is None else empty(row, kind)
    dbias = empty(row, kind) if boolean(name, "bias", bias) else None
    dx = empty(x.shape, x.dtype)
    launch(name, dx, dweight, dbias, dy, x, mean, rstd, weight, residual, scratch())
    return dx, dweight, dbias


def rms_norm_backward(dy: Any, x: Any, rstd: Any, weight: Any, residual: Any) -> tuple[Array, Array | None]:
    """See `numformer.rms_norm_backward`."""
    name = "rms_norm_backward"
    dy, x, (rstd,), weight, residual = _norm_backward(name, dy, x, {"rstd": rstd}, weight, residual)
    dweight = None if weight is None else empty(x.shape[-1:], weight.dtype)
    dx = empty(x.shape, x.dtype)
    launch(name, dx, dweight, dy, x, rstd, weight, residual, scratch())
    return dx, dweight


# Cross-entropy


def _reduction(operation: str, reduction: Any, allowed: tuple[str, ...] = ("mean", "sum", "none")) -> str:
    found = text(operation, "reduction", reduction)
    if found not in allowed:
        names = ", ".join(f"'{name}'" for name in allowed[:-1]) + f" or '{allowed[-1]}'"
        fail_value(operation, f"reduction must be {names}, got '{found}'")
    return found


def _loss_arguments(
    operation: str, logits: Any, targets: Any, ignore_index: Any, label_smoothing: Any, reduction: Any
) -> tuple[Array, Array, int, float, str]:
    logits = floats(operation, "logits", logits)
    targets = array(operation, "targets", targets)
    ignored = integer(operation, "ignore_index", ignore_index)
    smoothing = number(operation, "label_smoothing", label_smoothing)
    how = _reduction(operation, reduction)
    require_columns(operation, "logits", logits)
    require_shape(operation, "targets", targets, logits.shape[:-1])
    in_range(operation, "label_smoothing", smoothing, 0, 1)
    require_integers(operation, "targets", targets)
    return logits, targets, ignored, smoothing, how


def cross_entropy(
    logits: Any, targets: Any, ignore_index: Any, label_smoothing: Any, reduction: Any, return_lse: Any
) -> Any:
    """See `numformer.cross_entropy`; a mean or sum is an array of no axes, and NaN with a target that is no class."""
    name = "cross_entropy"
    logits, targets, *options, how = _loss_arguments(name, logits, targets, ignore_index, label_smoothing, reduction)
    with_lse = boolean(name, "return_lse", return_lse)
    kind = statistics_type(logits.dtype)
    losses, lse = empty(targets.shape, kind), empty(targets.shape, kind)
    total = None if how == "none" else empty((), kind)
    launch(name, total, losses, lse, logits, targets, *options, how)
    loss = losses if total is None else total
    return (loss, lse) if with_lse else loss


def cross_entropy_backward(
    dloss: Any,
    logits: Any,
    targets: Any,
    lse: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    out: Any,
) -> Array:
    """See `numformer.cross_entropy_backward`."""
    name = "cross_entropy_backward"
    logits, targets, *options, how = _loss_arguments(name, logits, targets, ignore_index, label_smoothing, reduction)
    kind = statistics_type(logits.dtype)
    lse = array(name, "lse", lse)
    if lse.dtype != kind:
        fail_type(name, f"lse must have dtype {kind}, got {lse.dtype}")
    require_shape(name, "lse", lse, targets.shape)
    expected = targets.shape if how == "none" else ()
    if isinstance(dloss, (int, float, np.generic)) or (isinstance(dloss, np.ndarray) and dloss.ndim == 0):
        dloss = namespace.full((), float(dloss), kind)
    dloss = floats(name, "dloss", dloss)
    if dloss.ndim != 0:
        require_shape(name, "dloss", dloss, expected)
    dloss = dloss.astype(kind, copy=False)
    if dloss.shape != expected:
        dloss = namespace.ascontiguousarray(namespace.broadcast_to(dloss, expected))
    given = None if out is None else output(name, "out", out)
    if given is not None:
        require_dtype(name, "out", given, logits.dtype)
        require_shape(name, "out", given, logits.shape)
    result = Result(given, logits.shape, logits.dtype, reads=(targets, lse, dloss), in_place=logits)
    launch(name, result.target, dloss, logits, targets, lse, *options, how, scratch())
    return result.finish()


CHUNK = 512 << 20
"""Bytes of logits at once: products of a few thousand rows at a vocabulary of 50,000, enough to fill a GPU."""
ALIGNED = 64
"""Rows of logits begin at multiples of so many elements: of 128 bytes in 16 bits. The kernels of products that read 16
bytes at once need a multiple of 8, which a vocabulary rarely is."""
WHOLE = 8
"""They need it of the extent, too, not only of the step from row to row: a product over 50,257 classes is made by a
kernel that reads one element at a time. In 16 bits the head is padded, then, by rows of zeros."""
WORTH = 256
"""Rows that are worth the copy of the weight that this takes."""
TILE = 256
"""Rows of a chunk are a multiple of it: of the tiles in which products are made."""


def _chunk_rows(rows: int, row_bytes: int) -> int:
    """Return the rows of a chunk: chunks are of like size, and whole tiles but for the last one."""
    most = max(TILE, CHUNK // row_bytes // TILE * TILE)
    chunks = max(1, -(-rows // most))
    return -(-rows // (chunks * TILE)) * TILE or TILE


def _padded(x: Array, rows: int) -> Array:
    """Return a copy that has so many rows, the last ones zeros."""
    more = empty((rows, *x.shape[1:]), x.dtype)
    more[: len(x)] = x
    more[len(x) :] = 0
    return more


class _Sum:
    """A gradient to which each chunk adds. One in 16 bits is summed beside in float32 and rounded once."""

    def __init__(self, given: Array | None, shape: tuple[int, ...], dtype: Any, accumulate: bool, reads: Any) -> None:
        self.result = Result(given, shape, dtype, keep=accumulate, reads=reads)
        target: Array = self.result.target
        self.narrow = target.dtype.itemsize == 2
        self.array: Array = empty(shape, np.float32) if self.narrow else target
        self.started = accumulate
        if self.narrow and accumulate:
            cast(target, np.float32, 1.0, self.array)

    def finish(self) -> Array:
        if not self.started:  # there was no row
            self.array.fill(0)
        if self.narrow:
            cast(self.array, self.result.target.dtype, 1.0, self.result.target)
        return self.result.finish()


def linear_cross_entropy(
    x: Any,
    weight: Any,
    targets: Any,
    bias: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    dloss: Any,
    gradients: Any,
    dweight: Any,
    dbias: Any,
    accumulate: Any,
    chunk: Any,
) -> Any:
    """See `numformer.linear_cross_entropy`: chunk by chunk, logits, their loss and gradient, and its two products."""
    name = "linear_cross_entropy"
    x = floats(name, "x", x)
    weight = floats(name, "weight", weight, x.dtype, layout="matrix")
    targets = array(name, "targets", targets)
    bias = optional(name, "bias", bias)
    if bias is not None and (bias.dtype != FLOAT32 or x.dtype == FLOAT64):
        require_dtype(name, "bias", bias, x.dtype)
    ignored = integer(name, "ignore_index", ignore_index)
    smoothing = number(name, "label_smoothing", label_smoothing)
    how = _reduction(name, reduction, ("mean", "sum"))
    upstream = finite(name, "dloss", dloss)
    if chunk is not None and (chunk := integer(name, "chunk", chunk)) < 1:
        fail_value(name, f"chunk must be at least 1, got {chunk}")
    wanted, add_up = boolean(name, "gradients", gradients), boolean(name, "accumulate", accumulate)
    if not wanted and (add_up or dweight is not None or dbias is not None):
        fail_value(name, "dweight, dbias and accumulate need gradients=True")
    if bias is None and dbias is not None:
        fail_value(name, "dbias needs bias, got None")
    require_axes(name, "x", x, 1)
    width = x.shape[-1]
    if weight.ndim != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        fail_value(name, f"weight must have shape (V, {width}), V at least 1, got {weight.shape}")
    classes = weight.shape[0]
    require_shape(name, "targets", targets, x.shape[:-1])
    require_integers(name, "targets", targets)
    if bias is not None:
        require_shape(name, "bias", bias, (classes,))
    in_range(name, "label_smoothing", smoothing, 0, 1)

    kind, rows = statistics_type(x.dtype), math.prod(x.shape[:-1])
    flat, wished = x.reshape(rows, width), targets.reshape(rows)
    reads = (x, weight, targets, bias)
    dx, sums = None, []
    if wanted:
        for argument, given, shape, dtype in (
            ("dweight", dweight, weight.shape, x.dtype),
            *([] if bias is None else [("dbias", dbias, bias.shape, bias.dtype)]),
        ):
            found = sum_output(name, argument, given, dtype, add_up)
            if found is not None:
                require_shape(name, argument, found, shape)
            sums.append(_Sum(found, shape, dtype, add_up, reads))
        dx = empty(x.shape, x.dtype)
    losses = empty((rows, 1), kind)
    count = empty((1,), np.float64)
    launch("count_targets", count, wished, ignored, how == "mean")
    pitch = -(-classes // ALIGNED) * ALIGNED
    step = _chunk_rows(rows, pitch * kind.itemsize) if chunk is None else chunk
    step = max(1, min(rows, step))
    padded = x.dtype.itemsize == 2 and classes % WHOLE != 0 and rows >= WORTH
    columns = pitch if padded else classes
    if padded:
        weight, bias = _padded(weight, pitch), None if bias is None else _padded(bias, pitch)
    all_logits = empty((step, pitch), kind)
    all_dlogits = all_logits if dx is None or x.dtype == kind else empty((step, pitch), x.dtype)
    if padded and dx is not None:
        all_dlogits[:, classes:] = 0
    whole = classes // ALIGNED * ALIGNED  # classes whose part of dweight is made where it belongs
    rest = empty((pitch - whole, width), sums[0].array.dtype) if padded and dx is not None else None
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        chunk_logits = all_logits[: part.stop - part.start]
        product(flat[part], weight.T, bias=bias, out=chunk_logits[:, :columns])
        logits, row_losses = chunk_logits[:, :classes], losses[part].reshape(-1)
        if dx is None:
            lse = empty(row_losses.shape, kind)
            launch("cross_entropy", None, row_losses, lse, logits, wished[part], ignored, smoothing, "none")
            continue
        chunk_dlogits = all_dlogits[: part.stop - part.start]
        dlogits = chunk_dlogits[:, :classes]
        launch(
            "cross_entropy_gradient",
            *(row_losses, dlogits, logits, wished[part], count, ignored, smoothing, upstream),
        )
        product(chunk_dlogits[:, :columns], weight, out=dx.reshape(rows, width)[part])
        dweight_sum = sums[0].array
        if rest is None:
            product(dlogits.T, flat[part], out=dweight_sum, accumulate=sums[0].started)
        else:
            if whole:
                product(dlogits[:, :whole].T, flat[part], out=dweight_sum[:whole], accumulate=sums[0].started)
            product(chunk_dlogits[:, whole:].T, flat[part], out=rest, accumulate=first > 0)
        if bias is not None:
            launch("sum_rows", sums[1].array, dlogits, sums[1].started, scratch())
        for total in sums:
            total.started = True
    if rest is not None:
        last, found = sums[0].array[whole:], rest[: classes - whole]
        if add_up:
            last += found
        else:
            last[...] = found
    loss = cast(sum_rows(losses, False, None)[0] / count[0], kind, 1.0, None)
    if dx is None:
        return loss
    return (loss, dx, *(total.finish() for total in sums))
