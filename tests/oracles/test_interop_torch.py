"""PyTorch: its tensors in every function without a copy, ours as its own, and our attention in its graph."""

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, bits, name, normal, same

torch = pytest.importorskip("torch")

from numformer.interop.torch import attention, tensor_of  # noqa: E402


def tensor(array):
    """A copy as a tensor, by way of PyTorch's own arithmetic."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_without_a_copy_both_ways(rng, dtype):
    a = normal(rng, 5, 7, dtype=dtype)
    t = tensor(a)
    for theirs, ours in ((t, a), (t.T, a.T), (t[1:, ::2], a[1:, ::2]), (t[:0], a[:0]), (t[2, 3], a[2, 3, ...])):
        view = nf.from_dlpack(theirs)
        assert same(view, ours)
        assert not view.size or view.ctypes.data == theirs.data_ptr()
    view[...] = 3  # the last one: one element
    assert t[2, 3] == 3
    result = nf.matmul(t, t.T)
    back = torch.from_dlpack(nf.to_dlpack(result))
    assert back.data_ptr() == result.ctypes.data and back.dtype == t.dtype and list(back.shape) == [5, 5]
    assert bits(nf.from_dlpack(back)) == bits(result)
    if dtype != ml_dtypes.bfloat16:
        assert torch.from_numpy(result).data_ptr() == result.ctypes.data
        assert torch.from_dlpack(result).data_ptr() == result.ctypes.data
    big = nf.relu(np.ones((300, 300), dtype))  # the pool's
    back = torch.from_dlpack(nf.to_dlpack(big))
    del big
    assert (back == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_operations_take_tensors(rng, dtype):
    q, k, v, dout = (normal(rng, 2, 3, 9, 8, dtype=dtype) for _ in range(4))
    w, ids = normal(rng, 8, dtype=dtype), rng.integers(0, 9, 6)
    mask = rng.random((9, 9)) < 0.7
    out, lse = nf.attention(q, k, v, mask=mask, return_lse=True)
    table = np.ascontiguousarray(q[0, 0])
    calls = [
        (lambda q, k, v, m: nf.attention(q, k, v, mask=m, return_lse=True), (q, k, v, mask)),
        (
            lambda d, q, k, v, o, s, m: nf.attention_backward(d, q, k, v, o, s, mask=m),
            (dout, q, k, v, out, lse, mask),
        ),
        (nf.layer_norm, (q, w, w)),
        (lambda x, w: nf.rms_norm(x, w, return_stats=True), (q, w)),
        (nf.gelu, (q,)),
        (nf.softmax_backward, (dout, q)),
        (nf.add, (q, k)),
        (nf.embedding, (table, ids)),
        (lambda d, i: nf.embedding_backward(d, i, 9), (np.ascontiguousarray(q[0, 0, :6]), ids)),
        (lambda x, t: nf.cross_entropy(x, t, return_lse=True), (table, rng.integers(0, 8, 9))),
        (lambda x: nf.dropout(x, 0.3, seed=1), (q,)),
        (lambda a, b, c: nf.matmul(a, b, bias=c, activation="gelu"), (q, np.ascontiguousarray(table[:8]), w)),
        (nf.matmul_backward, (dout, q, np.ascontiguousarray(table[:8]))),
    ]
    for call, arrays in calls:
        assert same(call(*map(tensor, arrays)), call(*arrays))


def test_what_is_refused():
    t = torch.ones(3, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"softmax: x cannot be taken by DLPack \(.*require gradient"):
        nf.softmax(t)
    with pytest.raises(ValueError, match="softmax: x"):
        nf.softmax(torch.ones(3, 4, device="meta"))
    with pytest.raises(ValueError, match="softmax: x"):
        nf.softmax(torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="softmax: x must have dtype"):
        nf.softmax(torch.ones(3, dtype=torch.int8))
    with pytest.raises(TypeError, match="softmax: x"):
        nf.softmax(torch.ones(3).to(torch.float8_e4m3fn))
    with pytest.raises(TypeError, match="rel is not an option"):
        attention(t, t, t, rel=())


OPTIONS = [
    {},
    {"causal": True},
    {"window": (3, 1), "softcap": 4.0},
    {"causal": "top_left", "bias": True, "sinks": True},
    {"mask": True, "bias": True, "scale": 0.3},
    {"dropout": 0.3, "seed": 5, "sinks": True},
]


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_gradients_by_differences(rng, number):
    """PyTorch's own check of a function's backward, in float64."""
    q, k, v = (tensor(normal(rng, 2, h, n, 5, dtype=np.float64)) for h, n in ((4, 6), (2, 7), (2, 7)))
    options = dict(OPTIONS[number])
    bias = tensor(normal(rng, 4, 1, 7, dtype=np.float64)).requires_grad_() if options.pop("bias", None) else None
    sinks = tensor(normal(rng, 4, dtype=np.float64)).requires_grad_() if options.pop("sinks", None) else None
    if options.pop("mask", None):
        options["mask"] = torch.from_numpy(rng.random((2, 1, 6, 7)) < 0.7)
    for x in (q, k, v):
        x.requires_grad_()

    def f(q, k, v, bias, sinks):
        return attention(q, k, v, bias=bias, sinks=sinks, **options)

    assert torch.autograd.gradcheck(f, (q, k, v, bias, sinks), fast_mode=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_theirs(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 33, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    ours = attention(q, k, v, causal=True)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    dout = torch.randn(ours.shape, generator=generator).to(dtype)
    gradients = [torch.autograd.grad(out, (q, k, v), dout) for out in (ours, theirs)]
    bound = 2e-5 if dtype == torch.float32 else 3e-2
    for got, want in zip((ours, *gradients[0]), (theirs, *gradients[1]), strict=True):
        assert got.dtype == dtype
        assert (got - want).abs().max() <= bound * want.abs().max()


def test_graph():
    """No gradient wanted: nothing is kept. A gradient that comes expanded, with stride 0, is taken."""
    q = torch.randn(2, 4, 8)
    assert attention(q, q, q).grad_fn is None
    assert attention(q, q, q.clone().requires_grad_()).grad_fn is not None
    x, y = (q.clone().requires_grad_() for _ in range(2))
    attention(x, x, x).sum().backward()
    torch.nn.functional.scaled_dot_product_attention(y, y, y).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-5)
    assert tensor_of(np.ones(3)).dtype == torch.float64
