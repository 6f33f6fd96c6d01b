"""Rows of a table, by number."""

import numpy as np

from numformer.reference._arrays import F64, Array, deliver, f64


def embedding(weight: Array, ids: Array) -> F64:
    """weight[ids]: (V, C) and (...) give (..., C)."""
    w, i = f64(weight), np.asarray(ids)
    _check(i, w.shape[0])
    return w[i]


def embedding_backward(
    dy: Array, ids: Array, num_embeddings: int, *, accumulate: bool = False, out: Array | None = None
) -> Array:
    """Gradient of `embedding` by its weight, (num_embeddings, C): each row of dy is added to the row that was read."""
    dy64, i = f64(dy), np.asarray(ids)
    _check(i, num_embeddings)
    dweight = np.zeros((num_embeddings, dy64.shape[-1]))
    np.add.at(dweight, i.ravel(), dy64.reshape(i.size, dy64.shape[-1]))
    return deliver(dweight, out, accumulate)


def _check(ids: Array, rows: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        raise ValueError(f"embedding: ids must be in [0, {rows}), got values from {ids.min()} to {ids.max()}")
