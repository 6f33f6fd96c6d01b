"""Exact attention over NumPy arrays, forward and backward."""

from typing import Any

from numpy.typing import NDArray

from numformer import _core

Array = NDArray[Any]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Array | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Any:
    """Exact attention, ``softmax(scale * q @ k.T + masks) @ v``, without an N x M matrix in memory.

    Parameters
    ----------
    q : (..., H, N, D) array
        float32, float64, float16 or bfloat16. Two axes mean one head.
    k : (..., Hkv, M, D) array
    v : (..., Hkv, M, Dv) array
        The dtype of `q`; H is a multiple of Hkv (grouped queries: head h uses key head ``h // (H // Hkv)``). Unit
        stride on
        the last axis is needed, other strides are free (what has another layout is copied).
    causal : {False, True, "bottom_right", "top_left"}
        Query i sees key j if ``j <= i + M - N`` (True, "bottom_right": the last query sees the last key) or ``j <= i``
        ("top_left"). For N = 2 queries and M = 4 keys::

            bottom_right     top_left
              x x x .          x . . .
              x x x x          x x . .
    window : (left, right), optional
        Keep keys with ``-left <= j - diagonal(i) <= right``, where ``diagonal(i)`` is ``i + M - N``, or i with
        "top_left". None: no limit
        on that side. For N = M = 5 and ``window=(1, 1)``::

              x x . . .
              x x x . .
              . x x x .
              . . x x x
              . . . x x
    mask : boolean array, optional
        True = attend. Broadcasts to (..., H, N, M) without being expanded.
    scale : float, optional
        Of the scores; 1 / sqrt(D) by default.
    return_lse : bool
        Return the log-sum-exp of each row as well: the backward needs it.
    out : (..., H, N, Dv) array, optional
        Where to write the result; unit stride on the last axis, no overlap with an input.

    Returns
    -------
    out : (..., H, N, Dv) array, or (out, lse)
        lse is (..., H, N), float32 (float64 for float64). A row with nothing to attend to gives zeros and lse -inf.

    Raises
    ------
    TypeError
        For what is not an array, an unknown dtype, or dtypes that differ.
    ValueError
        For shapes that do not fit, an unknown `causal`, a negative window, a scale that is not finite.

    Notes
    -----
    NaN or inf in a key or value that is masked out reaches nothing; NaN in a query reaches its row. Scores and sums
    are float32 (float64
    for float64). Algorithm: Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning",
    2023.
    """
    return _core.attention(q, k, v, causal, window, mask, scale, return_lse, out)


def attention_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    *,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Array | None = None,
    scale: float | None = None,
    grads: tuple[Array | None, Array | None, Array | None] | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of `attention` by q, k and v, with the probabilities computed again from `lse`.

    Parameters
    ----------
    dout : (..., H, N, Dv) array
        Gradient of the output.
    q, k, v
        As given to `attention`.
    out, lse
        As returned by ``attention(..., return_lse=True)``.
    causal, window, mask, scale
        As given to `attention`.
    grads : (dq, dk, dv), optional
        Arrays to write into, None for a new one; unit stride on the last axis, no overlap with an input.

    Returns
    -------
    dq, dk, dv : arrays
        In the shapes and dtype of q, k and v. Rows with nothing to attend to have zero gradients.

    Raises
    ------
    TypeError, ValueError
        As `attention`.

    Notes
    -----
    Sums have a fixed order: results are bit-identical for any number of threads. Algorithm: Dao, "FlashAttention-2",
    2023.
    """
    return _core.attention_backward(dout, q, k, v, out, lse, causal, window, mask, scale, grads)
