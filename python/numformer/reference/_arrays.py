"""What every twin needs: conversion to float64, and writing into an array that the caller gave."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
F64 = NDArray[np.float64]


def f64(x: ArrayLike) -> F64:
    """`x` in float64 (also from bfloat16, which NumPy knows only through ml_dtypes)."""
    return np.asarray(x).astype(np.float64)


def deliver(result: F64, out: Array | None, accumulate: bool = False) -> Array:
    """`result` itself, or `out` after `result` was written into it (added to it, if `accumulate`)."""
    if out is None:
        if accumulate:
            raise ValueError("accumulate=True needs out, the array to add to")
        return result
    if out.shape != result.shape:
        raise ValueError(f"out must have shape {result.shape}, got {out.shape}")
    out[...] = f64(out) + result if accumulate else result
    return out
