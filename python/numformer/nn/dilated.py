"""Attention to every n-th neighbour: strided views of the same arrays, and the global tokens beside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import ops
from numformer.ops.memory import beside, empty, namespace

Array = NDArray[Any]


def attend_dilated(
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    *,
    dilations: tuple[int, ...],
    window: tuple[int, int],
    mask: Array | None = None,
    global_tokens: Array | None = None,
) -> Array:
    """Write the attention of each position to its window, in steps of the dilation of a head, and to global tokens.

    Positions i, i + d, i + 2 d, ... see nothing of the others but global tokens: they are a sequence of their own, a
    strided view. Rows of global tokens are left zero. Global keys are hidden from the views and attended to in a second
    call; both are one softmax, as sums of exponentials add.

    Parameters
    ----------
    q, k, v, out : arrays
        (batch, heads, positions, size).
    dilations : tuple of int
        Of each head.
    window : pair of int
        Steps to the left and to the right.
    mask : boolean array, optional
        (batch, 1, 1, positions): True where a key is read. On the host, as `global_tokens`, also where q is on a GPU.
    global_tokens : boolean array, optional
        (batch, positions).

    Returns
    -------
    array
        lse, (batch, heads, positions); -inf in the rows of global tokens.
    """
    xp = namespace(q)
    lse = empty(q.shape[:3], np.float64 if q.dtype == np.float64 else np.float32, like=q)
    near = _near(mask, global_tokens, q)
    for heads, rows in _views(dilations, q.shape[2]):
        part = np.s_[:, heads, rows]
        seen = None if near is None else near[..., rows]
        _, lse[part] = ops.attention(
            q[part], k[part], v[part], window=window, mask=seen, return_lse=True, out=out[part]
        )
    for row, keys in _everywhere(mask, global_tokens, q):
        far, far_lse = ops.attention(q[row], k[row][:, keys], v[row][:, keys], return_lse=True)
        whole = xp.logaddexp(lse[row], far_lse)
        for share, source in ((xp.exp(lse[row] - whole), out[row]), (xp.exp(far_lse - whole), far)):
            source *= share[..., None].astype(out.dtype)
        out[row] += far
        lse[row] = whole
    if global_tokens is not None:
        rows_of = tuple(beside(one, q) for one in np.nonzero(global_tokens))
        out.swapaxes(1, 2)[rows_of] = 0
        lse.swapaxes(1, 2)[rows_of] = -np.inf
    return lse


def attend_dilated_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    into: tuple[Array, Array, Array],
    *,
    dilations: tuple[int, ...],
    window: tuple[int, int],
    mask: Array | None = None,
    global_tokens: Array | None = None,
) -> None:
    """Write the gradients of queries, keys and values to `into`.

    With the lse and the output of the whole softmax, each part gives its own share.
    """
    near = _near(mask, global_tokens, q)
    for heads, rows in _views(dilations, q.shape[2]):
        part = np.s_[:, heads, rows]
        ops.attention_backward(
            dout[part],
            q[part],
            k[part],
            v[part],
            out[part],
            lse[part],
            window=window,
            mask=None if near is None else near[..., rows],
            into=tuple(one[part] for one in into),  # type: ignore[arg-type]
        )
    dq, dk, dv = into
    for row, keys in _everywhere(mask, global_tokens, q):
        more = ops.attention_backward(dout[row], q[row], k[row][:, keys], v[row][:, keys], out[row], lse[row])
        dq[row] += more[0]
        dk[row][:, keys] += more[1]
        dv[row][:, keys] += more[2]


def _views(dilations: tuple[int, ...], positions: int) -> Iterator[tuple[slice, slice]]:
    """Give the heads and the positions of each call: heads side by side of one dilation, positions of one remainder."""
    first = 0
    for dilation, group in groupby(dilations):
        heads = slice(first, first := first + len(list(group)))
        for remainder in range(min(dilation, positions)):
            yield heads, slice(remainder, None, dilation)


def _near(mask: Array | None, tokens: Array | None, q: Array) -> Array | None:
    """Return which keys the views read, where q is: no global ones."""
    if tokens is not None:
        local = ~tokens[:, None, None, :]
        mask = local if mask is None else mask & local
    return None if mask is None else beside(mask, q)


def _everywhere(mask: Array | None, tokens: Array | None, q: Array) -> Iterator[tuple[int, Array]]:
    """Give each sequence that has any and the places, where q is, of the global tokens that it reads."""
    if tokens is not None:
        read = tokens if mask is None else tokens & mask[:, 0, 0]
        for row in np.flatnonzero(read.any(axis=1)):
            yield int(row), beside(np.flatnonzero(read[row]), q)
