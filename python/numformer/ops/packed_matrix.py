"""A matrix packed once for many products."""

from __future__ import annotations

from typing import Any

from numpy.typing import DTypeLike, NDArray

from numformer import _core


class PackedMatrix(_core.PackedMatrix):
    """A matrix (K, N) in the order in which `matmul` reads it, to be its `b` in many products.

    An array is packed anew by every product of more than 16 rows; this does it once. With fewer rows, as in
    generation token by token, a product takes the time that reading `b` takes: bfloat16 and float16 halve it, int8
    quarters it.

    Parameters
    ----------
    b : (K, N) array
        float32, float64, float16 or bfloat16. It is copied and may change or go afterwards.
    dtype : dtype, optional
        To store: that of `b` by default, or another of these (float64 goes with float64 only), or int8: each column
        has a factor of its own, ``max |b| / 127``, and elements are rounded to the nearest multiple of it.

    Attributes
    ----------
    shape : tuple of int
        (K, N).
    stored : str
        Name of the dtype.
    nbytes : int
        Memory it takes.

    Raises
    ------
    TypeError
        For what is not an array or has another dtype.
    ValueError
        For other than two axes.

    Notes
    -----
    ``matmul(a, PackedMatrix(b))`` has the bits of ``matmul(a, b)`` for more than 16 rows; fewer are summed in another
    order (docs/numerics.md), the same for any number of them. A float32, float16 or bfloat16 `a` goes with any matrix
    that is not float64; the sums are float32 and the result has the dtype of `a` unless `dtype` or `out` say
    otherwise. A column of an int8 matrix that had an infinity or a NaN gives NaN.

    Rounding to 8 bits with a factor a column is the scheme of Jacob et al., "Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, for the weights only.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> weight = nf.PackedMatrix(np.eye(100, dtype=np.float32), "int8")
    >>> weight
    PackedMatrix(100 x 100, int8, ... bytes)
    >>> x = np.ones((2, 100), np.float32)
    >>> np.allclose(nf.matmul(x, weight, activation="relu"), x)
    True
    """

    def __init__(self, b: NDArray[Any], dtype: DTypeLike | None = None) -> None:
        if dtype is not None:
            import ml_dtypes  # noqa: F401 - NumPy knows the name "bfloat16" from then on
        super().__init__(b, dtype)

    def unpack(self) -> NDArray[Any]:
        """Return the matrix as it was stored: float64 if it is, else float32; (K, N)."""
        return super().unpack()

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"PackedMatrix({rows} x {columns}, {self.stored}, {self.nbytes} bytes)"
