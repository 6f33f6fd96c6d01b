"""Windows, forward and backward, against JAX's `dot_product_attention`.

JAX takes the softmax in float32 whatever it is given, so both sides are float32, and as for PyTorch's float32 the bound
is four times that of ours alone.
"""

import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import normal
from tolerance import check, rounded

jax = pytest.importorskip("jax")
jax.config.update("jax_platforms", "cpu")
DTYPE = np.dtype(np.float32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(0, 0), (5, 2), (40, 0), (3, 70), (1000, 1000)])
@pytest.mark.parametrize(
    ("n", "m", "heads", "kv_heads"), [(65, 65, 4, 2), (3, 3, 2, 2), (150, 150, 1, 1), (30, 90, 2, 1)]
)
def test_windows(rng, causal, window, n, m, heads, kv_heads):
    q, k, v = (normal(rng, 2, h, s, 16, dtype=DTYPE) for h, s in ((heads, n), (kv_heads, m), (kv_heads, m)))
    dout = normal(rng, 2, heads, n, 16, dtype=DTYPE)
    if not causal and n != m:
        m = n  # theirs stands at the first key, ours, unless it is causal, at the last
        k, v = k[:, :, :m], v[:, :, :m]
    options = {"causal": "top_left" if causal else False, "window": window}
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    grads = nf.attention_backward(dout, q, k, v, out, lse, **options)

    def theirs(*arrays):
        q, k, v = (x.swapaxes(1, 2) for x in arrays)
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, local_window_size=window, implementation="xla"
        ).swapaxes(1, 2)

    want, pull = jax.vjp(theirs, *(jax.numpy.asarray(x) for x in (q, k, v)))
    bound, bound_lse = tolerance.attention(q, k, v, DTYPE, **options)
    bounds = tolerance.attention_backward(dout, q, k, v, out, lse, DTYPE, **options)
    # Ours starts from its own out and lse.
    given = rounded(bound_lse, lse, DTYPE).max(), rounded(bound, out, DTYPE)
    slips = tolerance.attention_sensitivity(dout, q, k, v, out, lse, *given, **options)
    check(out, want, 4 * rounded(bound, np.asarray(want), DTYPE), "out")
    expected = pull(jax.numpy.asarray(dout))
    for what, got, w, e, slip in zip(("dq", "dk", "dv"), grads, expected, bounds, slips, strict=True):
        w = np.asarray(w)
        check(got, w, 4 * rounded(e + slip, w, DTYPE), what)
