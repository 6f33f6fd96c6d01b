"""Scaled dot-product attention, the whole matrix at once."""

import math

import numpy as np

from numformer.reference._arrays import F64, Array, deliver, f64


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
) -> Array | tuple[Array, F64]:
    r"""softmax(scale * q @ k.T) @ v, over the keys that each query may see.

    q is (..., H, N, D), k (..., Hkv, M, D), v (..., Hkv, M, Dv); two axes mean one head. Query head h reads
    key/value head h // (H / Hkv) (grouped queries). `scale` defaults to 1 / sqrt(D).

    Query i stands on the diagonal key d(i) = i + M - N (``causal="top_left"``: d(i) = i) and sees key j if all hold:
    j <= d(i), if `causal`; -left <= j - d(i) <= right, if `window`; mask[..., i, j], if `mask` is given.
    A query that sees nothing gives zeros and lse -inf. What it does not see it does not read: a NaN there reaches
    nothing.

    Returns
    -------
    out, or (out, lse) with `return_lse`; lse[..., h, i] is the logarithm of the sum of exp(scores)

    References
    ----------
    A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    J. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", EMNLP
    2023.
    """
    q64 = f64(q)
    k64, v64 = _heads(f64(k), q64), _heads(f64(v), q64)
    sees = _sees(q64, k64, causal, window, mask)
    s = _scores(q64, k64, sees, scale)
    lse = _log_sum_exp(s, sees)
    o = _product(_probabilities(s, lse, sees), v64, sees)
    o = deliver(o, out)
    return (o, lse) if return_lse else o


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
    grads: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    r"""Gradients of `attention` by q, k and v, from its inputs, its output and its lse.

    With P = exp(S - lse): dV = P.T @ dO; dP = dO @ V.T; delta = rowsum(dO * O), which is rowsum(P * dP);
    dS = P * (dP - delta); dQ = scale * dS @ K; dK = scale * dS.T @ Q; the heads of a group add up.

    References
    ----------
    T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention with
    IO-Awareness", NeurIPS 2022 (appendix B.2).
    """
    do, q64, o64, lse64 = f64(dout), f64(q), f64(out), f64(lse)
    k64, v64 = _heads(f64(k), q64), _heads(f64(v), q64)
    sees = _sees(q64, k64, causal, window, mask)
    seen = sees.swapaxes(-1, -2)
    scale = _scale(scale, q64)
    p = _probabilities(_scores(q64, k64, sees, scale), lse64, sees)
    with np.errstate(invalid="ignore"):
        delta = (do * o64).sum(axis=-1, keepdims=True)
        dp = np.matmul(do, v64.swapaxes(-1, -2))
        ds = np.where(sees, p * (dp - delta), 0.0)
    dq = scale * _product(ds, k64, sees)
    dk = _ungroup(scale * _product(ds.swapaxes(-1, -2), q64, seen), np.shape(k))
    dv = _ungroup(_product(p.swapaxes(-1, -2), do, seen), np.shape(v))
    if grads is None:
        return dq, dk, dv
    return deliver(dq, grads[0]), deliver(dk, grads[1]), deliver(dv, grads[2])


def _heads(x: F64, q: F64) -> F64:
    """Keys or values, repeated so that each query head has its own."""
    if q.ndim == 2:
        return x
    if x.shape[-3] == 0 or q.shape[-3] % x.shape[-3]:
        raise ValueError(f"attention: {q.shape[-3]} query heads must be a multiple of {x.shape[-3]} key/value heads")
    return x.repeat(q.shape[-3] // x.shape[-3], axis=-3)


def _ungroup(dx: F64, shape: tuple[int, ...]) -> F64:
    """The gradient by key/value heads: the sum over the query heads of each group."""
    if dx.ndim == 2:
        return dx
    heads = shape[-3]
    return dx.reshape(*dx.shape[:-3], heads, dx.shape[-3] // heads, *dx.shape[-2:]).sum(axis=-3)


def _sees(
    q: F64, k: F64, causal: bool | str, window: tuple[int | None, int | None] | None, mask: Array | None
) -> Array:
    """True where query i sees key j; (..., H, N, M), expanded."""
    n, m = q.shape[-2], k.shape[-2]
    if not (isinstance(causal, bool) or causal in ("bottom_right", "top_left")):
        raise ValueError(f"attention: causal must be False, True, 'bottom_right' or 'top_left', got {causal!r}")
    diagonal = np.arange(n)[:, None] + (0 if causal == "top_left" else m - n)
    j = np.arange(m)[None, :]
    sees = np.ones((n, m), bool)
    if causal:
        sees &= j <= diagonal
    left, right = (None, None) if window is None else window
    if left is not None:
        sees &= j - diagonal >= -left
    if right is not None:
        sees &= j - diagonal <= right
    if mask is not None:
        sees = sees & np.asarray(mask)
    return np.broadcast_to(sees, (*q.shape[:-1], m))


def _scale(scale: float | None, q: F64) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale


def _scores(q: F64, k: F64, sees: Array, scale: float | None) -> F64:
    with np.errstate(invalid="ignore"):
        return np.where(sees, _scale(scale, q) * np.matmul(q, k.swapaxes(-1, -2)), -np.inf)


def _log_sum_exp(s: F64, sees: Array) -> F64:
    top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(sees.any(axis=-1, keepdims=True), top, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = top + np.log(np.exp(s - top).sum(axis=-1, keepdims=True))
    return lse[..., 0]


def _probabilities(s: F64, lse: F64, sees: Array) -> F64:
    with np.errstate(invalid="ignore"):  # -inf - -inf, where nothing is seen
        return np.where(sees, np.exp(s - lse[..., None]), 0.0)


def _product(weights: F64, x: F64, sees: Array) -> F64:
    """Weights @ x in which what is not seen adds nothing, not even 0 * NaN."""
    finite = np.asarray(np.isfinite(x).all(axis=-1))
    y = np.matmul(weights, np.where(finite[..., None], x, 0.0))
    # The rows of x with a NaN or inf, one by one: each reaches only the sums that see it.
    for index in np.argwhere(~finite):
        batch, j = tuple(index[:-1]), index[-1]
        with np.errstate(invalid="ignore"):
            term = weights[batch][:, j, None] * x[batch][j]
        y[batch] += np.where(sees[batch][:, j, None], term, 0.0)
    return y
