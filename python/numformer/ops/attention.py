"""Exact attention over NumPy arrays, forward and backward."""

from typing import Any

from numpy.typing import NDArray

from numformer.ops.dispatch import core as _core

Array = NDArray[Any]


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
) -> Any:
    """Exact attention, ``softmax(scores + masks) @ v``, without an N x M matrix in memory.

    The score of query i and key j is ``softcap * tanh(scale * q[i] @ k[j] / softcap) + bias[i, j] - slope * abs(j -
    diagonal(i))``, each term where it is asked for. With `rel` the product has two parts, see there.

    Parameters
    ----------
    q : (..., H, N, D) array
        float32, float64, float16 or bfloat16. Two axes mean one head.
    k : (..., Hkv, M, D) array
    v : (..., Hkv, M, Dv) array
        The dtype of `q`; H is a multiple of Hkv (grouped queries: head h uses key head ``h // (H // Hkv)``). Unit
        stride on
        the last axis is needed, other strides are free (what has another layout is copied).
    causal : {False, True, "bottom_right", "top_left"}
        Query i sees key j if ``j <= i + M - N`` (True, "bottom_right": the last query sees the last key) or ``j <= i``
        ("top_left"). For N = 2 queries and M = 4 keys::

            bottom_right     top_left
              x x x .          x . . .
              x x x x          x x . .
    window : (left, right), optional
        Keep keys with ``-left <= j - diagonal(i) <= right``, where ``diagonal(i)`` is ``i + M - N``, or i with
        "top_left". None: no limit
        on that side. For N = M = 5 and ``window=(1, 1)``::

              x x . . .
              x x x . .
              . x x x .
              . . x x x
              . . . x x
    mask : boolean array, optional
        True = attend. Broadcasts to (..., H, N, M) without being expanded. Tiles in which it is False throughout cost
        nothing but a look at it: two documents side by side in one sequence take half the time of one::

              x x . . .
              x x . . .
              . . x x x
              . . x x x
              . . x x x
    bias : array, optional
        Added to the scores. Broadcasts to (..., H, N, M) without being expanded; the dtype of `q`, or float32 with a
        16-bit `q`. -inf counts as masked, +inf or NaN where a query may look gives a NaN row.
    scale : float, optional
        Of the products; 1 / sqrt(D) by default.
    softcap : float, optional
        Scores are kept within (-softcap, softcap) by a tanh; before bias and ALiBi.
    alibi_slopes : (H,) array, optional
        Finite. ``slope * abs(j - diagonal(i))`` is subtracted from the scores; dtype as `bias`.
    sinks : (H,) array, optional
        One more score a head in the softmax's denominator, with no value; dtype as `bias`. `lse` includes it: that of
        a query that sees no key is the sink. -inf is no sink.
    global_tokens : (..., N) boolean array, optional
        Self-attention only (N = M). These tokens attend to all and are attended by all, whatever the window; causal,
        `mask` and `bias` still hold. For N = 5, ``window=(0, 0)`` and token 1::

              x x . . .
              x x x x x
              . x x . .
              . x . x .
              . x . . x
    global_rows : bool
        False: the rows of global tokens see nothing (a model computes them with other projections, as Longformer
        does), and others still see them as keys.
    rel : (r, bias_u, bias_v, origin), optional
        Relative positions as in Transformer-XL: the product of query i and key j is ``(q[i] + bias_u[h]) @ k[j] +
        (q[i] + bias_v[h]) @ r[h, origin + diagonal(i) - j]``. r is (H, L, D), positions projected already, a row for
        each distance; `origin` is the row of distance 0. It has a row for each distance that `causal` and `window`
        allow (with global tokens: `causal` alone). The dtype of `q`; the biases, (H, D), may be float32 with a 16-bit
        `q`. No N x M matrix is made of them. Rows of r by pair, for N = 2, M = 4, causal, and L = 4, origin = 0::

              2 1 0 .
              3 2 1 0
    dropout : float
        Probability, in [0, 1], with which each probability of a pair is set to 0; the others are divided by
        1 - dropout. `lse` is that of the scores before dropout.
    seed : int or (seed, layer, step, sample), optional
        Of dropout, required with it. What is dropped is a function of these numbers, the index of the leading axes
        (plus `sample`) and the place in (H, N, M) only: what `dropout` drops of (batch, H, N, M) probabilities.
    return_lse : bool
        Return the log-sum-exp of each row as well: the backward needs it.
    out : (..., H, N, Dv) array, optional
        Where to write the result; unit stride on the last axis, no overlap with an input.

    Returns
    -------
    out : (..., H, N, Dv) array, or (out, lse)
        lse is (..., H, N), float32 (float64 for float64). A row with nothing to attend to gives zeros and lse -inf.

    Raises
    ------
    TypeError
        For what is not an array, an unknown dtype, or dtypes that differ.
    ValueError
        For shapes that do not fit, an unknown `causal`, a negative window, numbers out of range, dropout without seed,
        a distance that `rel` has no row for.

    Notes
    -----
    NaN or inf in a key or value that is masked out reaches nothing; NaN in a query reaches its row. Scores and sums
    are float32 (float64
    for float64). Algorithm: Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning",
    2023. ALiBi: Press, Smith, Lewis, "Train Short, Test Long", 2022. Softcap: Gemma Team, "Gemma 2", 2024. Sinks:
    Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2024, there with a key. Global tokens:
    Beltagy, Peters, Cohan, "Longformer", 2020. Relative positions: Dai et al., "Transformer-XL", 2019.

    Examples
    --------
    With the identity as values the output is the matrix of probabilities:

    >>> import numpy as np, numformer as nf
    >>> q = np.zeros((3, 8))
    >>> nf.attention(q, q, np.eye(3), causal=True).round(2)
    array([[1.  , 0.  , 0.  ],
           [0.5 , 0.5 , 0.  ],
           [0.33, 0.33, 0.33]])
    """
    options = (causal, window, mask, bias, scale, softcap, alibi_slopes, sinks, dropout, seed)
    more = (global_tokens, global_rows, None, None, rel)
    return _core.attention(q, k, v, (*options, *more), return_lse, out)


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
    """Gradients of `attention` by q, k and v, with the probabilities computed again from `lse`.

    Parameters
    ----------
    dout : (..., H, N, Dv) array
        Gradient of the output.
    q, k, v
        As given to `attention`.
    out, lse
        As returned by ``attention(..., return_lse=True)``.
    causal, window, mask, bias, scale, softcap, alibi_slopes, sinks, global_tokens, global_rows, rel, dropout, seed
        As given to `attention`.
    dlse : (..., H, N) array, optional
        Gradient of `lse`, of its dtype, where that was used too.
    grads : tuple of {"bias", "sinks", "rel"}
        The gradients that are wanted beside those of q, k and v.
    into : (dq, dk, dv), optional
        Arrays to write into, None for a new one; unit stride on the last axis, no overlap with an input.

    Returns
    -------
    dq, dk, dv : arrays
        In the shapes and dtype of q, k and v. Rows with nothing to attend to have zero gradients.
    more : dict
        Only with `grads`: their arrays by name, in the shape and dtype of `bias` and `sinks`; "rel" is a tuple, the
        gradients of r, bias_u and bias_v. A bias's gradient is summed over what it was broadcast over, in its own
        shape; those of `rel` over the leading axes.

    Raises
    ------
    TypeError, ValueError
        As `attention`.

    Notes
    -----
    Sums have a fixed order: results are bit-identical for any number of threads. Algorithm: Dao, "FlashAttention-2",
    2023.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, 5, 8))  # heads, positions, size
    >>> out, lse = nf.attention(q, k, v, causal=True, return_lse=True)
    >>> dq, dk, dv = nf.attention_backward(dout, q, k, v, out, lse, causal=True)
    >>> dq.shape, bool(abs(dq[:, 0]).max() < 1e-12)  # the first query sees one key: its weight is 1, whatever q is
    ((2, 5, 8), True)
    """
    options = (causal, window, mask, bias, scale, softcap, alibi_slopes, sinks, dropout, seed)
    more = (global_tokens, global_rows, None, None, rel)
    return _core.attention_backward(dout, q, k, v, out, lse, (*options, *more), dlse, grads, into)
