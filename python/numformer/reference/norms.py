"""Normalisation of the last axis."""

import numpy as np

from numformer.reference._arrays import F64, Array, f64


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    return_stats: bool = False,
) -> F64 | tuple[F64, F64, F64]:
    r"""Y = (x - mean) * rstd * weight + bias, where rstd = 1 / sqrt(variance + eps), the variance by n and not n - 1.

    Returns
    -------
    y, or (y, mean, rstd) with `return_stats`; both have the shape of x without its last axis

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450, 2016.
    """
    x = f64(x)
    mean = x.mean(axis=-1)
    rstd = 1.0 / np.sqrt(((x - mean[..., None]) ** 2).mean(axis=-1) + eps)
    y = (x - mean[..., None]) * rstd[..., None]
    if weight is not None:
        y = y * f64(weight)
    if bias is not None:
        y = y + f64(bias)
    return (y, mean, rstd) if return_stats else y


def layer_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    *,
    bias: bool = False,
    residual: Array | None = None,
) -> tuple[F64, F64 | None, F64 | None]:
    r"""Gradients of `layer_norm` by x, weight and bias (None where there is none).

    With h = (x - mean) * rstd and g = dy * weight, all means over the last axis:
    dx = rstd * (g - mean(g) - h * mean(g * h)) + residual; dweight = sum(dy * h) and dbias = sum(dy), over rows.
    """
    dy64, x64, r = f64(dy), f64(x), f64(rstd)[..., None]
    h = (x64 - f64(mean)[..., None]) * r
    g = dy64 if weight is None else dy64 * f64(weight)
    dx = r * (g - g.mean(axis=-1, keepdims=True) - h * (g * h).mean(axis=-1, keepdims=True))
    if residual is not None:
        dx = dx + f64(residual)
    return dx, None if weight is None else _over_rows(dy64 * h), _over_rows(dy64) if bias else None


def rms_norm(
    x: Array, weight: Array | None = None, *, eps: float = 1e-6, return_stats: bool = False
) -> F64 | tuple[F64, F64]:
    r"""Y = x * rstd * weight, where rstd = 1 / sqrt(mean(x^2) + eps).

    Returns
    -------
    y, or (y, rstd) with `return_stats`

    References
    ----------
    B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.
    """
    x = f64(x)
    rstd = 1.0 / np.sqrt((x * x).mean(axis=-1) + eps)
    y = x * rstd[..., None]
    if weight is not None:
        y = y * f64(weight)
    return (y, rstd) if return_stats else y


def rms_norm_backward(
    dy: Array, x: Array, rstd: Array, weight: Array | None = None, *, residual: Array | None = None
) -> tuple[F64, F64 | None]:
    r"""Gradients of `rms_norm` by x and weight: with h = x * rstd and g = dy * weight,

    dx = rstd * (g - h * mean(g * h)) + residual; dweight = sum(dy * h) over rows.
    """
    dy64, r = f64(dy), f64(rstd)[..., None]
    h = f64(x) * r
    g = dy64 if weight is None else dy64 * f64(weight)
    dx = r * (g - h * (g * h).mean(axis=-1, keepdims=True))
    if residual is not None:
        dx = dx + f64(residual)
    return dx, None if weight is None else _over_rows(dy64 * h)


def _over_rows(x: F64) -> F64:
    return x.reshape(-1, x.shape[-1]).sum(axis=0)
