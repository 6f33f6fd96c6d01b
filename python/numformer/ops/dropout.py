"""Dropout whose mask is a function of where it stands."""

from typing import Any

from numpy.typing import NDArray

from numformer.ops.dispatch import core as _core

Array = NDArray[Any]


def dropout(
    x: Array,
    p: float,
    *,
    seed: int,
    layer: int = 0,
    step: int = 0,
    sample: int = 0,
    residual: Array | None = None,
    cu_seqlens: Array | None = None,
) -> Array:
    """Set each element to 0 with probability p, else divide it by 1 - p; then add the residual.

    The mask is a function of (seed, layer, step, index of the sample, element within the sample) only, so the backward
    makes it again, and threads, micro-batches and packing change nothing. The random numbers are Philox4x32-10's.

    Parameters
    ----------
    x : (N, ...) array
        float32, float64, float16 or bfloat16; axis 0 counts the samples.
    p : float
        In [0, 1].
    seed, layer, step : int
        In [0, 2**32).
    sample : int
        Index of the first sample in the global batch.
    residual : array, optional
        Shape and dtype of `x`.
    cu_seqlens : (samples + 1,) array, optional
        For packed samples of different lengths: int32 or int64, from 0 to N, not decreasing; sample s is
        ``x[cu_seqlens[s] : cu_seqlens[s + 1]]``, and has the mask that it has alone.

    Returns
    -------
    array
        Shape and dtype of `x`.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown, or a number is of the wrong kind.
    ValueError
        If a number is out of range, shapes or lengths do not fit, or `x` has no axis.

    References
    ----------
    N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> y = nf.dropout(np.ones((4, 1000)), 0.25, seed=1)
    >>> np.unique(y).round(4), bool(abs(y.mean() - 1) < 0.05)
    (array([0.    , 1.3333]), True)
    >>> alone = nf.dropout(np.ones((1, 1000)), 0.25, seed=1, sample=2)  # the third sample by itself
    >>> np.array_equal(alone[0], y[2])
    True
    """
    return _core.dropout(x, p, seed, layer, step, sample, residual, cu_seqlens)


def dropout_backward(
    dy: Array,
    p: float,
    *,
    seed: int,
    layer: int = 0,
    step: int = 0,
    sample: int = 0,
    cu_seqlens: Array | None = None,
) -> Array:
    """Gradient of `dropout`: the same mask and the same factor, on dy.

    Parameters
    ----------
    dy : (N, ...) array
        Gradient of the result.
    p, seed, layer, step, sample, cu_seqlens
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
        If a number is out of range, lengths do not fit, or `dy` has no axis.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> x = np.ones((2, 8))
    >>> np.array_equal(nf.dropout_backward(x, 0.5, seed=1), nf.dropout(x, 0.5, seed=1))  # the same mask
    True
    """
    return _core.dropout_backward(dy, p, seed, layer, step, sample, cu_seqlens)
