"""Addition, and the sum over rows."""

from numformer.reference._arrays import F64, Array, deliver, f64


def add(a: Array, b: Array) -> F64:
    """A + b, of one shape: the residual connection."""
    a64, b64 = f64(a), f64(b)
    if a64.shape != b64.shape:
        raise ValueError(f"add: b must have the shape of a, {a64.shape}, got {b64.shape}")
    return a64 + b64


def sum_rows(x: Array, *, accumulate: bool = False, out: Array | None = None) -> Array:
    """The sum over all axes but the last: the gradient of a bias."""
    x64 = f64(x)
    return deliver(x64.sum(axis=tuple(range(x64.ndim - 1))), out, accumulate)
