"""Activations and their gradients."""

from typing import Any

from numpy.typing import NDArray

from numformer.ops.dispatch import core as _core

Array = NDArray[Any]


def relu(x: Array) -> Array:
    """Rectified linear unit, max(x, 0) of each element.

    Parameters
    ----------
    x : array
        float32, float64, float16 or bfloat16, any shape.

    Returns
    -------
    array
        Shape and dtype of `x`. A NaN stays one.

    Raises
    ------
    TypeError
        If `x` is not an array of one of these dtypes.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.relu(np.array([-2.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return _core.relu(x)


def relu_backward(dy: Array, x: Array) -> Array:
    """Gradient of `relu`: dy where x > 0, else 0.

    Parameters
    ----------
    dy, x : arrays
        Of one shape and dtype.

    Returns
    -------
    array
        dx.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes differ.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.relu_backward(np.ones(3), np.array([-2.0, 1.0, 2.0]))
    array([0., 1., 1.])
    """
    return _core.relu_backward(dy, x)


def gelu(x: Array, *, approximate: str = "none") -> Array:
    r"""Gaussian error linear unit, :math:`x \Phi(x)`; Phi is the distribution function of the normal distribution.

    Parameters
    ----------
    x : array
        float32, float64, float16 or bfloat16, any shape.
    approximate : {"none", "tanh"}
        "tanh": :math:`\frac{x}{2} (1 + \tanh(\sqrt{2/\pi} (x + 0.044715 x^3)))`.

    Returns
    -------
    array
        Shape and dtype of `x`; the exact form keeps its relative accuracy for very negative x too.

    Raises
    ------
    TypeError
        If `x` is not an array of one of these dtypes.
    ValueError
        For another `approximate`.

    References
    ----------
    D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415, 2016.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    return _core.gelu(x, approximate)


def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> Array:
    r"""Gradient of `gelu`: :math:`dx = dy (\Phi(x) + x \phi(x))`, or the derivative of its tanh form.

    Parameters
    ----------
    dy, x : arrays
        Of one shape and dtype.
    approximate : {"none", "tanh"}
        As in `gelu`.

    Returns
    -------
    array
        dx.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes differ, or for another `approximate`.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.gelu_backward(np.ones(2), np.array([0.0, 1.0])).round(4)
    array([0.5   , 1.0833])
    """
    return _core.gelu_backward(dy, x, approximate)


def silu(x: Array) -> Array:
    r"""Sigmoid linear unit, :math:`x \sigma(x)`.

    Parameters
    ----------
    x : array
        float32, float64, float16 or bfloat16, any shape.

    Returns
    -------
    array
        Shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not an array of one of these dtypes.

    References
    ----------
    S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in
    Reinforcement Learning", Neural Networks 107, 2018.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.silu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """
    return _core.silu(x)


def silu_backward(dy: Array, x: Array) -> Array:
    r"""Gradient of `silu`: :math:`dx = dy\, \sigma(x) (1 + x (1 - \sigma(x)))`.

    Parameters
    ----------
    dy, x : arrays
        Of one shape and dtype.

    Returns
    -------
    array
        dx.

    Raises
    ------
    TypeError
        If dtypes differ or are unknown.
    ValueError
        If shapes differ.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.silu_backward(np.ones(2), np.array([0.0, 1.0])).round(4)
    array([0.5   , 0.9277])
    """
    return _core.silu_backward(dy, x)
