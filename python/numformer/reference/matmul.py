"""Matrix product with what usually follows it: bias, activation, residual."""

import numpy as np
from numpy.typing import DTypeLike

from numformer.reference._arrays import F64, Array, deliver, f64
from numformer.reference.activations import activate, activate_backward


def matmul(
    a: Array,
    b: Array,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    scale: float = 1.0,
    accumulate: bool = False,
    dtype: DTypeLike | None = None,
    save_preactivation: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Z = scale * (a @ b) + bias, y = activation(z) + residual.

    Shapes are those of `numpy.matmul`. `bias` is (N,), `residual` has the shape of y. With `accumulate`, `out` += y.
    `dtype` is there for the signature: the result is float64 always.

    Returns
    -------
    y, or (y, z) with `save_preactivation`
    """
    a64, b64 = f64(a), f64(b)
    z = scale * np.matmul(_as_matrix(a64, 0), _as_matrix(b64, 1))
    if bias is not None:
        z = z + f64(bias)
    if b64.ndim == 1:
        z = z[..., 0]
    if a64.ndim == 1:
        z = z[..., 0, :] if b64.ndim > 1 else z[..., 0]
    y = activate(z, activation)
    if residual is not None:
        y = y + f64(residual)
    y = deliver(y, out, accumulate)
    return (y, z) if save_preactivation else y


def matmul_backward(
    dy: Array,
    a: Array,
    b: Array,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    preactivation: Array | None = None,
    scale: float = 1.0,
) -> tuple[F64, F64, F64 | None]:
    """Gradients of `matmul` by a, b and bias (None where bias is None): with dz = dy * activation'(z),

    da = scale * dz @ b.T, db = scale * a.T @ dz, dbias = the sum of dz over its rows,
    and where a batch axis of a or b was broadcast, the sum over it. The gradient of a residual is dy.
    """
    dz, a64, b64 = f64(dy), f64(a), f64(b)
    if activation is not None:
        if preactivation is None:
            raise ValueError("matmul_backward: preactivation is required with an activation")
        dz = activate_backward(dz, f64(preactivation), activation)
    if a64.ndim == 1:
        dz = dz[..., None, :] if b64.ndim > 1 else dz[..., None]
    if b64.ndim == 1:
        dz = dz[..., None]
    a2, b2 = _as_matrix(a64, 0), _as_matrix(b64, 1)
    da = scale * np.matmul(dz, b2.swapaxes(-1, -2))
    db = scale * np.matmul(a2.swapaxes(-1, -2), dz)
    dbias = None if bias is None else dz.sum(axis=tuple(range(dz.ndim - 1)))
    return _sum_to(da, a2.shape).reshape(a64.shape), _sum_to(db, b2.shape).reshape(b64.shape), dbias


def _as_matrix(x: F64, axis: int) -> F64:
    return np.expand_dims(x, axis) if x.ndim == 1 else x


def _sum_to(x: F64, shape: tuple[int, ...]) -> F64:
    """The sum of x over the axes along which an array of `shape` was broadcast to x's."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
