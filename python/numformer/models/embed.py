"""One vector for each sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.nn import initial

Array = NDArray[Any]


def mean_pool(x: Array, mask: Array | None, normalize: bool) -> Array:
    """Return the mean over the positions that are read, (batch, width), of length 1 where `normalize` says so.

    Sums are of float32 or wider; a sequence of which nothing is read gives zeros.
    """
    x = x.astype(np.float32, copy=False) if x.dtype.itemsize == 2 else x
    if mask is None:
        y = x.mean(axis=1)
    else:
        weight = (mask != 0).reshape(x.shape[0], 1, x.shape[1]).astype(x.dtype)
        y = (weight @ x)[:, 0] / np.maximum(weight.sum(axis=2), 1)
    if normalize:
        y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
    return np.asarray(y)


def embed_sequences(
    model: Any,
    rows: Sequence[Array],
    config: Any,
    normalize: bool,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> Array:
    """Embed sequences of different lengths, those of like length together; see ``BERT.embed``."""
    initial.size("embed", batch_size=batch_size)
    result = np.empty((len(rows), config.width), config.dtype)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # the longest first: memory grows no more
    for first in range(0, len(order), batch_size):
        some = order[first : first + batch_size]
        width = len(rows[some[0]])
        ids = np.full((len(some), width), config.pad_id, np.int64)
        mask = np.zeros(ids.shape, bool)
        for i, index in enumerate(some):
            ids[i, : len(rows[index])], mask[i, : len(rows[index])] = rows[index], True
        result[some] = model.embed(ids, mask, normalize=normalize)
        if progress is not None:
            progress(first + len(some))
    return result
