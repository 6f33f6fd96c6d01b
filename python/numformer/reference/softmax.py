"""Softmax along one axis."""

import numpy as np

from numformer.reference._arrays import F64, Array, f64


def softmax(x: Array, axis: int = -1) -> F64:
    r"""exp(x_i) / sum_j exp(x_j), with the maximum taken off first so that nothing overflows."""
    x = f64(x)
    if x.size == 0:
        return x
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> F64:
    """Dx = y * (dy - sum(dy * y)), from the result y of `softmax`."""
    dy, y = f64(dy), f64(y)
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True))
