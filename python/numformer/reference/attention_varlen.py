"""Attention over packed sequences: one after the other."""

from typing import Any

import numpy as np

from numformer.reference._arrays import F64, Array, deliver
from numformer.reference.attention import attention, attention_backward


def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    *,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    rel: tuple[Array, Array, Array, int] | None = None,
    dropout: float = 0.0,
    seed: int | tuple[int, int, int, int] | None = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, F64]:
    """`attention` of each of the sequences that lie one after another; q is (total, H, D), lse (H, total)."""
    options: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "scale": scale,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "rel": rel,
        "dropout": dropout,
    }
    o, lse = np.zeros((*q.shape[:2], v.shape[2])), np.zeros(q.shape[1::-1])
    for s, (rows, keys) in enumerate(_sequences(cu_seqlens_q, cu_seqlens_k)):
        packed: Any = (x.swapaxes(0, 1) for x in (q[rows], k[keys], v[keys]))
        one: Any = attention(*packed, seed=_of_sample(seed, s), return_lse=True, **options)
        o[rows], lse[:, rows] = one[0].swapaxes(0, 1), one[1]
    o = deliver(o, out)
    return (o, lse) if return_lse else o


def attention_varlen_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    *,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    rel: tuple[Array, Array, Array, int] | None = None,
    dropout: float = 0.0,
    seed: int | tuple[int, int, int, int] | None = None,
    dlse: Array | None = None,
    grads: tuple[str, ...] = (),
    into: tuple[Array | None, Array | None, Array | None] | None = None,
) -> Any:
    """Gradients of `attention_varlen`: `attention_backward` of each of the sequences."""
    options: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "scale": scale,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "rel": rel,
        "dropout": dropout,
    }
    dq, dk, dv = (np.zeros(x.shape) for x in (q, k, v))
    more: dict[str, Any] = {}
    if "sinks" in grads:
        more["sinks"] = np.zeros(q.shape[1])
    if "rel" in grads and rel is not None:
        more["rel"] = tuple(np.zeros(x.shape) for x in rel[:3])
    for s, (rows, keys) in enumerate(_sequences(cu_seqlens_q, cu_seqlens_k)):
        do, *packed, o = (x.swapaxes(0, 1) for x in (dout[rows], q[rows], k[keys], v[keys], out[rows]))
        given: dict[str, Any] = {
            "seed": _of_sample(seed, s),
            "dlse": None if dlse is None else dlse[:, rows],
            "grads": grads,
        }
        one: Any = attention_backward(do, packed[0], packed[1], packed[2], o, lse[:, rows], **given, **options)
        dq[rows], dk[keys], dv[keys] = (x.swapaxes(0, 1) for x in one[:3])
        if "sinks" in more:
            more["sinks"] += one[3]["sinks"]
        for total, part in zip(more.get("rel", ()), one[3]["rel"] if "rel" in more else (), strict=True):
            total += part
    if into is not None:
        dq, dk, dv = (deliver(x, to) for x, to in zip((dq, dk, dv), into, strict=True))
    return (dq, dk, dv, more) if grads else (dq, dk, dv)


def _sequences(cu_seqlens_q: Array, cu_seqlens_k: Array) -> list[tuple[slice, slice]]:
    """The rows of queries and of keys of each sequence."""
    starts = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
    return [(slice(a, b), slice(c, d)) for a, b, c, d in starts]


def _of_sample(seed: int | tuple[int, int, int, int] | None, sample: int) -> tuple[int, int, int, int] | None:
    if seed is None:
        return None
    number, layer, step, first = seed if isinstance(seed, tuple) else (seed, 0, 0, 0)
    return number, layer, step, first + sample
