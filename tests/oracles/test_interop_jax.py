"""JAX: its arrays in without a copy, ours as its own, and our attention as a function that it differentiates."""

import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, bits, name, normal, same
from processes import answer

jax = pytest.importorskip("jax")
jax.config.update("jax_platforms", "cpu")

from numformer.interop.jax import attention  # noqa: E402

SMALL = [d for d in DTYPES if d != np.float64]


@pytest.mark.parametrize("dtype", SMALL, ids=name)
def test_without_a_copy(rng, dtype):
    a = normal(rng, 40, 64, dtype=dtype)
    x = jax.numpy.asarray(a)
    view = nf.from_dlpack(x)
    assert same(view, a) and view.ctypes.data == x.unsafe_buffer_pointer() and not view.flags.writeable
    assert same(nf.softmax(x), nf.softmax(a)) and same(nf.matmul(x, x.T), nf.matmul(a, a.T))
    large = nf.relu(np.ones((300, 300), dtype))  # aligned as JAX wants it
    back = jax.dlpack.from_dlpack(nf.to_dlpack(large))
    assert back.dtype == dtype and back.unsafe_buffer_pointer() == large.ctypes.data
    del large
    assert bool((back == 1).all())


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (5, 2), "softcap": 3.0}, {"mask": True}], ids=str)
def test_under_their_transformations(rng, options):
    q, k, v, dout = (normal(rng, 2, 4, 20, 8) for _ in range(4))
    options = dict(options)
    mask = rng.random((20, 20)) < 0.8 if options.pop("mask", None) else None
    want, lse = nf.attention(q, k, v, mask=mask, return_lse=True, **options)
    wants = nf.attention_backward(dout, q, k, v, want, lse, mask=mask, **options)

    def ours(q, k, v):
        return attention(q, k, v, mask=mask, **options)

    for f in (ours, jax.jit(ours), jax.vmap(ours), jax.jit(jax.vmap(ours))):
        out, pull = jax.vjp(f, q, k, v)
        assert bits(out) == bits(want)
        for got, expected in zip(pull(jax.numpy.asarray(dout)), wants, strict=True):
            assert bits(got) == bits(expected)


@pytest.mark.parametrize("dtype", [np.float32, jax.numpy.bfloat16], ids=name)
def test_as_theirs(rng, dtype):
    q, k, v = (jax.numpy.asarray(normal(rng, 2, 30, 4, 8), dtype) for _ in range(3))

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")

    def ours(q, k, v):
        return attention(*(x.swapaxes(1, 2) for x in (q, k, v)), causal=True).swapaxes(1, 2)

    bound = 2e-5 if dtype == np.float32 else 3e-2
    answers = [jax.vjp(f, q, k, v) for f in (ours, theirs)]
    results = [(out, *pull(jax.numpy.ones_like(out) * q)) for out, pull in answers]
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype == dtype
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert np.abs(got - want).max() <= bound * np.abs(want).max()


def test_what_is_refused():
    x = jax.numpy.ones((2, 3, 4))
    with pytest.raises(TypeError, match="bias is not an option"):
        attention(x, x, x, bias=1)
    with pytest.raises(ValueError, match="as many axes"):
        attention(x[0], x, x)


def test_large_arrays_do_not_hang():
    """Arrays for which JAX copies in the background while its callback waits, in float64 too."""
    code = """
        import jax, numpy as np
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        from numformer.interop.jax import attention
        q = jax.numpy.ones((4, 8, 512, 64))
        step = jax.jit(jax.value_and_grad(lambda q: attention(q, q, q, window=(8, 8)).sum()))
        for _ in range(5):
            loss, grad = step(q)
        print(float(loss), bool(np.isfinite(np.asarray(grad)).all()), grad.dtype)
    """
    assert answer(code) == f"{4 * 8 * 512 * 64:.1f} True float64"
