"""Normalisation of the last axis."""

from typing import Any

from numpy.typing import NDArray

from numformer.ops.dispatch import core as _core

Array = NDArray[Any]


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    return_stats: bool = False,
) -> Any:
    r"""Layer norm, :math:`y = (x - \mathrm{mean}) \cdot \mathrm{rstd} \cdot \mathrm{weight} + \mathrm{bias}`.

    rstd = 1 / sqrt(variance + eps), the variance divided by n and not n - 1.

    Parameters
    ----------
    x : (..., C) array
        float32, float64, float16 or bfloat16.
    weight, bias : (C,) arrays, optional
        The dtype of `x`; float32 beside a 16-bit `x` as well, both or none.
    eps : float
        Keeps rows of equal elements finite.
    return_stats : bool
        Return ``(y, mean, rstd)``, for the backward.

    Returns
    -------
    y : (..., C) array
        The dtype of `x`.
    mean, rstd : (...) arrays
        float32, or float64 for float64; with `return_stats` only.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes do not fit, C is 0, or `eps` is negative or not finite.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450, 2016.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]]), eps=0.0)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    return _core.layer_norm(x, weight, bias, eps, return_stats)


def layer_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    *,
    bias: bool = False,
    residual: Array | None = None,
) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `layer_norm` by x, weight and bias.

    With h = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - h * mean(g * h)) + residual.

    Parameters
    ----------
    dy, x : (..., C) arrays
        Of one dtype.
    mean, rstd : (...) arrays
        As `layer_norm` returned them.
    weight : (C,) array, optional
        As given to `layer_norm`.
    bias : bool
        Whether there was a bias.
    residual : (..., C) array, optional
        Added to dx: the gradient that goes round the block.

    Returns
    -------
    dx : (..., C) array
    dweight, dbias : (C,) arrays
        Sums over rows, kept in float32 or wider, in the dtype of the weight; None where there is no weight or bias.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> x, weight = np.array([[1.0, 3.0]]), np.ones(2)
    >>> y, mean, rstd = nf.layer_norm(x, weight, return_stats=True)
    >>> dx, dweight, dbias = nf.layer_norm_backward(np.ones((1, 2)), x, mean, rstd, weight, bias=True)
    >>> dx.round(6), dbias  # a constant added to y changes nothing that x could undo
    (array([[0., 0.]]), array([1., 1.]))
    """
    return _core.layer_norm_backward(dy, x, mean, rstd, weight, bias, residual)


def rms_norm(x: Array, weight: Array | None = None, *, eps: float = 1e-6, return_stats: bool = False) -> Any:
    r"""RMS norm, :math:`y = x \cdot \mathrm{rstd} \cdot \mathrm{weight}`, where rstd = 1 / sqrt(mean(x^2) + eps).

    Parameters
    ----------
    x : (..., C) array
        float32, float64, float16 or bfloat16.
    weight : (C,) array, optional
        The dtype of `x`; float32 beside a 16-bit `x` as well.
    eps : float
        Keeps rows of zeros finite.
    return_stats : bool
        Return ``(y, rstd)``, for the backward.

    Returns
    -------
    y : (..., C) array
        The dtype of `x`.
    rstd : (...) array
        float32, or float64 for float64; with `return_stats` only.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes do not fit, C is 0, or `eps` is negative or not finite.

    References
    ----------
    B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.rms_norm(np.array([[3.0, -3.0]]), eps=0.0)
    array([[ 1., -1.]])
    """
    return _core.rms_norm(x, weight, eps, return_stats)


def rms_norm_backward(
    dy: Array, x: Array, rstd: Array, weight: Array | None = None, *, residual: Array | None = None
) -> tuple[Array, Array | None]:
    """Gradients of `rms_norm` by x and weight.

    With h = x * rstd and g = dy * weight: dx = rstd * (g - h * mean(g * h)) + residual.

    Parameters
    ----------
    dy, x : (..., C) arrays
        Of one dtype.
    rstd : (...) array
        As `rms_norm` returned it.
    weight : (C,) array, optional
        As given to `rms_norm`.
    residual : (..., C) array, optional
        Added to dx.

    Returns
    -------
    dx : (..., C) array
    dweight : (C,) array or None
        In the dtype of the weight.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> x = np.array([[3.0, -3.0]])
    >>> y, rstd = nf.rms_norm(x, return_stats=True)
    >>> dx, dweight = nf.rms_norm_backward(np.ones((1, 2)), x, rstd)
    >>> dx.round(4), dweight is None
    (array([[0.3333, 0.3333]]), True)
    """
    return _core.rms_norm_backward(dy, x, rstd, weight, residual)
