"""Activations and their derivatives."""

import math

import numpy as np

from numformer.reference._arrays import F64, Array, f64


def erfc(x: F64) -> F64:
    """The complementary error function, 1 - erf(x), of each element."""
    return np.fromiter(map(math.erfc, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def _gauss_cdf(x: F64) -> F64:
    # erfc, not 1 + erf: for x << 0 the sum would cancel.
    return 0.5 * erfc(-x / math.sqrt(2.0))


def _gauss_pdf(x: F64) -> F64:
    with np.errstate(over="ignore"):  # x^2 = inf gives the right density, 0
        return np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _sigmoid(x: F64) -> F64:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right value, 0
        return 1.0 / (1.0 + np.exp(-x))


def relu(x: Array) -> F64:
    """max(x, 0); a NaN stays one."""
    return np.maximum(f64(x), 0.0)


def relu_backward(dy: Array, x: Array) -> F64:
    """Dy where x > 0, else 0; a NaN in x reaches the gradient nowhere (x > 0 is false)."""
    return np.where(f64(x) > 0.0, f64(dy), 0.0)


def gelu(x: Array, *, approximate: str = "none") -> F64:
    r"""Gaussian error linear unit, :math:`x \Phi(x)`.

    ``approximate="tanh"``: :math:`\frac{x}{2} (1 + \tanh(\sqrt{2/\pi} (x + 0.044715 x^3)))`.

    References
    ----------
    D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415, 2016.
    """
    x = f64(x)
    if approximate == "none":
        return x * _gauss_cdf(x)
    # (1 + tanh(u)) / 2 = sigmoid(2u), which keeps its digits where tanh(u) is close to -1.
    return x * _sigmoid(2.0 * _tanh_argument(x, approximate))


def gelu_backward(dy: Array, x: Array, *, approximate: str = "none") -> F64:
    r"""Gradient of `gelu`: :math:`dx = dy (\Phi(x) + x \phi(x))`, or the derivative of its tanh form."""
    dy, x = f64(dy), f64(x)
    if approximate == "none":
        return dy * (_gauss_cdf(x) + x * _gauss_pdf(x))
    z = 2.0 * _tanh_argument(x, approximate)
    s = _sigmoid(z)
    product = s * _sigmoid(-z)  # s (1 - s) without its cancellation where s is close to 1
    with np.errstate(over="ignore", invalid="ignore"):
        slope = 2.0 * math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * x * x)
        tail = x * product * slope
    return dy * (s + np.where(product == 0.0, 0.0, tail))


def _tanh_argument(x: F64, approximate: str) -> F64:
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    with np.errstate(over="ignore"):
        return math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)


def silu(x: Array) -> F64:
    r"""Sigmoid linear unit, :math:`x \sigma(x)`.

    References
    ----------
    S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in
    Reinforcement Learning", Neural Networks 107, 2018.
    """
    x = f64(x)
    return x * _sigmoid(x)


def silu_backward(dy: Array, x: Array) -> F64:
    r"""Gradient of `silu`: :math:`dx = dy\, \sigma(x) (1 + x (1 - \sigma(x)))`."""
    x = f64(x)
    return f64(dy) * _sigmoid(x) * (1.0 + x * _sigmoid(-x))


def activate(z: F64, activation: str | None) -> F64:
    """The activation that `matmul` names."""
    if activation is None:
        return z
    if activation == "relu":
        return relu(z)
    if activation == "gelu":
        return gelu(z)
    if activation == "gelu_tanh":
        return gelu(z, approximate="tanh")
    if activation == "silu":
        return silu(z)
    raise ValueError(f"matmul: activation must be None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got {activation!r}")


def activate_backward(dy: F64, z: F64, activation: str) -> F64:
    """Gradient of `activate` by z."""
    if activation == "relu":
        return relu_backward(dy, z)
    if activation == "gelu":
        return gelu_backward(dy, z)
    if activation == "gelu_tanh":
        return gelu_backward(dy, z, approximate="tanh")
    if activation == "silu":
        return silu_backward(dy, z)
    raise ValueError(
        f"matmul_backward: activation must be None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got {activation!r}"
    )
