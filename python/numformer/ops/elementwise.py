"""Addition, and the sum over rows."""

from typing import Any

from numpy.typing import NDArray

from numformer import _core

Array = NDArray[Any]


def add(a: Array, b: Array) -> Array:
    """Sum of two arrays of one shape and dtype: the residual connection.

    Parameters
    ----------
    a, b : arrays
        float32, float64, float16 or bfloat16. Nothing is broadcast.

    Returns
    -------
    array
        a + b.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes differ.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.add(np.ones(2), np.ones(2))
    array([2., 2.])
    """
    return _core.add(a, b)


def sum_rows(x: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """Sum over all axes but the last: the gradient of a bias.

    Parameters
    ----------
    x : (..., C) array
        float32, float64, float16 or bfloat16; 16-bit types are summed in float32.
    accumulate : bool
        Add to `out` instead of writing it.
    out : (C,) array, optional
        The dtype of `x`; float32 beside a 16-bit `x` as well.

    Returns
    -------
    array
        (C,), `out` if it was given.

    Raises
    ------
    TypeError
        If dtypes are not as said.
    ValueError
        If shapes do not fit, or `accumulate` comes without `out`.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.sum_rows(np.ones((2, 3, 4)))
    array([6., 6., 6., 6.])
    """
    return _core.sum_rows(x, accumulate, out)
