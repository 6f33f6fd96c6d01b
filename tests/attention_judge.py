"""Attention, forward and backward, beside its twin."""

import numformer as nf
import numpy as np
import tolerance
from arrays import normal
from numformer import reference
from tolerance import check, rounded, working


def judge(q, k, v, what, dout=None, *, dlse=None, grads=(), poison=None, **options):
    """Compare output, lse and, with dout, the three gradients and those that `grads` names.

    `poison`: arrays that ours gets instead of those of the same name; they differ in what nobody may look at.
    """
    dtype = q.dtype
    given = {"q": q, "k": k, "v": v, "dout": dout, "dlse": dlse, **options, **(poison or {})}
    back = {which: given.pop(which) for which in ("dout", "dlse")}
    out, lse = nf.attention(**given, return_lse=True)
    want_out, want_lse = reference.attention(q, k, v, return_lse=True, **options)
    bound_out, bound_lse = tolerance.attention(q, k, v, dtype, **options)
    assert out.dtype == dtype and lse.dtype == working(dtype)
    check(lse, want_lse, rounded(bound_lse, np.nan_to_num(want_lse), lse.dtype), f"lse, {what}")
    check(out, want_out, rounded(bound_out, want_out, dtype), f"out, {what}")
    if dout is None:
        return
    more = {"dlse": dlse, "grads": grads}
    got = nf.attention_backward(**back, **given, out=out, lse=lse, grads=grads)
    want = reference.attention_backward(dout, q, k, v, out, lse, **more, **options)
    bounds = tolerance.attention_backward(dout, q, k, v, out, lse, dtype, **more, **options)
    assert len(got) == (4 if grads else 3)
    for which, g, w, bound in zip(("dq", "dk", "dv"), got, want, bounds, strict=False):
        assert g.dtype == dtype
        check(g, w, rounded(bound, w, dtype), f"{which}, {what}")
    for which in grads:
        several = (got[3][which], want[3][which], bounds[3][which], options[which])
        if which != "rel":
            several = tuple((x,) for x in several)
        for i, (g, w, bound, like) in enumerate(zip(*several, strict=False)):  # origin has no gradient
            assert g.dtype == like.dtype and g.shape == like.shape
            check(g, w, rounded(bound, w, like.dtype), f"gradient of {which} ({i}), {what}")


def inputs(rng, dtype, lead=(2,), heads=2, kv_heads=2, n=9, m=9, d=16, dv=None, make=normal):
    dv = d if dv is None else dv
    shapes = (*lead, heads, n, d), (*lead, kv_heads, m, d), (*lead, kv_heads, m, dv), (*lead, heads, n, dv)
    return [make(rng, *shape, dtype=dtype) for shape in shapes]


def relative(rng, dtype, n, m, heads=2, d=16, causal=False, window=None, spare=(0, 0), make=normal):
    """`rel` with a row for each distance that N queries and M keys may need, and some more on both sides."""
    nearest, farthest = 1 - n, m - 1  # the first query and the last key; the last query and the first key
    if causal == "top_left":
        nearest, farthest = 1 - m, n - 1
    nearest = max(nearest, 0) if causal else nearest
    if window is not None:
        nearest = nearest if window[1] is None else max(nearest, -window[1])
        farthest = farthest if window[0] is None else min(farthest, window[0])
    length = max(farthest - nearest + 1, 0) + sum(spare)
    return (
        make(rng, heads, length, d, dtype=dtype),
        make(rng, heads, d, dtype=dtype),
        make(rng, heads, d, dtype=dtype),
        spare[0] - nearest,
    )
