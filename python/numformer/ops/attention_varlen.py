"""Exact attention over packed sequences of different lengths, forward and backward."""

from typing import Any

from numpy.typing import NDArray

from numformer.ops.dispatch import core as _core

Array = NDArray[Any]


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
) -> Any:
    """`attention` of sequences of different lengths that lie one after another; no padding is computed.

    Parameters
    ----------
    q : (total_q, H, D) array
        float32, float64, float16 or bfloat16.
    k : (total_k, Hkv, D) array
    v : (total_k, Hkv, Dv) array
        The dtype of `q`; H is a multiple of Hkv.
    cu_seqlens_q, cu_seqlens_k : (sequences + 1,) array
        int32 or int64, from 0 to the total, not decreasing: sequence s has queries ``q[cu_seqlens_q[s] :
        cu_seqlens_q[s + 1]]``, and keys and values likewise. Lengths may be 0.
    causal, window, scale, softcap, alibi_slopes, sinks, rel, dropout
        As in `attention`, for each sequence by itself. The r of `rel` has a row for each distance in one of them.
    seed
        As in `attention`; sequence s is sample s.
    return_lse : bool
        Return the log-sum-exp of each row as well: the backward needs it.
    out : (total_q, H, Dv) array, optional
        Where to write the result; unit stride on the last axis, no overlap with an input.

    Returns
    -------
    out : (total_q, H, Dv) array, or (out, lse)
        lse is (H, total_q), float32 (float64 for float64).

    Raises
    ------
    TypeError
        For what is not an array, an unknown dtype, or dtypes that differ.
    ValueError
        For shapes and lengths that do not fit, and numbers out of range.

    Notes
    -----
    Each sequence has the bits that it has alone.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> starts = np.array([0, 2, 5])  # two sequences, of 2 and 3 positions
    >>> q = np.zeros((5, 1, 8))
    >>> nf.attention_varlen(q, q, np.arange(5.0).reshape(5, 1, 1), starts, starts).ravel()
    array([0.5, 0.5, 3. , 3. , 3. ])
    """
    options = (causal, window, None, None, scale, softcap, alibi_slopes, sinks, dropout, seed, None, True)
    more = (cu_seqlens_q, cu_seqlens_k, rel)
    return _core.attention(q, k, v, (*options, *more), return_lse, out)


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
    """Gradients of `attention_varlen` by q, k and v.

    Parameters
    ----------
    dout : (total_q, H, Dv) array
        Gradient of the output.
    q, k, v, cu_seqlens_q, cu_seqlens_k
        As given to `attention_varlen`.
    out, lse
        As returned by ``attention_varlen(..., return_lse=True)``.
    causal, window, scale, softcap, alibi_slopes, sinks, rel, dropout, seed
        As given to `attention_varlen`.
    dlse : (H, total_q) array, optional
        Gradient of `lse`, of its dtype, where that was used too.
    grads : tuple of {"sinks", "rel"}
        The gradients that are wanted beside those of q, k and v.
    into : (dq, dk, dv), optional
        Arrays to write into, None for a new one; unit stride on the last axis, no overlap with an input.

    Returns
    -------
    dq, dk, dv : arrays
        In the shapes and dtype of q, k and v.
    more : dict
        Only with `grads`: their arrays by name, "rel" a tuple of three. They are summed over the sequences in order.

    Raises
    ------
    TypeError, ValueError
        As `attention_varlen`.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> starts, q = np.array([0, 2, 5]), np.zeros((5, 1, 8))
    >>> out, lse = nf.attention_varlen(q, q, q, starts, starts, return_lse=True)
    >>> dq, dk, dv = nf.attention_varlen_backward(np.ones_like(out), q, q, q, out, lse, starts, starts)
    >>> dv[:, 0, 0].round(6)  # each value was seen by all queries of its sequence
    array([1., 1., 1., 1., 1.])
    """
    options = (causal, window, None, None, scale, softcap, alibi_slopes, sinks, dropout, seed, None, True)
    return _core.attention_backward(
        dout, q, k, v, out, lse, (*options, cu_seqlens_q, cu_seqlens_k, rel), dlse, grads, into
    )
