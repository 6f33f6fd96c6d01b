"""Memory from the pool, which the caller fills."""

from typing import Any

from numpy.typing import DTypeLike, NDArray

from numformer import _core


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return a new array that is not initialised: large ones reuse memory whose pages are there already.

    Parameters
    ----------
    shape : tuple of int
        Its shape.
    dtype : dtype
        float32, float64, float16 or bfloat16.

    Raises
    ------
    TypeError
        For another dtype, or a shape that is not of integers.
    ValueError
        For a negative size.
    """
    return _core.empty(shape, dtype)
