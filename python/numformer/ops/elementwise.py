"""Addition, conversion between dtypes, and the sum over rows."""

from typing import Any

from numpy.typing import DTypeLike, NDArray

from numformer.ops.dispatch import core as _core

Array = NDArray[Any]


def add(a: Array, b: Array) -> Array:
    """Sum of two arrays: the residual connection, and positions added to every sequence of a batch.

    Parameters
    ----------
    a : array
        float32, float64, float16 or bfloat16.
    b : array
        The shape of `a`, or that of its last axes: then it is added everywhere along the first ones. The dtype of `a`;
        float32 beside a 16-bit `a` as well.

    Returns
    -------
    array
        a + b, in the shape and dtype of `a`, rounded once.

    Raises
    ------
    TypeError
        If dtypes are not as said.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.add(np.ones(2), np.ones(2))
    array([2., 2.])
    """
    return _core.add(a, b)


def cast(x: Array, dtype: DTypeLike, *, scale: float = 1.0, out: Array | None = None) -> Array:
    """Another dtype, by several threads and whole registers, and rounded once: ``scale * x``.

    Parameters
    ----------
    x : array
        float32, float64, float16 or bfloat16.
    dtype : dtype
        One of these: of the result.
    scale : float
        Multiplies x before it is rounded, in float32 (float64 for a float64 `x`).
    out : array, optional
        Where to write, of `dtype` and the shape of `x`; `x` itself where the dtypes are one.

    Returns
    -------
    array
        `out` if it was given. What lies beyond the range of `dtype` is infinite, NaN stays NaN. From float64 to 16
        bits the way is by float32.

    Raises
    ------
    TypeError
        If a dtype is unknown, or `out` has another.
    ValueError
        If `out` has another shape, or `scale` is not finite.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.cast(np.array([1.0, 1 / 3, 1e6], np.float32), np.float16)
    array([1.    , 0.3333,    inf], dtype=float16)
    """
    return _core.cast(x, dtype, scale, out)


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
