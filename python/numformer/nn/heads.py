"""What layers of attention share: heads as views, in sequences that are padded or packed."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numformer import ops

Array = NDArray[Any]
Starts = tuple[Array, Array] | None
"""Where packed queries and keys begin (`cu_seqlens` of `numformer.attention_varlen`); None for sequences in a batch."""


def by_head(x: Array, heads: int, size: int) -> Array:
    """Return a view of heads side by side: (batch, heads, positions, size), packed (total, heads, size)."""
    views = x.reshape(*x.shape[:-1], heads, size)
    return views if x.ndim == 2 else views.swapaxes(1, 2)


def attend(
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    starts: Starts = None,
    return_lse: bool = False,
) -> Any:
    """Write the attention of views by head to `out` and return that, or (out, lse)."""
    if starts is None:
        return ops.attention(q, k, v, causal=causal, mask=mask, return_lse=return_lse, out=out)
    return ops.attention_varlen(q, k, v, *starts, causal=causal, return_lse=return_lse, out=out)


def attend_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    into: tuple[Array, Array, Array],
    *,
    causal: bool = False,
    mask: Array | None = None,
    starts: Starts = None,
) -> None:
    """Write the gradients of queries, keys and values to `into`, views by head."""
    if starts is None:
        ops.attention_backward(dout, q, k, v, out, lse, causal=causal, mask=mask, into=into)
    else:
        ops.attention_varlen_backward(dout, q, k, v, out, lse, *starts, causal=causal, into=into)


def flat(x: Array, starts: Starts) -> Array:
    """Return rows of a batch that hold packed sequences as one long row, a view; others as they are."""
    return x if starts is None or x.ndim == 2 else x.reshape(-1, x.shape[-1])


def samples(x: Array, cu_seqlens: Array | None) -> Array | None:
    """Return where samples of dropout begin: packed sequences are samples, and so are rows that hold some of them."""
    return cu_seqlens if x.ndim == 2 else None


def check(
    owner: str, name: str, x: Array, width: int, cu_seqlens: Array | None, *, positions: str, rows: bool = False
) -> None:
    """Refuse an x that is not of the layout that `cu_seqlens` says; `rows` of a batch may hold packed sequences."""
    total = cu_seqlens[-1] if rows and cu_seqlens is not None and len(cu_seqlens) else None
    if total is not None and x.ndim == 3 and x.shape[2] == width and x.shape[0] * x.shape[1] == total:
        return
    if cu_seqlens is None and (x.ndim != 3 or x.shape[2] != width):
        raise ValueError(f"{owner}: {name} must have shape (batch, {positions}, {width}), got {x.shape}")
    if cu_seqlens is not None and (x.ndim != 2 or x.shape[1] != width):
        raise ValueError(f"{owner}: {name} must have shape (total, {width}), as it is packed, got {x.shape}")


def check_unused(owner: str, cu_seqlens: Array | None, **others: object) -> None:
    """Refuse what packed sequences do not take."""
    for name, value in others.items():
        if cu_seqlens is not None and value is not None:
            raise ValueError(f"{owner}: {name} must be None with cu_seqlens")
