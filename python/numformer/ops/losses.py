"""Cross-entropy, with the logarithm of softmax inside, and with the linear map before it."""

from typing import Any

from numpy.typing import ArrayLike, NDArray

from numformer.ops.dispatch import core as _core

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

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> logits, targets = np.zeros((2, 4)), np.array([1, -100])  # the second row is ignored
    >>> round(float(nf.cross_entropy(logits, targets)), 4)  # log 4
    1.3863
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

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> logits, targets = np.zeros((1, 4)), np.array([1])
    >>> loss, lse = nf.cross_entropy(logits, targets, return_lse=True)
    >>> nf.cross_entropy_backward(1.0, logits, targets, lse).round(6)
    array([[ 0.25, -0.75,  0.25,  0.25]])
    """
    return _core.cross_entropy_backward(dloss, logits, targets, lse, ignore_index, label_smoothing, reduction, out)


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
    """Cross-entropy of the logits ``x @ weight.T + bias`` and its gradients, without ever holding the logits.

    One pass over chunks of rows: the logits of a chunk, their losses and, over them, their gradient
    ``dlogits = dloss * weight_of_a_row * (softmax(logits) - smoothed onehot(target))``, then ``dx = dlogits @ weight``
    and ``dweight += dlogits.T @ x``. The loss is linear in `dloss`, so gradients made with 1 may be scaled later.

    Parameters
    ----------
    x : (..., D) array
        float32, float64, float16 or bfloat16.
    weight : (V, D) array
        The dtype of `x`; the table of a tied head. A transposed view of a (D, V) array is read in place too.
    targets : (...) array
        int32 or int64, in [0, V) or `ignore_index`.
    bias : (V,) array, optional
        The dtype of `x`; float32 beside a 16-bit `x` as well.
    ignore_index : int
        Rows with this target have loss 0 and gradient 0, do not count in the mean, and cost nothing.
    label_smoothing : float
        In [0, 1].
    reduction : {"mean", "sum"}
        Over the rows that count; a mean over no row is 0.
    dloss : float
        Gradient of the loss: multiplies the gradients, as a share of a larger batch or the scale of a loss does.
    gradients : bool
        False gives the loss alone, to evaluate.
    dweight, dbias : arrays, optional
        Where to write these gradients, in the dtype of `x`, or float32 beside a 16-bit one.
    accumulate : bool
        Add to `dweight` and `dbias` instead of writing them.
    chunk : int, optional
        Rows whose logits are held at once. By default as many as 48 MiB have room for, but 64 or more.

    Returns
    -------
    loss : scalar
        float32, or float64 for float64.
    dx : (..., D) array
        In the dtype of `x`; with `gradients`.
    dweight : (V, D) array
        The given one, or a new one in the dtype of `x`; with `gradients`.
    dbias : (V,) array
        Likewise, in the dtype of `bias`; with `gradients` and `bias` only.

    Raises
    ------
    TypeError
        If dtypes are not as said.
    ValueError
        If shapes do not fit, V is 0, a target is out of range, an option is unknown or out of range, `accumulate` is
        without the arrays to add to, or `dbias` without `bias`.

    Notes
    -----
    Logits and sums over rows are float32 for 16-bit types. The order of the sums over rows depends on `chunk`, by
    default a function of V and of how many rows count; the loss is that of `cross_entropy` on the same logits.

    References
    ----------
    P.-L. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024 (gradients in the forward pass).

    Examples
    --------
    >>> import numpy as np
    >>> import numformer as nf
    >>> x, weight = np.zeros((6, 4), np.float32), np.zeros((10, 4), np.float32)
    >>> loss, dx, dweight = nf.linear_cross_entropy(x, weight, np.arange(6))
    >>> round(float(loss), 4), dx.shape, dweight.shape
    (2.3026, (6, 4), (10, 4))
    """
    return _core.linear_cross_entropy(
        x,
        weight,
        targets,
        bias,
        ignore_index,
        label_smoothing,
        reduction,
        dloss,
        gradients,
        dweight,
        dbias,
        accumulate,
        chunk,
    )
