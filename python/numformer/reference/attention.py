"""Scaled dot-product attention, the whole matrix at once."""

import math
from typing import Any

import numpy as np

from numformer.reference._arrays import F64, Array, deliver, f64
from numformer.reference.dropout import _keep


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Array | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    global_tokens: Array | None = None,
    global_rows: bool = True,
    rel: tuple[Array, Array, Array, int] | None = None,
    dropout: float = 0.0,
    seed: int | tuple[int, int, int, int] | None = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, F64]:
    r"""softmax(scores) @ v, over the keys that each query may see.

    score(i, j) = softcap * tanh(scale * q[i] @ k[j] / softcap) + bias[i, j] - slope * abs(j - d(i)), each where given.

    q is (..., H, N, D), k (..., Hkv, M, D), v (..., Hkv, M, Dv); two axes mean one head. Query head h reads
    key/value head h // (H / Hkv) (grouped queries). `scale` defaults to 1 / sqrt(D).

    Query i stands on the diagonal key d(i) = i + M - N (``causal="top_left"``: d(i) = i) and sees key j if all hold:
    j <= d(i), if `causal`; -left <= j - d(i) <= right, if `window`; mask[..., i, j], if `mask` is given; bias[..., i,
    j] is not -inf, if `bias` is given. A query that sees nothing gives zeros and lse -inf. What it does not see it does
    not read: a NaN there reaches nothing. A score that is -inf has probability 0, wherever it comes from, and a query
    all of whose scores are gives zeros as well.

    Global tokens see all and are seen by all, whatever the window; without `global_rows` they see nothing.

    With ``rel=(r, u, v, origin)`` the product q[i] @ k[j] becomes (q[i] + u[h]) @ k[j] + (q[i] + v[h]) @ r[h, origin +
    d(i) - j]: r has a row for each distance, projected already. (Transformer-XL.)

    A sink is one more score of each row of its head, with no value: it is in the denominator and in lse. Dropout sets
    probabilities to 0 after the softmax: those that `dropout` sets to 0 in an array (batch, H, N, M).

    Returns
    -------
    out, or (out, lse) with `return_lse`; lse[..., h, i] is the logarithm of the sum of exp(scores)

    References
    ----------
    A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    J. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", EMNLP
    2023.
    Z. Dai et al., "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", ACL 2019.
    """
    q64 = f64(q)
    k64, v64 = _heads(f64(k), q64), _heads(f64(v), q64)
    sees = _sees(q64, k64, causal, window, mask, bias, global_tokens, global_rows)
    relative = None if rel is None else Relative(rel, q64, k64, causal, window, global_tokens)
    s, _ = _scores(q64, k64, sees, scale, bias, softcap, alibi_slopes, causal, relative)
    lse = _log_sum_exp(s, sinks)
    p = _probabilities(s, lse, sees) * _kept(s.shape, dropout, seed)
    o = deliver(_product(p, v64, sees), out)
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
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    global_tokens: Array | None = None,
    global_rows: bool = True,
    rel: tuple[Array, Array, Array, int] | None = None,
    dropout: float = 0.0,
    seed: int | tuple[int, int, int, int] | None = None,
    dlse: Array | None = None,
    grads: tuple[str, ...] = (),
    into: tuple[Array | None, Array | None, Array | None] | None = None,
) -> Any:
    r"""Gradients of `attention` by q, k and v, from its inputs, its output and its lse.

    With P = exp(S - lse) and dropout's factors F (0 or 1 / (1 - p)): dV = (F * P).T @ dO; dP = F * (dO @ V.T);
    delta = rowsum(dO * O), which is rowsum(P * dP); dS = P * (dP - delta + dlse), which is the gradient of the bias,
    summed over the axes that it was broadcast over. Through the softcap dS is multiplied by 1 - tanh^2; then
    dQ = scale * dS @ K; dK = scale * dS.T @ Q; the heads of a group add up. The gradient of a sink is that of a score
    whose value is 0: the sum of exp(sink - lse) * (dlse - delta).

    Relative positions: with G[i, x] = dS[i, j] for the j at x = origin + d(i) - j, dQ gets scale * G @ r as well; dr =
    scale * G.T @ (Q + v), du = scale * rowsum(dS @ K), dv = scale * rowsum(G @ r); dK has Q + u for Q.

    References
    ----------
    T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention with
    IO-Awareness", NeurIPS 2022 (appendix B.2).
    """
    do, q64, o64, lse64 = f64(dout), f64(q), f64(out), f64(lse)
    k64, v64 = _heads(f64(k), q64), _heads(f64(v), q64)
    sees = _sees(q64, k64, causal, window, mask, bias, global_tokens, global_rows)
    sees = sees & ~np.isneginf(lse64)[..., None]  # what is infinitely far is not seen
    seen = sees.swapaxes(-1, -2)
    scale = _scale(scale, q64)
    relative = None if rel is None else Relative(rel, q64, k64, causal, window, global_tokens)
    s, cap_slope = _scores(q64, k64, sees, scale, bias, softcap, alibi_slopes, causal, relative)
    p, kept = _probabilities(s, lse64, sees), _kept(s.shape, dropout, seed)
    with np.errstate(invalid="ignore"):
        delta = (do * o64).sum(axis=-1) - (0.0 if dlse is None else f64(dlse))
        dp = kept * np.matmul(do, v64.swapaxes(-1, -2))
        ds = np.where(sees, p * (dp - delta[..., None]), 0.0)
        through = np.where(sees, ds * cap_slope, 0.0)
    dq = of_keys = scale * _product(through, k64, sees)
    with_u = q64
    if relative is not None:
        by_row, by_row_sees = relative.by_row(through), relative.by_row(sees)
        r = np.broadcast_to(relative.r, (*q64.shape[:-2], *relative.r.shape[-2:]))
        of_rows = scale * _product(by_row, r, by_row_sees)
        dq, with_u = of_keys + of_rows, q64 + relative.u
    dk = _ungroup(scale * _product(through.swapaxes(-1, -2), with_u, seen), np.shape(k))
    dv = _ungroup(_product((kept * p).swapaxes(-1, -2), do, seen), np.shape(v))
    if into is not None:
        dq, dk, dv = (deliver(x, to) for x, to in zip((dq, dk, dv), into, strict=True))
    if not grads:
        return dq, dk, dv
    more: dict[str, Any] = {}
    if "bias" in grads and bias is not None:
        more["bias"] = _unbroadcast(ds, np.shape(bias))
    if "sinks" in grads:
        with np.errstate(invalid="ignore"):
            of_sink = np.exp(_by_head(sinks, q64) - lse64)
            rows = np.where(np.isneginf(lse64), 0.0, -of_sink * delta)
        more["sinks"] = rows.sum(axis=tuple(axis for axis in range(rows.ndim) if axis != rows.ndim - 2)).reshape(-1)
    if "rel" in grads and rel is not None and relative is not None:
        dr = scale * _product(by_row.swapaxes(-1, -2), q64 + relative.v, by_row_sees.swapaxes(-1, -2))
        parts = (dr, of_keys.sum(axis=-2), of_rows.sum(axis=-2))
        more["rel"] = tuple(_over_samples(x, like.shape) for x, like in zip(parts, rel[:3], strict=True))
    return dq, dk, dv, more


class Relative:
    """Transformer-XL's relative positions: (q + u) @ k.T + ((q + v) @ r.T)[i, origin + d(i) - j]."""

    def __init__(
        self,
        rel: tuple[Array, Array, Array, int],
        q: F64,
        k: F64,
        causal: bool | str,
        window: tuple[int | None, int | None] | None,
        global_tokens: Array | None,
    ) -> None:
        n, m = q.shape[-2], k.shape[-2]
        self.r, self.u, self.v = f64(rel[0]), f64(rel[1]), f64(rel[2])
        length = self.r.shape[1]
        if q.ndim > 2:
            self.u, self.v = self.u[:, None], self.v[:, None]
        else:
            self.r = self.r[0]
        self.rows = rel[3] + _diagonal(n, m, causal) - np.arange(m)
        self.inside = (self.rows >= 0) & (self.rows < length)
        # Global tokens may see any key, so that with them the window does not limit the distances.
        pattern = _sees(q[..., :1], k[..., :1], causal, window if global_tokens is None else None, None)
        if (pattern & ~self.inside).any():
            raise ValueError(f"attention: rel's r must have a row for each distance, got {length} rows")

    def products(self, q: F64) -> F64:
        """(q + v) @ r of each pair; 0 where there is no such row."""
        products = np.matmul(q + self.v, self.r.swapaxes(-1, -2))
        i = np.arange(len(self.rows))[:, None]
        if not self.inside.any():
            return np.zeros((*q.shape[:-1], self.rows.shape[1]))
        return np.where(self.inside, products[..., i, np.where(self.inside, self.rows, 0)], 0.0)

    def by_row(self, x: Array) -> Array:
        """Of pairs (i, j), the pairs (i, row of r)."""
        y = np.zeros((*x.shape[:-1], self.r.shape[-2]), x.dtype)
        for i, (rows, inside) in enumerate(zip(self.rows, self.inside, strict=True)):
            y[..., i, rows[inside]] = x[..., i, inside]
        return y


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
    with np.errstate(invalid="ignore"):  # inf - inf
        return np.asarray(dx.reshape(*dx.shape[:-3], heads, dx.shape[-3] // heads, *dx.shape[-2:]).sum(axis=-3))


def _sees(
    q: F64,
    k: F64,
    causal: bool | str,
    window: tuple[int | None, int | None] | None,
    mask: Array | None,
    bias: Array | None = None,
    global_tokens: Array | None = None,
    global_rows: bool = True,
) -> Array:
    """True where query i sees key j; (..., H, N, M), expanded."""
    n, m = q.shape[-2], k.shape[-2]
    if not (isinstance(causal, bool) or causal in ("bottom_right", "top_left")):
        raise ValueError(f"attention: causal must be False, True, 'bottom_right' or 'top_left', got {causal!r}")
    j = np.arange(m)[None, :]
    diagonal = _diagonal(n, m, causal)
    sees = np.ones((n, m), bool)
    left, right = (None, None) if window is None else window
    if left is not None:
        sees &= j - diagonal >= -left
    if right is not None:
        sees &= j - diagonal <= right
    if global_tokens is not None:
        g = np.asarray(global_tokens)
        g = g[..., None, :] if q.ndim > 2 else g  # the same for all heads
        sees = (sees | g[..., None, :] | g[..., :, None]) & (True if global_rows else ~g[..., :, None])
    if causal:
        sees = sees & (j <= diagonal)
    if mask is not None:
        sees = sees & np.asarray(mask)
    if bias is not None:
        sees = sees & ~np.isneginf(f64(bias))
    return np.broadcast_to(sees, (*q.shape[:-1], m))


def _scale(scale: float | None, q: F64) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale


def _diagonal(n: int, m: int, causal: bool | str) -> Array:
    """d(i) as a column."""
    return np.arange(n)[:, None] + (0 if causal == "top_left" else m - n)


def _by_head(values: Any, q: F64) -> F64:
    """One number a head, (H,), to go with (..., H, N); two axes mean one head."""
    return f64(values)[:, None] if q.ndim > 2 else f64(values)


def _scores(
    q: F64,
    k: F64,
    sees: Array,
    scale: float | None,
    bias: Array | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    causal: bool | str = False,
    relative: Relative | None = None,
) -> tuple[F64, F64 | float]:
    """The scores, -inf where a query does not look, and the slope of the softcap."""
    cap_slope: F64 | float = 1.0
    with np.errstate(invalid="ignore"):
        if relative is None:
            s = np.matmul(q, k.swapaxes(-1, -2))
        else:
            s = np.matmul(q + relative.u, k.swapaxes(-1, -2)) + relative.products(q)
        s = _scale(scale, q) * s
        if softcap is not None:
            t = np.tanh(s / softcap)
            s, cap_slope = softcap * t, 1.0 - t * t
        if bias is not None:
            s = s + f64(bias)
        if alibi_slopes is not None:
            n, m = s.shape[-2:]
            s = s - _by_head(alibi_slopes, q)[..., None] * np.abs(np.arange(m) - _diagonal(n, m, causal))
        return np.where(sees, s, -np.inf), cap_slope


def _log_sum_exp(s: F64, sinks: Array | None = None) -> F64:
    top = np.max(s, axis=-1, initial=-np.inf)
    if sinks is not None:
        sink = np.broadcast_to(_by_head(sinks, np.empty(s.shape)), top.shape)
        top = np.maximum(top, sink)
    top = np.where(np.isneginf(top), 0.0, top)  # nothing seen, or only what is infinitely far
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.exp(s - top[..., None]).sum(axis=-1)
        if sinks is not None:
            total = total + np.exp(sink - top)
        return np.asarray(top + np.log(total))


def _kept(shape: tuple[int, ...], dropout: float, seed: int | tuple[int, int, int, int] | None) -> F64 | float:
    """Dropout's factors: 0 or 1 / (1 - dropout)."""
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"attention: dropout must be in [0, 1], got {dropout}")
    if dropout == 0.0:
        return 1.0
    if seed is None:
        raise ValueError("attention: seed must be given with dropout > 0, got None")
    number, layer, step, sample = seed if isinstance(seed, tuple) else (seed, 0, 0, 0)
    samples = int(np.prod(shape[:-3]))  # of two axes the product is 1
    kept = _keep((samples, *(shape[-3:] if len(shape) > 2 else (1, *shape))), dropout, number, layer, step, sample)
    return np.where(kept.reshape(shape), 1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0, 0.0)


def _over_samples(x: F64, shape: tuple[int, ...]) -> F64:
    """The sum over the axes before those of `shape`, which has a head more where q has two axes."""
    return x.sum(axis=tuple(range(max(x.ndim - len(shape), 0)))).reshape(shape)


def _unbroadcast(x: F64, shape: tuple[int, ...]) -> F64:
    """The sum over the axes that `shape` was broadcast over."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(axis for axis, size in enumerate(shape) if size == 1), keepdims=True)


def _probabilities(s: F64, lse: F64, sees: Array) -> F64:
    with np.errstate(invalid="ignore"):  # -inf - -inf, where nothing is seen
        return np.where(sees & ~np.isneginf(lse)[..., None], np.exp(s - lse[..., None]), 0.0)


def _product(weights: F64, x: F64, sees: Array) -> F64:
    """Weights @ x in which what is not seen adds nothing, not even 0 * NaN."""
    finite = np.asarray(np.isfinite(x).all(axis=-1))
    with np.errstate(invalid="ignore"):  # weights of queries that see a NaN
        y = np.matmul(weights, np.where(finite[..., None], x, 0.0))
    # The rows of x with a NaN or inf, one by one: each reaches only the sums that see it.
    for index in np.argwhere(~finite):
        batch, j = tuple(index[:-1]), index[-1]
        with np.errstate(invalid="ignore"):
            term = weights[batch][:, j, None] * x[batch][j]
        y[batch] += np.where(sees[batch][:, j, None], term, 0.0)
    return y
