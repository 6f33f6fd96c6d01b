"""Cross-entropy, with the logarithm of softmax inside, and with the linear map before it."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from numformer.reference._arrays import F64, Array, deliver, f64


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_lse: bool = False,
) -> F64 | tuple[F64, F64]:
    r"""-log softmax(logits)[target], smoothed towards the uniform distribution.

    With lse = log(sum(exp(x))) and s = `label_smoothing`: loss = lse - (1 - s) * x[target] - s * mean(x).
    A row whose target is `ignore_index` has loss 0 and does not count in the mean; a mean over no row is 0.

    Parameters
    ----------
    logits : (..., C)
    targets : (...), integers in [0, C) or `ignore_index`
    reduction : "mean", "sum" or "none"

    Returns
    -------
    loss, or (loss, lse) with `return_lse`; lse has the shape of targets

    References
    ----------
    C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016 (label smoothing).
    """
    x, t, counts = _checked(logits, targets, ignore_index)
    lse = _log_sum_exp(x)
    with np.errstate(invalid="ignore"):
        loss = lse - (1.0 - label_smoothing) * np.take_along_axis(x, t[..., None], axis=-1)[..., 0]
        if label_smoothing:
            loss = loss - label_smoothing * x.mean(axis=-1)
    loss = np.where(counts, loss, 0.0)
    if reduction != "none":
        loss = loss.sum() * _weight(counts, reduction)
    return (loss, lse) if return_lse else loss


def cross_entropy_backward(
    dloss: ArrayLike,
    logits: Array,
    targets: Array,
    lse: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
) -> Array:
    r"""Gradient of `cross_entropy` by the logits: dloss * (exp(x - lse) - (1 - s) * onehot(target) - s / C).

    `dloss` has the shape of the loss. `out` may be the logits themselves.
    """
    x, t, counts = _checked(logits, targets, ignore_index)
    with np.errstate(invalid="ignore"):
        d = np.exp(x - f64(lse)[..., None]) - label_smoothing / x.shape[-1]
    at_target = np.take_along_axis(d, t[..., None], axis=-1) - (1.0 - label_smoothing)
    np.put_along_axis(d, t[..., None], at_target, axis=-1)
    weight = f64(dloss) * _weight(counts, reduction)
    d = d * np.broadcast_to(weight, counts.shape)[..., None]
    return deliver(np.where(counts[..., None], d, 0.0), out)


def linear_cross_entropy(
    x: Array,
    weight: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dloss: float = 1.0,
    gradients: bool = True,
    dweight: Array | None = None,
    dbias: Array | None = None,
    accumulate: bool = False,
    chunk: int | None = None,
) -> Any:
    r"""Cross-entropy of z = x W^T + b, and its gradients: dx = dz W, dW = dz^T x, db = sum over the rows of dz.

    `dloss` multiplies the gradients. Without `gradients` the loss alone is returned. `dweight` and `dbias` are arrays
    to write into or, with `accumulate`, to add to. What a row that does not count holds reaches nothing. `chunk`, how
    many rows of z are held at once, changes nothing here.

    Parameters
    ----------
    x : (..., D); weight : (V, D); targets : (...), integers in [0, V) or `ignore_index`; bias : (V,), optional
    reduction : "mean" or "sum"

    Returns
    -------
    loss, or (loss, dx, dweight), or with a bias (loss, dx, dweight, dbias)
    """
    if reduction == "none":
        raise ValueError("linear_cross_entropy: reduction must be 'mean' or 'sum', got 'none'")
    t, w = np.asarray(targets), f64(weight)
    rows = np.where((t != ignore_index)[..., None], f64(x), 0.0)
    z = rows @ w.T + (0.0 if bias is None else f64(bias))
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    loss, lse = cross_entropy(z, t, return_lse=True, **options)
    if not gradients:
        return loss
    dz = cross_entropy_backward(dloss, z, t, lse, **options)
    flat = dz.reshape(t.size, w.shape[0])
    dw = flat.T @ rows.reshape(t.size, w.shape[1])
    found = [loss, dz @ w, deliver(dw, dweight, accumulate)]
    if bias is not None:
        found.append(deliver(flat.sum(axis=0), dbias, accumulate))
    return tuple(found)


def _checked(logits: Array, targets: Array, ignore_index: int) -> tuple[F64, Array, Array]:
    """Logits, targets with 0 in place of what is ignored, and where a target counts."""
    x, t = f64(logits), np.asarray(targets)
    if t.shape != x.shape[:-1]:
        raise ValueError(f"cross_entropy: targets must have shape {x.shape[:-1]}, got {t.shape}")
    counts = t != ignore_index
    if ((t < 0) | (t >= x.shape[-1]))[counts].any():
        raise ValueError(f"cross_entropy: targets must be in [0, {x.shape[-1]}) or {ignore_index}")
    return x, np.where(counts, t, 0), counts


def _weight(counts: Array, reduction: str) -> float:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return 1.0 / max(int(counts.sum()), 1) if reduction == "mean" else 1.0


def _log_sum_exp(x: F64) -> F64:
    top = x.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return top[..., 0] + np.log(np.exp(x - top).sum(axis=-1))
