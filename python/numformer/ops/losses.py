"""Cross-entropy, with the logarithm of softmax inside."""

from typing import Any

from numpy.typing import ArrayLike, NDArray

from numformer import _core

Array = NDArray[Any]


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_lse: bool = False,
) -> Any:
    r"""Negative logarithm of softmax at the target, smoothed towards the uniform distribution.

    With lse = log(sum(exp(x))) and s = `label_smoothing`: loss = lse - (1 - s) * x[target] - s * mean(x).

    Parameters
    ----------
    logits : (..., C) array
        float32, float64, float16 or bfloat16.
    targets : (...) array
        int32 or int64, in [0, C) or `ignore_index`.
    ignore_index : int
        Rows with this target have loss 0 and do not count in the mean; a mean over no row is 0.
    label_smoothing : float
        In [0, 1].
    reduction : {"mean", "sum", "none"}
        "none" returns the loss of each row.
    return_lse : bool
        Return ``(loss, lse)``, for the backward.

    Returns
    -------
    loss : scalar, or (...) array with reduction="none"
        float32, or float64 for float64.
    lse : (...) array
        In the dtype of the loss; with `return_lse` only.

    Raises
    ------
    TypeError
        If `logits` are not floats or `targets` not int32 or int64.
    ValueError
        If shapes do not fit, C is 0, a target is out of range, or an option is unknown.

    References
    ----------
    C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016 (label smoothing).
    """
    return _core.cross_entropy(logits, targets, ignore_index, label_smoothing, reduction, return_lse)


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
    """Gradient of `cross_entropy` by the logits.

    dloss * (exp(x - lse) - (1 - s) * onehot(target) - s / C), divided by the number of rows that count for the mean.

    Parameters
    ----------
    dloss : number or array
        A number, or with reduction="none" an array of the shape of the loss.
    logits, targets, ignore_index, label_smoothing, reduction
        As given to `cross_entropy`.
    lse : (...) array
        As `cross_entropy` returned it.
    out : (..., C) array, optional
        Where to write the gradient, in the dtype of `logits`; may be `logits` itself.

    Returns
    -------
    array
        (..., C), `out` if it was given.

    Raises
    ------
    TypeError
        If dtypes are not as said.
    ValueError
        If shapes do not fit, a target is out of range, or an option is unknown.
    """
    return _core.cross_entropy_backward(dloss, logits, targets, lse, ignore_index, label_smoothing, reduction, out)
