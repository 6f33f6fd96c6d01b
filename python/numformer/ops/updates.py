"""Steps of the optimizers, in place, and the norm that clipping needs.

Each can store the new values in 16 bits as well, in the same sweep: what products of mixed precision read.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from numformer.ops.dispatch import core as _core
from numformer.ops.memory import number

Array = NDArray[Any]


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
    """One step of stochastic gradient descent on all arrays of a list, in place.

    With g = grad_scale * grad + weight_decay * value: u = momentum * u + g; value -= lr * u, or with `nesterov`
    value -= lr * (g + momentum * u). Without momenta value -= lr * g.

    Parameters
    ----------
    values, grads : lists of arrays
        C-contiguous, all of one dtype, float32 or float64; ``grads[i]`` has the shape of ``values[i]``.
    momenta : list of arrays or None
        u, zeros before the first step; None without momentum.
    lr, weight_decay, grad_scale : float
        `grad_scale` multiplies each gradient first, which is how clipping costs no pass of its own.
    momentum : float
        In [0, 1).
    nesterov : bool
        Needs a momentum above 0.
    copies : list of arrays or None, optional
        For each of the values a float16 or bfloat16 array of its shape that gets the new value rounded, or None. Beside
        float32 only.

    Raises
    ------
    TypeError
        If dtypes differ or are not float32 or float64, or copies are not of one 16-bit dtype.
    ValueError
        If lists or shapes do not fit, an array that is written is read-only or not contiguous, or a number is out of
        range.

    References
    ----------
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013 (Nesterov's
    form).

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> weight = np.ones(2)
    >>> nf.sgd_update([weight], [np.array([1.0, -1.0])], None, lr=0.1)
    >>> weight
    array([0.9, 1.1])
    """
    _core.sgd_update(values, grads, momenta, lr, momentum, nesterov, weight_decay, grad_scale, copies)


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
    """One step of Adam on all arrays of a list, in place, in one pass.

    With g = grad_scale * grad + weight_decay * value: m = beta1 * m + (1 - beta1) * g; v = beta2 * v +
    (1 - beta2) * g^2; value -= lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps).

    Parameters
    ----------
    values, grads, m, v : lists of arrays
        C-contiguous, all of one dtype, float32 or float64, of equal shapes; m and v are zeros before the first step.
    lr, beta1, beta2, eps, weight_decay, grad_scale : float
        beta1 and beta2 in [0, 1). The decay is part of the gradient here, and beside it in :func:`adamw_update`.
    step : int
        Number of this step, the first is 1.
    copies : list of arrays or None, optional
        For each of the values a float16 or bfloat16 array of its shape that gets the new value rounded, or None. Beside
        float32 only.

    Raises
    ------
    TypeError
        If dtypes differ or are not float32 or float64, or copies are not of one 16-bit dtype.
    ValueError
        If lists or shapes do not fit, an array that is written is read-only or not contiguous, or a number is out of
        range.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """
    _core.adam_update(values, grads, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copies)


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
    """One step of AdamW on all arrays of a list, in place, in one pass.

    With g = grad_scale * grad: m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g^2;
    value = (1 - lr * weight_decay) * value - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps).

    Parameters
    ----------
    values, grads, m, v : lists of arrays
        C-contiguous, all of one dtype, float32 or float64, of equal shapes; m and v are zeros before the first step.
    lr, beta1, beta2, eps, weight_decay, grad_scale : float
        beta1 and beta2 in [0, 1).
    step : int
        Number of this step, the first is 1.
    copies : list of arrays or None, optional
        For each of the values a float16 or bfloat16 array of its shape that gets the new value rounded, or None. Beside
        float32 only.

    Raises
    ------
    TypeError
        If dtypes differ or are not float32 or float64, or copies are not of one 16-bit dtype.
    ValueError
        If lists or shapes do not fit, an array that is written is read-only or not contiguous, or a number is out of
        range.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> weight, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> nf.adamw_update([weight], [np.array([1.0, -9.0])], [m], [v], lr=0.1, weight_decay=0.0, step=1)
    >>> weight.round(6)  # the first step has the length of the learning rate, whatever the gradient
    array([0.9, 1.1])
    """
    _core.adamw_update(values, grads, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copies)


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
    """One step of Adagrad on all arrays of a list, in place, in one pass.

    With g = grad_scale * grad + weight_decay * value: s = s + g^2; value -= lr * g / (sqrt(s) + eps).

    Parameters
    ----------
    values, grads, sums : lists of arrays
        C-contiguous, all of one dtype, float32 or float64, of equal shapes; `sums` is s, usually zeros before the
        first step.
    lr, eps, weight_decay, grad_scale : float
        As in :func:`sgd_update`; `eps` keeps the quotient finite.
    copies : list of arrays or None, optional
        For each of the values a float16 or bfloat16 array of its shape that gets the new value rounded, or None. Beside
        float32 only.

    Raises
    ------
    TypeError
        If dtypes differ or are not float32 or float64, or copies are not of one 16-bit dtype.
    ValueError
        If lists or shapes do not fit, an array that is written is read-only or not contiguous, or a number is out of
        range.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
    JMLR 12, 2011.
    """
    _core.adagrad_update(values, grads, sums, lr, eps, weight_decay, grad_scale, copies)


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
    """One step of RMSprop on all arrays of a list, in place, in one pass.

    With g = grad_scale * grad + weight_decay * value: s = alpha * s + (1 - alpha) * g^2; step = g / (sqrt(s) + eps);
    value -= lr * step. With means m = alpha * m + (1 - alpha) * g, and s - m^2, the variance, takes the place of s in
    the quotient (never below 0: rounding could bring it there). With momenta u = momentum * u + step takes the place
    of step.

    Parameters
    ----------
    values, grads, squares : lists of arrays
        C-contiguous, all of one dtype, float32 or float64, of equal shapes; `squares` is s, zeros before the first
        step.
    means, momenta : lists of arrays or None
        m and u, zeros before the first step; None where the rule has none.
    lr, eps, weight_decay, grad_scale : float
        As in :func:`sgd_update`; `eps` keeps the quotient finite.
    alpha, momentum : float
        In [0, 1); a momentum above 0 needs momenta.
    copies : list of arrays or None, optional
        For each of the values a float16 or bfloat16 array of its shape that gets the new value rounded, or None. Beside
        float32 only.

    Raises
    ------
    TypeError
        If dtypes differ or are not float32 or float64, or copies are not of one 16-bit dtype.
    ValueError
        If lists or shapes do not fit, an array that is written is read-only or not contiguous, or a number is out of
        range.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5 - RMSprop", Coursera: Neural Networks for Machine Learning, 2012.
    A. Graves, "Generating Sequences With Recurrent Neural Networks", 2013 (the centred form).
    """
    _core.rmsprop_update(
        values, grads, squares, means, momenta, lr, alpha, eps, weight_decay, momentum, grad_scale, copies
    )


def global_norm(arrays: Iterable[Array]) -> float:
    """Euclidean norm of all elements of all arrays, as one vector.

    Parameters
    ----------
    arrays : list of arrays
        float32, float64, float16 or bfloat16. Squares are summed in float64, in an order that does not depend on the
        threads.

    Returns
    -------
    float
        0.0 for an empty list.

    Raises
    ------
    TypeError
        If dtypes are unknown.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.global_norm([np.array([3.0]), np.array([[4.0]], np.float32)])
    5.0
    """
    return number(_core.global_norm(arrays))
