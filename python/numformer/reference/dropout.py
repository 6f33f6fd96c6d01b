"""Dropout whose mask is a function of where it stands, and the random numbers behind it."""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numformer.reference._arrays import F64, Array, f64

_LOW = np.uint64(0xFFFFFFFF)


def philox4x32(
    key: tuple[ArrayLike, ArrayLike], counter: tuple[ArrayLike, ...], rounds: int = 10
) -> NDArray[np.uint32]:
    """Philox4x32: four random 32-bit words for each counter; the arrays of key (2) and counter (4) broadcast.

    A round multiplies two words by constants into 64 bits, and mixes the halves with the other two words and the key;
    the key then moves on by the golden ratio and sqrt(3) - 1 (Weyl sequences).

    Returns
    -------
    (..., 4)

    References
    ----------
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    k0, k1, c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(w, np.uint64) & _LOW for w in (*key, *counter)))
    for _ in range(rounds):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _LOW, high0 ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + np.uint64(0x9E3779B9)) & _LOW
        k1 = (k1 + np.uint64(0xBB67AE85)) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def _keep(shape: tuple[int, ...], p: float, seed: int, layer: int, step: int, sample: int) -> NDArray[np.bool_]:
    """True where an element stays. Axis 0 is the sample; elements of one sample are counted in C order."""
    samples, elements = shape[0], int(np.prod(shape[1:]))
    blocks = np.arange((elements + 3) // 4)
    words = philox4x32((seed, layer), (blocks[None, :], sample + np.arange(samples)[:, None], step, 0))
    u = (words.reshape(samples, 4 * len(blocks))[:, :elements] >> 8) * 2.0**-24
    return (u >= p).reshape(shape)


def dropout(
    x: Array,
    p: float,
    *,
    seed: int,
    layer: int = 0,
    step: int = 0,
    sample: int = 0,
    residual: Array | None = None,
    cu_seqlens: Array | None = None,
) -> F64:
    """Each element is 0 with probability p, else x / (1 - p); plus residual.

    The mask is a function of (seed, layer, step, index of the sample, element within the sample) only: `sample` is the
    index of x[0] in the global batch, so that splitting a batch changes nothing, and the backward makes the mask again.
    With `cu_seqlens` sample s is x[cu_seqlens[s] : cu_seqlens[s + 1]].

    References
    ----------
    N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.
    """
    y = dropout_backward(x, p, seed=seed, layer=layer, step=step, sample=sample, cu_seqlens=cu_seqlens)
    return y if residual is None else y + f64(residual)


def dropout_backward(
    dy: Array,
    p: float,
    *,
    seed: int,
    layer: int = 0,
    step: int = 0,
    sample: int = 0,
    cu_seqlens: Array | None = None,
) -> F64:
    """Gradient of `dropout`: the same mask and the same factor, on dy."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must be in [0, 1], got {p}")
    d = f64(dy)
    if p == 1.0:
        return np.zeros(d.shape)
    if cu_seqlens is None:
        keep = _keep(d.shape, p, seed, layer, step, sample)
    else:
        keep = np.zeros(d.shape, bool)
        for s, (first, last) in enumerate(pairwise(cu_seqlens)):
            keep[first:last] = _keep((1, *d[first:last].shape), p, seed, layer, step, sample + s)[0]
    return np.where(keep, d / (1.0 - p), 0.0)
