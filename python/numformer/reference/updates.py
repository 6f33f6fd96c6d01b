"""Steps of the optimisers, in place on the caller's arrays, and the norm that clipping needs."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from numformer.reference._arrays import F64, Array, f64


def sgd_update(
    values: Sequence[Array],
    grads: Sequence[Array],
    momenta: Sequence[Array] | None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    copies: Sequence[Array | None] | None = None,
) -> None:
    """One step of stochastic gradient descent: with g = grad_scale * grad + weight_decay * value,

    u = momentum * u + g; value -= lr * u, or with `nesterov` value -= lr * (g + momentum * u).
    Without momentum value -= lr * g, and `momenta` is None.

    References
    ----------
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013 (Nesterov's
    form).
    """
    for i, (value, grad) in enumerate(zip(values, grads, strict=True)):
        w = f64(value)
        step = _decayed(grad_scale * f64(grad), weight_decay, w)
        if momenta is not None:
            u = momentum * f64(momenta[i]) + step
            momenta[i][...] = u
            step = step + momentum * u if nesterov else u
        value[...] = w - lr * step
    _store(values, copies)


def adam_update(
    values: Sequence[Array],
    grads: Sequence[Array],
    m: Sequence[Array],
    v: Sequence[Array],
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
    grad_scale: float = 1.0,
    copies: Sequence[Array | None] | None = None,
) -> None:
    """One step of Adam, the first with step=1: with g = grad_scale * grad + weight_decay * value,

    m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g^2;
    value -= lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps).

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """
    for value, grad, m_i, v_i in zip(values, grads, m, v, strict=True):
        w = f64(value)
        g = _decayed(grad_scale * f64(grad), weight_decay, w)
        m64 = beta1 * f64(m_i) + (1.0 - beta1) * g
        v64 = beta2 * f64(v_i) + (1.0 - beta2) * g * g
        m_i[...], v_i[...] = m64, v64
        mean, spread = m64 / (1.0 - beta1**step), np.sqrt(v64 / (1.0 - beta2**step))
        value[...] = w - lr * mean / (spread + eps)
    _store(values, copies)


def adamw_update(
    values: Sequence[Array],
    grads: Sequence[Array],
    m: Sequence[Array],
    v: Sequence[Array],
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    step: int,
    grad_scale: float = 1.0,
    copies: Sequence[Array | None] | None = None,
) -> None:
    """One step of AdamW, the first with step=1: with g = grad_scale * grad,

    m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g^2;
    value = (1 - lr * weight_decay) * value - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps).

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    for value, grad, m_i, v_i in zip(values, grads, m, v, strict=True):
        g = grad_scale * f64(grad)
        m64 = beta1 * f64(m_i) + (1.0 - beta1) * g
        v64 = beta2 * f64(v_i) + (1.0 - beta2) * g * g
        m_i[...], v_i[...] = m64, v64
        mean, spread = m64 / (1.0 - beta1**step), np.sqrt(v64 / (1.0 - beta2**step))
        value[...] = (1.0 - lr * weight_decay) * f64(value) - lr * mean / (spread + eps)
    _store(values, copies)


def adagrad_update(
    values: Sequence[Array],
    grads: Sequence[Array],
    sums: Sequence[Array],
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    copies: Sequence[Array | None] | None = None,
) -> None:
    """One step of Adagrad: with g = grad_scale * grad + weight_decay * value,

    s = s + g^2; value -= lr * g / (sqrt(s) + eps).

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
    JMLR 12, 2011.
    """
    for value, grad, s in zip(values, grads, sums, strict=True):
        w = f64(value)
        g = _decayed(grad_scale * f64(grad), weight_decay, w)
        total = f64(s) + g * g
        s[...] = total
        value[...] = w - lr * g / (np.sqrt(total) + eps)
    _store(values, copies)


def rmsprop_update(
    values: Sequence[Array],
    grads: Sequence[Array],
    squares: Sequence[Array],
    means: Sequence[Array] | None = None,
    momenta: Sequence[Array] | None = None,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    grad_scale: float = 1.0,
    copies: Sequence[Array | None] | None = None,
) -> None:
    """One step of RMSprop: with g = grad_scale * grad + weight_decay * value,

    s = alpha * s + (1 - alpha) * g^2; step = g / (sqrt(s) + eps); value -= lr * step.
    With means m = alpha * m + (1 - alpha) * g, and max(0, s - m^2) takes the place of s in the quotient.
    With momenta u = momentum * u + step takes the place of step.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5 - RMSprop", Coursera: Neural Networks for Machine Learning, 2012.
    A. Graves, "Generating Sequences With Recurrent Neural Networks", 2013 (the centred form).
    """
    for i, (value, grad, square) in enumerate(zip(values, grads, squares, strict=True)):
        w = f64(value)
        g = _decayed(grad_scale * f64(grad), weight_decay, w)
        spread = alpha * f64(square) + (1.0 - alpha) * g * g
        square[...] = spread
        if means is not None:
            mean = alpha * f64(means[i]) + (1.0 - alpha) * g
            means[i][...] = mean
            spread = np.maximum(0.0, spread - mean * mean)
        step = g / (np.sqrt(spread) + eps)
        if momenta is not None:
            step = momentum * f64(momenta[i]) + step
            momenta[i][...] = step
        value[...] = w - lr * step
    _store(values, copies)


def global_norm(arrays: Iterable[Array]) -> float:
    """The Euclidean norm of all elements of all arrays, as one vector."""
    return math.sqrt(sum(float(np.square(f64(a)).sum()) for a in arrays))


def _decayed(g: F64, weight_decay: float, w: F64) -> F64:
    """The gradient and the decay; without one a value that is infinite has no part in it (0 * inf is NaN)."""
    return g + weight_decay * w if weight_decay else g


def _store(values: Sequence[Array], copies: Sequence[Array | None] | None) -> None:
    for value, copy in zip(values, copies or [], strict=copies is not None):
        if copy is not None:
            copy[...] = value.astype(copy.dtype)
