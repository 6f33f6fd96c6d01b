"""Dropout whose mask is a function of where it stands."""

from typing import Any

from numpy.typing import NDArray

from numformer import _core

Array = NDArray[Any]


def dropout(
    x: Array, p: float, *, seed: int, layer: int = 0, step: int = 0, sample: int = 0, residual: Array | None = None
) -> Array:
    """Set each element to 0 with probability p, else divide it by 1 - p; then add the residual.

    The mask is a function of (seed, layer, step, index of the sample, element within the sample) only, so the backward
    makes it again, and threads and micro-batches change nothing. The random numbers are those of Philox4x32-10.

    Parameters
    ----------
    x : (N, ...) array
        float32, float64, float16 or bfloat16; axis 0 counts the samples.
    p : float
        In [0, 1].
    seed, layer, step : int
        In [0, 2**32).
    sample : int
        Index of ``x[0]`` in the global batch.
    residual : array, optional
        Shape and dtype of `x`.

    Returns
    -------
    array
        Shape and dtype of `x`.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown, or a number is of the wrong kind.
    ValueError
        If a number is out of range, shapes differ, or `x` has no axis.

    References
    ----------
    N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    return _core.dropout(x, p, seed, layer, step, sample, residual)


def dropout_backward(dy: Array, p: float, *, seed: int, layer: int = 0, step: int = 0, sample: int = 0) -> Array:
    """Gradient of `dropout`: the same mask and the same factor, on dy.

    Parameters
    ----------
    dy : (N, ...) array
        Gradient of the result.
    p, seed, layer, step, sample
        As given to `dropout`.

    Returns
    -------
    array
        dx.

    Raises
    ------
    TypeError
        If `dy` is not a float array, or a number is of the wrong kind.
    ValueError
        If a number is out of range or `dy` has no axis.
    """
    return _core.dropout_backward(dy, p, seed, layer, step, sample)
