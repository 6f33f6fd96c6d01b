"""Rows of a table, by number."""

from typing import Any

from numpy.typing import NDArray

from numformer.ops.dispatch import core as _core

Array = NDArray[Any]


def embedding(weight: Array, ids: Array) -> Array:
    """Rows of a table, ``weight[ids]``.

    Parameters
    ----------
    weight : (V, C) array
        float32, float64, float16 or bfloat16.
    ids : (...) array
        int32 or int64, in [0, V).

    Returns
    -------
    array
        (..., C), in the dtype of `weight`.

    Raises
    ------
    TypeError
        If `weight` is not of a float dtype or `ids` not int32 or int64.
    ValueError
        If `weight` has not two axes or an id is out of range.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.embedding(np.eye(3), np.array([2, 0]))
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """
    return _core.embedding(weight, ids)


def embedding_backward(
    dy: Array, ids: Array, num_embeddings: int, *, accumulate: bool = False, out: Array | None = None
) -> Array:
    """Gradient of `embedding` by its weight: each row of `dy` is added to the row that was read, in order.

    Parameters
    ----------
    dy : (..., C) array
        float32, float64, float16 or bfloat16.
    ids : (...) array
        int32 or int64, in [0, num_embeddings).
    num_embeddings : int
        V, rows of the table.
    accumulate : bool
        Add to `out` instead of writing it.
    out : (V, C) array, optional
        The dtype of `dy`; float32 beside a 16-bit `dy` as well.

    Returns
    -------
    array
        (V, C), `out` if it was given.

    Raises
    ------
    TypeError
        If dtypes are not as said.
    ValueError
        If shapes do not fit, an id is out of range, or `accumulate` comes without `out`.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> nf.embedding_backward(np.ones((3, 2)), np.array([1, 1, 0]), 3)
    array([[1., 1.],
           [2., 2.],
           [0., 0.]])
    """
    return _core.embedding_backward(dy, ids, num_embeddings, accumulate, out)
