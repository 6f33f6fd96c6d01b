"""Arrays to test with: dtypes, distributions, and the same values in unusual memory."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DTYPES = [np.dtype(d) for d in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
# 0, 1, primes, around the widths of vectors and tiles
SIZES = [0, 1, 2, 3, 7, 13, 14, 15, 16, 17, 31, 32, 33, 61, 64, 65, 127]


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32, scale: float = 1.0) -> Array:
    return (scale * rng.standard_normal(shape)).astype(dtype)


def heavy(rng: np.random.Generator, *shape: int, dtype: Any = np.float32, limit: float = 200.0) -> Array:
    """Student's t with two degrees of freedom: a few values are far larger than all others; no variance."""
    return np.clip(rng.standard_t(2, shape), -limit, limit).astype(dtype)


def layouts(x: Array) -> Iterator[tuple[str, Array]]:
    """The values of x, in memory that is strided, reversed, transposed, not aligned to its elements, or read-only."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    yield "strided", wide[..., ::2]
    yield "negative", np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    yield "transposed", np.asfortranarray(x)
    gap = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    gap[..., 1:-2] = x
    yield "offset", gap[..., 1:-2]
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    yield "misaligned", raw[1:].view(x.dtype).reshape(x.shape)
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen


def bits(x: Any) -> bytes:
    """For comparing bit for bit, NaN and the sign of zero included."""
    return np.ascontiguousarray(x).tobytes()


def same(a: Any, b: Any) -> bool:
    """Are two results (arrays, None, or tuples of them) equal in every bit?"""
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if a is None or b is None:
        return a is b
    return np.shape(a) == np.shape(b) and np.asarray(a).dtype == np.asarray(b).dtype and bits(a) == bits(b)


def name(dtype: Any) -> str:
    return str(np.dtype(dtype))
