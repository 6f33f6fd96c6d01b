"""Softmax along one axis."""

from typing import Any

from numpy.typing import NDArray

from numformer.ops.dispatch import core as _core

Array = NDArray[Any]


def softmax(x: Array, axis: int = -1) -> Array:
    r"""Softmax, :math:`y_i = e^{x_i} / \sum_j e^{x_j}`, with the maximum taken off first so that nothing overflows.

    Parameters
    ----------
    x : array
        float32, float64, float16 or bfloat16, at least one axis.
    axis : int
        Along which the results sum to 1.

    Returns
    -------
    array
        Shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not an array of one of these dtypes, or `axis` not an integer.
    ValueError
        If `x` has no such axis.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.softmax(np.log([[1.0, 3.0], [2.0, 2.0]])).round(6)
    array([[0.25, 0.75],
           [0.5 , 0.5 ]])
    """
    return _core.softmax(x, axis)


def softmax_backward(dy: Array, y: Array, axis: int = -1) -> Array:
    r"""Gradient of `softmax`: :math:`dx = y (dy - \sum_j dy_j y_j)`.

    Parameters
    ----------
    dy, y : arrays
        Gradient of the result, and the result itself; of one shape and dtype.
    axis : int
        As in `softmax`.

    Returns
    -------
    array
        dx.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes differ or there is no such axis.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> y = nf.softmax(np.zeros((1, 2)))
    >>> nf.softmax_backward(np.array([[1.0, 0.0]]), y)
    array([[ 0.25, -0.25]])
    """
    return _core.softmax_backward(dy, y, axis)
