"""Matrix product with what usually follows it: bias, activation, residual."""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer.ops.activations import gelu_backward, relu_backward, silu_backward
from numformer.ops.dispatch import core as _core
from numformer.ops.elementwise import sum_rows
from numformer.ops.memory import namespace
from numformer.ops.packed_matrix import PackedMatrix

Array = NDArray[Any]


def matmul(
    a: Array,
    b: Array | PackedMatrix,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    scale: float = 1.0,
    accumulate: bool = False,
    dtype: DTypeLike | None = None,
    save_preactivation: bool = False,
    out: Array | None = None,
) -> Any:
    """Matrix product with a fused epilogue: ``z = scale * (a @ b) + bias``, ``y = activation(z) + residual``.

    Parameters
    ----------
    a : (..., M, K) array
        float32, float64, float16 or bfloat16; 1-D as in `numpy.matmul`. Any matrix with unit stride on one of its last
        two axes (so a transpose too) is read in place.
    b : (..., K, N) array, or PackedMatrix (K, N)
        The dtype of `a`, but for a `PackedMatrix`. Batch axes broadcast.
    bias : (N,) array, optional
        The dtype of `a`; float32 beside a 16-bit `a` as well.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        "gelu" is the exact one, "gelu_tanh" its approximation.
    residual : array, optional
        Shape and dtype of the result.
    scale : float
        Multiplies the product.
    accumulate : bool
        Add to `out` instead of writing it.
    dtype : dtype, optional
        Of the result; by default that of `out`, else of `a`. float64 goes only with float64.
    save_preactivation : bool
        Return ``(y, z)``, for the backward.
    out : array, optional
        Where to write y. Unit stride on the last axis and no overlap with an input save a copy.

    Returns
    -------
    y : (..., M, N) array, or (y, z)
        A scalar for two vectors, as NumPy's.

    Raises
    ------
    TypeError
        For what is not an array, an unknown dtype, or dtypes that differ.
    ValueError
        For shapes that do not fit, an unknown activation, a scale that is not finite, `accumulate` without `out`.

    Notes
    -----
    16-bit types are multiplied and summed in float32 and rounded once. The order of sums depends on K, the dtype and
    the instruction
    set only. Blocking after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", TOMS 34 (2008).

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> a, b = np.ones((2, 3)), np.ones((3, 2))
    >>> nf.matmul(a, b, bias=np.array([1.0, -9.0]), activation="relu")
    array([[4., 0.],
           [4., 0.]])
    """
    return _core.matmul(a, b, bias, activation, residual, scale, accumulate, dtype, save_preactivation, out)


def matmul_backward(
    dy: Array,
    a: Array,
    b: Array,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    preactivation: Array | None = None,
    scale: float = 1.0,
) -> tuple[Array, Array, Array | None]:
    """Gradients of `matmul` by a, b and bias.

    Parameters
    ----------
    dy : (..., M, N) array
        Gradient of y.
    a, b, bias, activation, scale
        As given to `matmul`.
    preactivation : (..., M, N) array
        z of ``matmul(..., save_preactivation=True)``; required with an activation.

    Returns
    -------
    da, db : arrays
        In the shapes of a and b (summed over broadcast batch axes).
    dbias : (N,) array or None
        None where `bias` is None. The gradient of a residual is `dy`.

    Raises
    ------
    ValueError
        If `activation` is given without `preactivation`, or shapes do not fit.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> a, b = np.ones((2, 3)), np.ones((3, 4))
    >>> da, db, dbias = nf.matmul_backward(np.ones((2, 4)), a, b, bias=np.zeros(4))
    >>> da[0], dbias
    (array([4., 4., 4.]), array([2., 2., 2., 2.]))
    """
    dy, a, b = (_core.as_array("matmul_backward", name, x) for name, x in (("dy", dy), ("a", a), ("b", b)))
    for name, array in (("dy", dy), ("b", b)):
        if namespace(array) is not namespace(a):
            raise TypeError(f"matmul_backward: {name} must be where a is, in the processor's memory or on the GPU")
        if array.dtype != a.dtype:
            raise TypeError(f"matmul_backward: {name} must have the dtype of a, {a.dtype}, got {array.dtype}")
    if a.ndim == 0 or b.ndim == 0:
        name = "a" if a.ndim == 0 else "b"
        raise ValueError(f"matmul_backward: {name} must have 1 or more axes, got shape ()")
    if activation is not None:
        if preactivation is None:
            raise ValueError("matmul_backward: preactivation is required with an activation, got None")
        dy = _activation_backward(dy, preactivation, activation)
    a2 = a[np.newaxis, :] if a.ndim == 1 else a
    b2 = b[:, np.newaxis] if b.ndim == 1 else b
    dz = dy
    if b.ndim == 1:
        dz = dz[..., np.newaxis]
    if a.ndim == 1:
        dz = dz[..., np.newaxis, :]
    if dz.shape[-2:] != (a2.shape[-2], b2.shape[-1]):
        raise ValueError(
            f"matmul_backward: dy must have the shape of a @ b, got dy {dy.shape} for a {a.shape} and b {b.shape}"
        )
    xp = namespace(dz)
    dz = xp.ascontiguousarray(dz)
    dbias = sum_rows(dz) if bias is not None else None
    if b2.ndim == 2 and a2.ndim > 2:  # one matrix for all rows: its gradient is one product over all of them
        count = math.prod(a2.shape[:-1])
        rows = xp.ascontiguousarray(a2).reshape(count, a2.shape[-1])
        db = matmul(rows.T, dz.reshape(count, dz.shape[-1]), scale=scale)
    else:
        db = _product_summed_to(a2.swapaxes(-1, -2), dz, scale, b2.shape)
    da = _product_summed_to(dz, b2.swapaxes(-1, -2), scale, a2.shape)
    return da.reshape(a.shape), db.reshape(b.shape), dbias


def _activation_backward(dy: Array, z: Array, activation: str) -> Array:
    if activation == "relu":
        return relu_backward(dy, z)
    if activation == "silu":
        return silu_backward(dy, z)
    if activation in ("gelu", "gelu_tanh"):
        return gelu_backward(dy, z, approximate="tanh" if activation == "gelu_tanh" else "none")
    raise ValueError(
        f"matmul_backward: activation must be None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got {activation!r}"
    )


def _product_summed_to(a: Array, b: Array, scale: float, shape: tuple[int, ...]) -> Array:
    """``scale * a @ b``, summed over the batch axes along which an operand of `shape` was repeated."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    extra = len(batch) + 2 - len(shape)
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape[:-2]) if n == 1 and batch[extra + i] != 1)
    if not axes:
        product: Array = matmul(a, b, scale=scale)
        return product
    wide = np.float64 if a.dtype == np.float64 else np.float32  # 16-bit products are summed before they are rounded
    total: Array = matmul(a, b, scale=scale, dtype=wide).sum(axis=axes)
    return total.reshape(shape).astype(a.dtype)
