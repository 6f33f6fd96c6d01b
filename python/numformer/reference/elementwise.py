"""Addition, conversion between dtypes, and the sum over rows."""

from numpy.typing import DTypeLike

from numformer.reference._arrays import F64, Array, deliver, f64


def add(a: Array, b: Array) -> F64:
    """A + b, where b has the shape of a or that of its last axes: the residual connection."""
    a64, b64 = f64(a), f64(b)
    if b64.ndim > a64.ndim or b64.shape != a64.shape[a64.ndim - b64.ndim :]:
        raise ValueError(f"add: b must have the shape of a, {a64.shape}, or that of its last axes, got {b64.shape}")
    return a64 + b64


def cast(x: Array, dtype: DTypeLike, *, scale: float = 1.0, out: Array | None = None) -> Array:
    """Scale * x, which in float64 needs no rounding; `out` has a dtype of its own."""
    return deliver(scale * f64(x), out)


def sum_rows(x: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """The sum over all axes but the last: the gradient of a bias."""
    x64 = f64(x)
    return deliver(x64.sum(axis=tuple(range(x64.ndim - 1))), out, accumulate)
