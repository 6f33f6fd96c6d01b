"""How far a result may be from `numformer.reference`, and why.

Every bound is an array, element by element, derived from how the operation is computed, never a bare number:

- ``u`` is the unit roundoff of a dtype: a rounded operation is right up to a factor 1 + d, abs(d) <= u.
- Kernels compute in `working(dtype)`: float32 for the 16-bit types, else the dtype itself; the result is rounded once
  more to the dtype, `rounded`.
- A sum of n terms, in any order, is off by at most gamma(n) * sum(abs(terms)). The worst case is n * u; the roundings
  do not conspire, so 6 * sqrt(n) * u fails with a probability of 2 * n * exp(-18) at most, in fact far less (N. Higham,
  T. Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41, 2019).
- A function f of the vector library is right up to `FUNCTION` units u, and an error e of its argument makes f'(x) * e;
  for exp that is e relative: u * abs(x) from the rounding of x alone.
- Products of two errors are left out: they are of order u^2.
- An exponential below the smallest normal number may be taken for zero, `flush`.
"""

import math
from typing import Any

import ml_dtypes
import numformer as nf
import numpy as np
from numformer import reference
from numformer.reference.attention import (
    Relative,
    _by_head,
    _diagonal,
    _heads,
    _kept,
    _over_samples,
    _scale,
    _scores,
    _sees,
    _unbroadcast,
    _ungroup,
)
from numpy.typing import NDArray

Array = NDArray[Any]
bfloat16 = np.dtype(ml_dtypes.bfloat16)
FUNCTION = 8.0  # units u that exp, erfc and what is made from them may be off, besides the error of the argument
TERMS = 4.0  # units u for the two or three roundings of a short expression


def working(dtype: Any) -> np.dtype[Any]:
    """The dtype in which kernels compute for arrays of `dtype`; that of statistics too."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def u(dtype: Any) -> float:
    """Unit roundoff: half the distance from 1 to the next number."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def flush(dtype: Any) -> float:
    """What an exponential may lose where it underflows; twice the limit, for its argument is rounded too."""
    return 2 * float(np.finfo(working(dtype)).tiny)


def of_pairs(dtype: Any, options: dict[str, Any]) -> float:
    """What P and dS of attention lose, relative, where they are rounded to be multiplied in pairs."""
    pairs = dtype == bfloat16 and nf.info()["isa"] in ("v4bf16", "v4amx") and options.get("rel") is None
    return u(dtype) if pairs else 0.0


def gamma(n: int, dtype: Any) -> float:
    """Error of a sum of n products relative to the sum of their absolute values."""
    return (min(n, 6.0 * math.sqrt(n)) + TERMS) * u(working(dtype))


def rounded(bound: Array, expected: Array, dtype: Any) -> Array:
    """`bound`, and the rounding of the result to `dtype`; twice in float64, where the reference errs as much."""
    # Below the smallest normal number kernels may give zero.
    total = bound + np.abs(expected) * u(dtype) + float(ml_dtypes.finfo(dtype).tiny)
    return 2 * total if dtype == np.float64 else total


def check(actual: Any, expected: Any, bound: Any, what: str) -> None:
    """Assert that `actual` is within `bound` of `expected`, and is NaN and infinite where that is."""
    actual = np.asarray(actual)
    got, want = actual.astype(np.float64), np.asarray(expected, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    bound = np.broadcast_to(bound, want.shape)
    largest = float(ml_dtypes.finfo(actual.dtype).max)
    overflow = np.isinf(got) & (np.sign(got) == np.sign(want)) & (np.abs(want) + bound >= largest)
    same = (got == want) | (np.isnan(got) & np.isnan(want)) | overflow
    with np.errstate(invalid="ignore"):
        good = same | (np.isfinite(got) & np.isfinite(want) & (np.abs(got - want) <= bound))
    if not good.all():
        i = tuple(int(j) for j in np.argwhere(~good)[0])
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.nanmax(np.where(good, 0.0, np.abs(got - want) / bound))
        raise AssertionError(
            f"{what}: {np.count_nonzero(~good)} of {good.size} elements are off, the first at {i}: got {got[i]!r}, "
            f"expected {want[i]!r} +- {bound[i]:.3g}; the largest error is {ratio:.3g} times its bound"
        )


def f64(x: Any) -> Array:
    return np.asarray(x).astype(np.float64)


# ---- matmul --------------------------------------------------------------------------------------


def matmul(a: Array, b: Array, dtype: Any, *, scale: float = 1.0, bias: Any = None, activation: Any = None) -> Array:
    """Before the final rounding. All activations have slopes below 1.2, and a value below abs(z)."""
    a, b = f64(a), f64(b)
    size = abs(scale) * np.matmul(np.abs(a), np.abs(b))
    e = gamma(a.shape[-1], dtype) * size
    if bias is not None:
        e = e + u(working(dtype)) * (size + np.abs(f64(bias)))
    if activation is not None:
        z = np.abs(reference.matmul(a, b, scale=scale, bias=bias))
        e = 1.2 * e + FUNCTION * u(working(dtype)) * z
    return np.asarray(e)


def matmul_backward(dy: Array, a: Array, b: Array, dtype: Any, *, activation: Any = None, scale: float = 1.0):
    """Of da, db and dbias. dz = dy * activation'(z) is an array of the dtype; each slope is below 1.2."""
    relative = 0.0 if activation is None else u(dtype) + FUNCTION * 4 * u(working(dtype))
    dz = np.abs(f64(dy)) * (1.0 if activation is None else 1.2)
    da, db, dbias = reference.matmul_backward(dz, np.abs(f64(a)), np.abs(f64(b)), bias=np.zeros(1), scale=abs(scale))
    depth = np.shape(a)[-1]
    terms = [dz.size * depth // max(np.size(x), 1) for x in (a, b)]  # products in each element, broadcast axes included
    return (
        (gamma(terms[0], dtype) + relative) * da,
        (gamma(terms[1], dtype) + relative) * db,
        (gamma(dz.size // max(dbias.size, 1), dtype) + relative) * dbias,
    )


# ---- element by element --------------------------------------------------------------------------


def _slope_arguments(x: Array, name: str) -> tuple[Array, Array, Array]:
    """For x * s(x): s, the argument t of the exponential inside s, and |x s'(x)|."""
    if name == "silu":
        s = reference.silu(x) / np.where(x == 0, 1.0, x)
        s = np.where(x == 0, 0.5, s)
        return s, np.abs(x), np.abs(x * s * (1 - s))
    c = math.sqrt(2 / math.pi)
    if name == "gelu_tanh":
        s = np.where(x == 0, 0.5, reference.gelu(x, approximate="tanh") / np.where(x == 0, 1.0, x))
        return s, np.abs(2 * c * (x + 0.044715 * x**3)), np.abs(x * s * (1 - s) * 2 * c * (1 + 3 * 0.044715 * x * x))
    s = np.where(x == 0, 0.5, reference.gelu(x) / np.where(x == 0, 1.0, x))
    return s, 0.5 * x * x, np.abs(x) * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def activation(x: Array, name: str, dtype: Any) -> Array:
    """Relative to the result, also where it is tiny: s errs as the exponential's argument t does, by 4 roundings."""
    x = f64(x)
    if name == "relu":
        return np.zeros(x.shape)
    s, t, _ = _slope_arguments(x, name)
    return np.abs(x) * (s * (FUNCTION + 4 * t) * u(working(dtype)) + flush(dtype))


def activation_backward(dy: Array, x: Array, name: str, dtype: Any) -> Array:
    """s and x s'(x) may cancel, so relative to the sum of their sizes; 1 - s is off by u where it is not 0 or 1."""
    dy, x = np.abs(f64(dy)), f64(x)
    if name == "relu":
        return np.zeros(x.shape)
    s, t, tail = _slope_arguments(x, name)
    w = u(working(dtype))
    e = (s + tail) * (FUNCTION + 4 * t) * w
    slope = np.abs(x)
    if name == "gelu_tanh":
        slope = slope * 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    if name != "gelu":  # from s to s (1 - s): where 1 - s is between u and 1 its error is u
        e = e + np.where(1 - s > w / 4, slope * s * w, 0.0) * 4
    return dy * (e + (1 + slope) * flush(dtype))


def add(a: Array, b: Array, dtype: Any) -> Array:
    return np.zeros(np.shape(a))


def sum_rows(x: Array, dtype: Any) -> Array:
    x = np.abs(f64(x))
    return gamma(x.size // max(x.shape[-1], 1), dtype) * x.sum(axis=tuple(range(x.ndim - 1)))


def dropout(y: Array, dtype: Any) -> Array:
    return 2 * u(working(dtype)) * np.abs(y)


# ---- softmax, norms, losses ----------------------------------------------------------------------


def softmax(x: Array, axis: int, dtype: Any) -> Array:
    """exp(x - max), its sum, their quotient."""
    x = f64(x)
    if x.size == 0:
        return x
    with np.errstate(invalid="ignore"):
        t = np.where(np.isfinite(x), np.abs(x - x.max(axis=axis, keepdims=True)), 0.0)
    y = reference.softmax(x, axis)
    w = u(working(dtype))
    below = np.nansum(y * t, axis=axis, keepdims=True)
    return y * ((2 * FUNCTION + 2 * t + 2 * below) * w + gamma(x.shape[axis], dtype))


def softmax_backward(dy: Array, y: Array, axis: int, dtype: Any) -> Array:
    dy, y = np.abs(f64(dy)), np.abs(f64(y))
    dot = (dy * y).sum(axis=axis, keepdims=True)
    return y * ((gamma(y.shape[axis], dtype)) * dot + TERMS * u(working(dtype)) * (dy + dot))


def layer_norm(x: Array, weight: Any, bias: Any, eps: float, dtype: Any) -> tuple[Array, Array, Array]:
    """Of y (before rounding), mean and rstd: two passes, so that the variance does not cancel."""
    x = f64(x)
    w, g = u(working(dtype)), gamma(x.shape[-1], dtype)
    y, mean, rstd = reference.layer_norm(x, eps=eps, return_stats=True)
    e_mean = g * np.abs(x).mean(axis=-1)
    e_difference = e_mean[..., None] + w * (np.abs(x) + np.abs(mean)[..., None])
    deviation = np.abs(x - mean[..., None])
    # half the relative error of the variance; a wrong mean shifts it in second order, but is it large, not negligibly
    relative = (
        0.5 * g
        + TERMS * w
        + (deviation * w * (np.abs(x) + np.abs(mean)[..., None])).mean(axis=-1) * rstd**2
        + (e_mean * rstd) ** 2
    )
    e = e_difference * rstd[..., None] + np.abs(y) * relative[..., None] + 2 * w * np.abs(y)
    if weight is not None:
        e = e * np.abs(f64(weight)) + w * np.abs(y * f64(weight))
        y = y * f64(weight)
    if bias is not None:
        e = e + w * (np.abs(y) + np.abs(f64(bias)))
    return e, e_mean + w * np.abs(mean), rstd * relative + w * rstd


def rms_norm(x: Array, weight: Any, eps: float, dtype: Any) -> tuple[Array, Array]:
    x = f64(x)
    y, rstd = reference.rms_norm(x, weight, eps=eps, return_stats=True)
    relative = 0.5 * gamma(x.shape[-1], dtype) + TERMS * u(working(dtype))
    return np.abs(y) * (relative + TERMS * u(working(dtype))), rstd * relative


def norm_backward(dy: Array, x: Array, mean: Any, rstd: Array, weight: Any, residual: Any, dtype: Any):
    """Of dx, dweight, dbias: layer norm, or RMS norm where mean is None."""
    dy, x, r = f64(dy), f64(x), f64(rstd)[..., None]
    w, g_c = u(working(dtype)), gamma(x.shape[-1], dtype)
    m = np.zeros_like(r) if mean is None else f64(mean)[..., None]
    h = np.abs(x - m) * r
    e_h = w * (np.abs(x) + np.abs(m)) * r + 2 * w * h
    g = np.abs(dy) * (1.0 if weight is None else np.abs(f64(weight)))
    c1 = g.mean(axis=-1, keepdims=True) if mean is not None else np.zeros_like(r)
    c2 = (g * h).mean(axis=-1, keepdims=True)
    e_c2 = (g_c + TERMS * w) * c2 + (g * e_h).mean(axis=-1, keepdims=True)
    e_dx = r * (TERMS * w * (g + c1 + h * c2) + g_c * c1 + e_h * c2 + h * e_c2)
    if residual is not None:
        e_dx = e_dx + w * (np.abs(f64(residual)) + r * (g + c1 + h * c2))
    rows = x.size // max(x.shape[-1], 1)
    over = tuple(range(x.ndim - 1))
    e_dweight = (gamma(rows, dtype) * np.abs(dy) * h + np.abs(dy) * e_h).sum(axis=over)
    return e_dx, e_dweight, (gamma(rows, dtype) * np.abs(dy)).sum(axis=over)


def cross_entropy(logits: Array, targets: Array, label_smoothing: float, dtype: Any) -> tuple[Array, Array]:
    """Of the loss of each row, and of its lse."""
    x = f64(logits)
    w = u(working(dtype))
    _, lse = reference.cross_entropy(x, np.zeros(x.shape[:-1], int), return_lse=True)
    with np.errstate(invalid="ignore"):
        t = np.where(np.isfinite(x), np.abs(x - lse[..., None]), 0.0)
        p = np.exp(x - lse[..., None])
    top = np.abs(x.max(axis=-1))
    e_lse = (2 * FUNCTION + 2 * (p * t).sum(axis=-1) + np.abs(lse) + top) * w + gamma(x.shape[-1], dtype)
    at = np.take_along_axis(x, np.clip(np.asarray(targets), 0, None)[..., None], axis=-1)[..., 0]
    size = np.abs(lse) + np.abs(np.where(np.isfinite(at), at, 0.0))
    e = e_lse + TERMS * w * size
    if label_smoothing:
        e = e + label_smoothing * (gamma(x.shape[-1], dtype) + TERMS * w) * np.abs(x).mean(axis=-1)
    return e, e_lse


def cross_entropy_backward(dloss: Any, logits: Array, targets: Array, lse: Array, dtype: Any, **options: Any) -> Array:
    x, lse = f64(logits), f64(lse)[..., None]
    w = u(working(dtype))
    with np.errstate(invalid="ignore"):
        p = np.exp(x - lse)
        e = p * (FUNCTION + 2 * np.where(np.isfinite(x), np.abs(x - lse), 0.0)) * w
    smoothing = options.get("label_smoothing", 0.0)
    hot = np.arange(x.shape[-1]) == np.asarray(targets)[..., None]
    e = e + TERMS * w * (p + hot + smoothing / x.shape[-1]) + flush(dtype)
    counts = np.asarray(targets) != options.get("ignore_index", -100)
    weight = np.abs(f64(dloss)) / (max(counts.sum(), 1) if options.get("reduction", "mean") == "mean" else 1)
    return np.where(counts[..., None], e * np.broadcast_to(weight, counts.shape)[..., None], 0.0)


def linear_cross_entropy(
    x: Array, weight: Array, targets: Array, dtype: Any, *, bias: Any = None, dloss: float = 1.0, **options: Any
) -> tuple[Array, ...]:
    """Of the loss, dx, dweight and dbias: an error of the logits moves a loss and each probability by twice that."""
    counts, wide = np.asarray(targets) != options.get("ignore_index", -100), working(dtype)
    rows, t = f64(x)[counts], np.asarray(targets)[counts]
    w, smoothing = f64(weight), options.get("label_smoothing", 0.0)
    share = 1 / max(t.size, 1) if options.get("reduction", "mean") == "mean" else 1.0
    z = rows @ w.T + (0.0 if bias is None else f64(bias))
    e_z = matmul(rows, w.T, dtype, bias=bias) + u(wide) * np.abs(z)
    e_loss, e_lse = cross_entropy(z, t, smoothing, wide)
    losses, lse = reference.cross_entropy(z, t, label_smoothing=smoothing, reduction="none", return_lse=True)
    most = e_z.max(axis=-1, initial=0.0)
    loss = share * ((e_loss + 2 * most).sum() + gamma(t.size, dtype) * np.abs(losses).sum())
    p = np.exp(z - lse[..., None])
    options = {"label_smoothing": smoothing, "reduction": "none"}
    dz = reference.cross_entropy_backward(np.ones(t.size), z, t, lse, **options)
    e_dz = cross_entropy_backward(np.ones(t.size), z, t, lse, wide, **options) + p * (2 * most + e_lse)[..., None]
    if dtype.itemsize == 2:  # products take the gradient of the logits in the dtype of x, before it is scaled
        e_dz = e_dz + u(dtype) * np.abs(dz) + float(ml_dtypes.finfo(dtype).smallest_subnormal)
    factor, dz = share * abs(dloss), np.abs(dz)
    dx = np.zeros((*counts.shape, w.shape[1]))
    dx[counts] = factor * ((e_dz + (gamma(w.shape[0], dtype) + TERMS * u(wide)) * dz) @ np.abs(w))
    e_rows = e_dz + (gamma(t.size, dtype) + TERMS * u(wide)) * dz
    return loss, dx, factor * e_rows.T @ np.abs(rows), factor * e_rows.sum(axis=0)


def embedding_backward(dy: Array, ids: Array, rows: int, dtype: Any) -> Array:
    size = reference.embedding_backward(np.abs(f64(dy)), ids, rows)
    most = int(np.bincount(np.asarray(ids).ravel()).max()) if np.asarray(ids).size else 0
    return gamma(most, dtype) * size


# ---- attention -----------------------------------------------------------------------------------


class AttentionParts:
    """Where a query sees a key, the scores, their errors, and the factors of dropout."""

    def __init__(self, q: Array, k: Array, dtype: Any, options: dict[str, Any]) -> None:
        bias, cap, slopes = (options.get(name) for name in ("bias", "softcap", "alibi_slopes"))
        causal = options.get("causal", False)
        more = options.get("global_tokens"), options.get("global_rows", True)
        self.sees = _sees(q, k, causal, options.get("window"), options.get("mask"), bias, *more)
        self.scale = abs(_scale(options.get("scale"), q))
        w = u(working(dtype))
        terms, relative = q.shape[-1], None
        # What multiplies keys, and the same of relative positions in absolute values.
        self.with_u, self.relative = np.abs(q), None
        if options.get("rel") is not None:
            pattern = q, k, causal, options.get("window"), options.get("global_tokens")
            relative, terms = Relative(options["rel"], *pattern), 2 * terms
            *arrays, origin = options["rel"]
            self.relative = Relative((*(np.abs(f64(x)) for x in arrays), origin), *pattern)
            self.with_u = self.with_u + self.relative.u
        with np.errstate(invalid="ignore", over="ignore"):
            s, self.cap_slope = _scores(q, k, self.sees, options.get("scale"), bias, cap, slopes, causal, relative)
            size = np.matmul(self.with_u, np.abs(k).swapaxes(-1, -2))
            size = self.scale * (size if self.relative is None else size + self.relative.products(np.abs(q)))
            # Each term beside the product is rounded, and so is each sum; the softcap is a function of the library.
            more = np.zeros(s.shape) if bias is None else np.abs(f64(bias)) + np.zeros(s.shape)
            if cap is not None:
                more = more + 2 * np.minimum(size, cap)
            if slopes is not None:
                n, m = s.shape[-2:]
                more = more + np.abs(_by_head(slopes, q))[..., None] * np.abs(np.arange(m) - _diagonal(n, m, causal))
        self.s = np.where(self.sees, s, 0.0)
        e = (gamma(terms, dtype) + TERMS * w) * size
        # 1 - tanh^2 of an argument that is off by e / cap
        self.e_cap = 0.0 if cap is None else np.where(self.sees, 2 * e / cap + (FUNCTION + TERMS) * w, 0.0)
        self.e = np.where(self.sees, e + FUNCTION * w * more, 0.0)
        self.kept = _kept(s.shape, options.get("dropout", 0.0), options.get("seed"))
        sinks = options.get("sinks")
        self.sink = None if sinks is None else np.broadcast_to(_by_head(sinks, q), s.shape[:-1])


@np.errstate(invalid="ignore", over="ignore")
def attention(q: Array, k: Array, v: Array, dtype: Any, **options: Any) -> tuple[Array, Array]:
    """Of out (before rounding) and lse.

    A score is off by e_s = gamma(D) * scale * |q| |k| and what scaling rounds, its exponential by that, relative.
    Blocks of keys are rescaled when a larger maximum comes: one rounding for each block, of 32 keys or more.
    Where bfloat16 has instructions of its own, probabilities are rounded to it before they meet the values.
    """
    q, k, v = f64(q), f64(k), f64(v)
    if k.shape[-2] == 0 or q.size == 0:
        return np.zeros((*q.shape[:-1], v.shape[-1])), np.zeros(q.shape[:-1])
    k, v = _heads(k, q), _heads(v, q)
    parts = AttentionParts(q, k, dtype, options)
    s, sees = parts.s, parts.sees
    w = u(working(dtype))
    m = k.shape[-2]
    top = np.where(sees, s, -np.inf).max(axis=-1)
    if parts.sink is not None:
        top = np.maximum(top, parts.sink)
    top = np.where(np.isfinite(top), top, 0.0)[..., None]
    e = parts.e + (FUNCTION + 2 * (np.abs(s) + np.abs(top))) * w
    p = np.where(sees, np.exp(s - top), 0.0)
    total = p.sum(axis=-1, keepdims=True)
    of_sink = 0.0
    if parts.sink is not None:
        sink = parts.sink[..., None]
        of_sink = np.where(np.isneginf(sink), 0.0, np.exp(sink - top) * (FUNCTION + 2 * (np.abs(sink) + np.abs(top))))
        of_sink = np.nan_to_num(of_sink) * w
        total = total + np.exp(sink - top)
    total = np.maximum(total, np.finfo(float).tiny)
    p, of_sink = p / total, of_sink / total
    sums = gamma(m, dtype) + (m / 32) * w
    average = (p * e).sum(axis=-1, keepdims=True) + of_sink
    of_probabilities = of_pairs(dtype, options)
    out = np.matmul(parts.kept * (p * e + sees * flush(dtype)), np.abs(v)) + (
        average + 2 * sums + FUNCTION * w + of_probabilities
    ) * np.matmul(parts.kept * p, np.abs(v))
    lse = average[..., 0] + sums + TERMS * w * (1 + np.abs(top[..., 0]))
    return out, lse


@np.errstate(invalid="ignore", over="ignore")
def attention_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    dtype: Any,
    *,
    dlse: Any = None,
    grads: Any = (),
    **options: Any,
):
    """Of dq, dk, dv (before rounding), by the steps of the reference; with `grads` also the others, by name."""
    shapes = np.shape(k), np.shape(v)
    do, q, k, v, o, lse = (np.abs(f64(x)) if x is dout or x is out else f64(x) for x in (dout, q, k, v, out, lse))
    k, v = _heads(k, q), _heads(v, q)
    parts = AttentionParts(q, k, dtype, options)
    s, sees, scale, kept = parts.s, parts.sees, parts.scale, parts.kept
    w = u(working(dtype))
    finite_lse = np.abs(np.where(np.isfinite(lse), lse, 0.0))
    with np.errstate(invalid="ignore"):
        p = np.where(sees, np.exp(s - lse[..., None]), 0.0)
        r = parts.e + (FUNCTION + 2 * (np.abs(s) + finite_lse[..., None])) * w
    size_dp = kept * np.matmul(do, np.abs(v).swapaxes(-1, -2))
    delta = (do * o).sum(axis=-1) + (0.0 if dlse is None else np.abs(f64(dlse)))
    ds = p * (size_dp + delta[..., None])
    e_ds = ds * r + (gamma(v.shape[-1], dtype) + TERMS * w) * ds
    e_ds = e_ds + sees * flush(dtype) * (size_dp + delta[..., None])
    e_through = np.abs(parts.cap_slope) * e_ds + parts.e_cap * ds
    m = k.shape[-2]
    group = q.shape[-2] * (q.shape[-3] // shapes[0][-3] if q.ndim > 2 and shapes[0][-3] else 1)
    t = lambda x: x.swapaxes(-1, -2)
    relative = parts.relative
    e_rounded = of_pairs(dtype, options)  # of P and dS, before they are multiplied
    e_dq = e_through + (gamma(m if relative is None else 2 * m, dtype) + TERMS * w + e_rounded) * ds
    dq = scale * np.matmul(e_dq, np.abs(k))
    if relative is not None:
        dq = dq + scale * np.matmul(relative.by_row(e_dq), relative.r)
    dk = scale * np.matmul(t(e_through + (gamma(group, dtype) + TERMS * w + e_rounded) * ds), parts.with_u)
    dv = np.matmul(t(kept * (p * (r + gamma(group, dtype) + TERMS * w + e_rounded) + sees * flush(dtype))), do)
    if e_rounded:  # subnormal operands and products count as zero there
        dq = dq + flush(dtype) * np.matmul(sees, np.abs(k) + 1)
        if relative is not None:
            dq = dq + flush(dtype) * np.matmul(relative.by_row(sees), relative.r + 1)
        dk = dk + flush(dtype) * np.matmul(t(sees), np.abs(q) + 1)
        dv = dv + flush(dtype) * np.matmul(t(sees), do + 1)
    bounds = dq, _ungroup(dk, shapes[0]), _ungroup(dv, shapes[1])
    if not grads:
        return bounds
    more = {}
    if "bias" in grads:
        shape = np.shape(options["bias"])
        terms = max(1, ds.size // max(1, int(np.prod(shape))))
        more["bias"] = _unbroadcast(e_ds + gamma(terms, dtype) * ds, shape)
    if "sinks" in grads:
        with np.errstate(invalid="ignore"):
            of_sink = np.where(np.isneginf(lse), 0.0, np.exp(parts.sink - lse)) * delta
            e_sink = of_sink * (
                gamma(v.shape[-1], dtype) + (FUNCTION + 2 * (np.abs(np.nan_to_num(parts.sink)) + finite_lse)) * w
            )
        e_sink = np.nan_to_num(e_sink)
        more["sinks"] = e_sink.sum(axis=tuple(a for a in range(e_sink.ndim) if a != e_sink.ndim - 2)).reshape(-1)
    if "rel" in grads:
        samples = max(1, int(np.prod(q.shape[:-3])))
        e_r = relative.by_row(e_through + (gamma(samples * q.shape[-2], dtype) + TERMS * w + e_rounded) * ds)
        if e_rounded:
            e_r = e_r + flush(dtype) * relative.by_row(sees)
        e_bias = e_through + (gamma(samples * q.shape[-2] * m, dtype) + TERMS * w) * ds
        sizes = (
            np.matmul(t(e_r), np.abs(q) + relative.v),
            np.matmul(e_bias, np.abs(k)).sum(axis=-2),
            np.matmul(relative.by_row(e_bias), relative.r).sum(axis=-2),
        )
        shapes = (np.shape(x) for x in options["rel"][:3])
        more["rel"] = tuple(scale * _over_samples(x, shape) for x, shape in zip(sizes, shapes, strict=True))
    return (*bounds, more)


def attention_sensitivity(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    e_lse: float,
    e_out: Array,
    *,
    dlse: Any = None,
    grads: Any = (),
    **options: Any,
):
    """What errors of the given lse and out make of dq, dk, dv: P is off by e_lse, relative, and delta by do @ e_out."""
    shapes = np.shape(k), np.shape(v)
    do, q, k, v, o, lse = np.abs(f64(dout)), f64(q), f64(k), f64(v), np.abs(f64(out)), f64(lse)
    k, v = _heads(k, q), _heads(v, q)
    parts = AttentionParts(q, k, np.float64, options)
    p = np.where(parts.sees, np.exp(parts.s - lse[..., None]), 0.0)
    delta = (do * o).sum(axis=-1) + (0.0 if dlse is None else np.abs(f64(dlse)))
    e_delta = (do * e_out).sum(axis=-1)
    size_dp = parts.kept * np.matmul(do, np.abs(v).swapaxes(-1, -2))
    e_ds = p * (e_lse * (size_dp + delta[..., None]) + e_delta[..., None])
    relative = parts.relative
    of_keys = parts.scale * np.matmul(e_ds, np.abs(k))
    of_rows = 0.0 if relative is None else parts.scale * np.matmul(relative.by_row(e_ds), relative.r)
    dq = of_keys + of_rows
    dk = parts.scale * np.matmul(e_ds.swapaxes(-1, -2), parts.with_u)
    dv = e_lse * np.matmul((parts.kept * p).swapaxes(-1, -2), do)
    bounds = [dq, _ungroup(dk, shapes[0]), _ungroup(dv, shapes[1])]
    if "bias" in grads:
        bounds.append(_unbroadcast(e_ds, np.shape(options["bias"])))
    if "sinks" in grads:
        rows = np.exp(parts.sink - lse) * (e_lse * delta + e_delta)
        bounds.append(rows.sum(axis=tuple(a for a in range(rows.ndim) if a != rows.ndim - 2)).reshape(-1))
    if "rel" in grads:
        dr = parts.scale * np.matmul(relative.by_row(e_ds).swapaxes(-1, -2), np.abs(q) + relative.v)
        sizes = dr, of_keys.sum(axis=-2), of_rows.sum(axis=-2)
        bounds += [_over_samples(x, like.shape) for x, like in zip(sizes, options["rel"][:3], strict=True)]
    return bounds
