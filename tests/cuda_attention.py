"""Attention's kernels for a GPU, run on the host, beside their twin."""

import numpy as np
import tolerance
from arrays import DTYPES
from numformer import reference
from tolerance import check, rounded, working

FEW = [np.dtype(np.float32), DTYPES[3]]  # where a case is about the options and not about the arithmetic


def empty_like(x):
    """To be written everywhere: NaN until then. Of `rel`, (r, bias_u, bias_v, origin), there are three."""
    if isinstance(x, tuple):
        return tuple(map(empty_like, x[:3]))
    return np.full(x.shape, np.nan, x.dtype)


def run(gpu, q, k, v, **options):
    out = np.full((*q.shape[:-1], v.shape[-1]), np.nan, q.dtype)
    lse = np.full(q.shape[:-1], np.nan, working(q.dtype))
    gpu.attention(out, lse, q, k, v, options, scratch=True)
    return out, lse


def run_backward(gpu, dout, q, k, v, out, lse, dlse=None, grads=(), **options):
    dq, dk, dv = map(empty_like, (q, k, v))
    more = {which: empty_like(options[which]) for which in grads}
    gpu.attention_backward(dq, dk, dv, dout, q, k, v, out, lse, dlse, options, more, scratch=True)
    return dq, dk, dv, more


def judge(gpu, q, k, v, dout, what, *, dlse=None, grads=(), poison=None, **options):
    """Output, lse and gradients; `poison`: arrays that the kernels get instead, different where nobody may look."""
    dtype = q.dtype
    given = {"q": q, "k": k, "v": v, "dout": dout, **options, **(poison or {})}
    dout_given = given.pop("dout")
    out, lse = run(gpu, **given)
    want_out, want_lse = reference.attention(q, k, v, return_lse=True, **options)
    bound_out, bound_lse = tolerance.attention(q, k, v, dtype, **options)
    check(lse, want_lse, rounded(bound_lse, np.nan_to_num(want_lse), lse.dtype), f"lse, {what}")
    check(out, want_out, rounded(bound_out, want_out, dtype), f"out, {what}")
    got = run_backward(gpu, dout_given, **given, out=out, lse=lse, dlse=dlse, grads=grads)
    more = {"dlse": dlse, "grads": grads}
    want = reference.attention_backward(dout, q, k, v, out, lse, **more, **options)
    bounds = tolerance.attention_backward(dout, q, k, v, out, lse, dtype, **more, **options)
    for which, g, w, bound in zip(("dq", "dk", "dv"), got, want, bounds, strict=False):
        check(g, w, rounded(bound, w, dtype), f"{which}, {what}")
    for which in grads:
        several = got[3][which], want[3][which], bounds[3][which]
        for i, (g, w, bound) in enumerate(zip(*several, strict=True) if which == "rel" else [several]):
            check(g, w, rounded(bound, w, g.dtype), f"gradient of {which} ({i}), {what}")
