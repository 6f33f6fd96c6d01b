"""Every operation and its gradients against PyTorch, in float64 and in the same dtype.

The bound of an error is that of tests/tolerance.py, derived for our kernels from the exact result, for which float64
stands. PyTorch in float32 is off by as much again, and its exponentials by a few units more: hence the factor 4 there.
"""

import numformer as nf
import numpy as np
import pytest
import tolerance
from arrays import heavy, name, normal
from numformer import reference
from tolerance import check, rounded

torch = pytest.importorskip("torch")
F = torch.nn.functional
FLOATS = pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=name)


def leaves(*arrays, dtype):
    return [torch.tensor(np.ascontiguousarray(x), dtype=dtype).requires_grad_() for x in arrays]


def judge(ours, theirs, arrays, dy, bounds, what):
    """`ours` (y, gradient, gradient, ...) and `theirs`, a function of tensors, with the bounds of each."""
    dtype = arrays[0].dtype
    for precision, factor in ((torch.float64, 1.0), (torch.float32, 4.0)):
        if precision == torch.float32 and dtype == np.float64:
            continue
        tensors = leaves(*arrays, dtype=precision)
        y = theirs(*tensors)
        gradients = torch.autograd.grad(y, tensors, torch.tensor(np.asarray(dy), dtype=precision).reshape(y.shape))
        for i, (got, want, bound) in enumerate(zip(ours, (y.detach(), *gradients), bounds, strict=True)):
            want = want.numpy().astype(np.float64)
            label = f"{what}, {'result' if i == 0 else f'gradient {i - 1}'}, beside {precision}"
            check(got, want, factor * rounded(bound, want, dtype), label)


@FLOATS
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_matmul(rng, dtype, activation):
    apply = {
        None: lambda z: z,
        "relu": torch.relu,
        "gelu": F.gelu,
        "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
        "silu": F.silu,
    }[activation]
    for m, k, n in ((3, 50, 20), (40, 600, 70)):
        a, b = normal(rng, m, k, dtype=dtype), normal(rng, k, n, dtype=dtype, scale=k**-0.5)
        bias, dy = normal(rng, n, dtype=dtype), normal(rng, m, n, dtype=dtype)
        y, z = nf.matmul(a, b, bias=bias, activation=activation, save_preactivation=True)
        if activation == "relu":
            dy[np.abs(z) < 1e-4] = 0  # near the kink rounding of z decides
        options = {"activation": activation}
        grads = nf.matmul_backward(dy, a, b, bias=bias, preactivation=z if activation else None, **options)
        bounds = [tolerance.matmul(a, b, dtype, bias=bias, **options)]
        # The slope is taken at z, which is itself rounded: |activation''| < 1.2.
        e_z = rounded(tolerance.matmul(a, b, dtype, bias=bias), z, dtype) if activation not in (None, "relu") else 0.0
        shift = reference.matmul_backward(np.abs(dy) * 1.2 * e_z, np.abs(a), np.abs(b), bias=bias)
        bounds += [e + s for e, s in zip(tolerance.matmul_backward(dy, a, b, dtype, **options), shift, strict=True)]
        judge((y, *grads), lambda a, b, bias: apply(a @ b + bias), (a, b, bias), dy, bounds, f"{m} x {k} x {n}")


def torch_mask(n, m, causal):
    diagonal = m - n if causal == "bottom_right" else 0
    return torch.ones(n, m, dtype=torch.bool).tril(diagonal)


@FLOATS
@pytest.mark.parametrize("which", ["plain", "top_left", "bottom_right", "mask", "scale", "changed"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "n", "m", "d"), [(4, 4, 33, 33, 16), (6, 2, 20, 130, 64), (2, 1, 1, 90, 80)]
)
def test_attention(rng, dtype, which, heads, kv_heads, n, m, d):
    q, k, v = (normal(rng, 2, h, s, d, dtype=dtype) for h, s in ((heads, n), (kv_heads, m), (kv_heads, m)))
    dout = normal(rng, 2, heads, n, d, dtype=dtype)
    options, theirs = {}, {}
    if which in ("top_left", "bottom_right"):
        options, theirs = {"causal": which}, {"attn_mask": torch_mask(n, m, which)}
    elif which == "mask":
        mask = rng.random((2, 1, n, m)) < 0.6
        mask[..., 0] = True
        options, theirs = {"mask": mask}, {"attn_mask": torch.tensor(mask)}
    elif which == "scale":
        options = theirs = {"scale": 0.3}
    arrays, extra = [q, k, v], ()
    if which == "changed":
        extra = "bias", "sinks"
        arrays += [normal(rng, heads, 1, m, dtype=dtype), normal(rng, heads, dtype=dtype)]
        slopes = normal(rng, heads, dtype=dtype)
        options = {"bias": arrays[3], "sinks": arrays[4], "softcap": 3.0, "alibi_slopes": slopes, "window": (30, 9)}
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    grads = nf.attention_backward(dout, q, k, v, out, lse, grads=extra, **options)
    bound, bound_lse = tolerance.attention(q, k, v, dtype, **options)
    back = tolerance.attention_backward(dout, q, k, v, out, lse, dtype, grads=extra, **options)
    if extra:
        grads, back = ((*x[:3], *(x[3][name] for name in extra)) for x in (grads, back))
    # Ours starts from its own out and lse: an error of lse is one of all probabilities, one of out goes into delta.
    e_lse = rounded(bound_lse, lse, dtype).max()
    e_out = rounded(bound, out, dtype)
    more = tolerance.attention_sensitivity(dout, q, k, v, out, lse, e_lse, e_out, grads=extra, **options)
    bounds = [bound, *(e + s for e, s in zip(back, more, strict=True))]

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **theirs)

    def attend_changed(q, k, v, bias, sinks):
        k, v = (x.repeat_interleave(heads // kv_heads, dim=-3) for x in (k, v))
        s = 3.0 * torch.tanh(q @ k.mT / d**0.5 / 3.0) + bias
        distance = torch.arange(m) - torch.arange(n)[:, None] - (m - n)
        s = s - torch.tensor(slopes, dtype=q.dtype)[:, None, None] * distance.abs()
        s = s.masked_fill((distance < -30) | (distance > 9), -torch.inf)
        s = torch.cat([s, sinks[:, None, None].expand(*s.shape[:-1], 1)], dim=-1)
        return torch.softmax(s, -1)[..., :-1] @ v

    judge((out, *grads), attend_changed if extra else attend, arrays, dout, bounds, which)


@FLOATS
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "n", "m", "d"), [(4, 4, 33, 47, 16), (2, 1, 120, 300, 20), (4, 2, 3, 90, 64)]
)
def test_attention_relative(rng, dtype, causal, heads, kv_heads, n, m, d):
    """Transformer-XL's scores by explicit matrices, with the gradients of r and of both biases."""
    q, k, v = (normal(rng, 2, h, s, d, dtype=dtype) for h, s in ((heads, n), (kv_heads, m), (kv_heads, m)))
    dout = normal(rng, 2, heads, n, d, dtype=dtype)
    origin = n + 2
    r, u, w = (normal(rng, heads, *shape, d, dtype=dtype) for shape in ((n + m + 5,), (), ()))
    options = {"causal": causal, "rel": (r, u, w, origin)}
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    *grads, more = nf.attention_backward(dout, q, k, v, out, lse, grads=("rel",), **options)
    bound, bound_lse = tolerance.attention(q, k, v, dtype, **options)
    *back, e_more = tolerance.attention_backward(dout, q, k, v, out, lse, dtype, grads=("rel",), **options)
    # Ours starts from its own out and lse, as above.
    given = rounded(bound_lse, lse, dtype).max(), rounded(bound, out, dtype)
    slips = tolerance.attention_sensitivity(dout, q, k, v, out, lse, *given, grads=("rel",), **options)
    bounds = [bound, *(e + s for e, s in zip((*back, *e_more["rel"]), slips, strict=True))]

    def attend(q, k, v, r, u, w):
        k, v = (x.repeat_interleave(heads // kv_heads, dim=-3) for x in (k, v))
        distance = torch.arange(n)[:, None] + m - n - torch.arange(m)
        s = (q + u[:, None]) @ k.mT + torch.einsum("bhid,hijd->bhij", q + w[:, None], r[:, origin + distance])
        if causal:
            s = s.masked_fill(distance < 0, -torch.inf)
        return torch.softmax(s / d**0.5, -1) @ v

    judge((out, *grads, *more["rel"]), attend, [q, k, v, r, u, w], dout, bounds, "relative")


@FLOATS
@pytest.mark.parametrize(
    ("f", "options"), [("relu", {}), ("gelu", {}), ("gelu", {"approximate": "tanh"}), ("silu", {})]
)
def test_activations(rng, dtype, f, options):
    x, dy = normal(rng, 30, 41, dtype=dtype, scale=2.0), normal(rng, 30, 41, dtype=dtype)
    label = f + ("_tanh" if options else "")
    y, dx = getattr(nf, f)(x, **options), getattr(nf, f + "_backward")(dy, x, **options)
    w = tolerance.u(dtype)
    # PyTorch takes 1 + tanh and 1 + erf, which cancel for x << 0: off by u * abs(x), not relative to the result.
    slack = 4 * w * np.abs(x), 4 * w * np.abs(dy) * (1 + np.abs(x))
    bounds = (
        tolerance.activation(x, label, dtype) + slack[0],
        tolerance.activation_backward(dy, x, label, dtype) + slack[1],
    )
    judge((y, dx), lambda x: getattr(F, f)(x, **options), (x,), dy, bounds, label)


@FLOATS
def test_softmax(rng, dtype):
    for axis in (-1, 0):
        x, dy = heavy(rng, 21, 37, dtype=dtype), normal(rng, 21, 37, dtype=dtype)
        y = nf.softmax(x, axis=axis)
        e = tolerance.softmax(x, axis, dtype)
        slip = rounded(e, y, dtype)  # the backward starts from the rounded y
        dot = np.abs((dy * y).sum(axis=axis, keepdims=True))
        back = tolerance.softmax_backward(dy, y, axis, dtype) + slip * (np.abs(dy) + dot)
        back = back + y * (slip * np.abs(dy)).sum(axis=axis, keepdims=True)
        ours = y, nf.softmax_backward(dy, y, axis=axis)
        judge(ours, lambda x: torch.softmax(x, axis), (x,), dy, (e, back), "softmax")


def _norm_slip(dy, x, weight, rstd, e_mean, e_rstd):
    """What errors of the statistics make of dx and dweight: dx is rstd times sums of h = (x - mean) * rstd."""
    r = rstd[..., None].astype(np.float64)
    relative = (e_rstd / rstd)[..., None]
    h = np.abs(x - x.mean(axis=-1, keepdims=True)) * r + np.abs(x) * r
    e_h = h * relative + e_mean[..., None] * r
    g = np.abs(dy * weight)
    c1, c2 = g.mean(axis=-1, keepdims=True), (g * h).mean(axis=-1, keepdims=True)
    dx = r * (relative * (g + c1 + h * c2) + e_h * c2 + h * (g * e_h).mean(axis=-1, keepdims=True))
    return dx, (np.abs(dy) * e_h).sum(axis=tuple(range(x.ndim - 1)))


@FLOATS
def test_layer_norm(rng, dtype):
    x, dy = normal(rng, 3, 20, 65, dtype=dtype), normal(rng, 3, 20, 65, dtype=dtype)
    w, b = normal(rng, 65, dtype=dtype), normal(rng, 65, dtype=dtype)
    y, mean, rstd = nf.layer_norm(x, w, b, return_stats=True)
    grads = nf.layer_norm_backward(dy, x, mean, rstd, w, bias=True)
    e, e_mean, e_rstd = tolerance.layer_norm(x, w, b, 1e-5, dtype)
    dx, dw = _norm_slip(dy, x, w, rstd, rounded(e_mean, mean, dtype), rounded(e_rstd, rstd, dtype))
    back = tolerance.norm_backward(dy, x, mean, rstd, w, None, dtype)
    bounds = e, back[0] + dx, back[1] + dw, back[2]
    judge((y, *grads), lambda x, w, b: F.layer_norm(x, (65,), w, b), (x, w, b), dy, bounds, "layer_norm")


@FLOATS
def test_rms_norm(rng, dtype):
    x, dy, w = normal(rng, 3, 20, 65, dtype=dtype), normal(rng, 3, 20, 65, dtype=dtype), normal(rng, 65, dtype=dtype)
    y, rstd = nf.rms_norm(x, w, return_stats=True)
    grads = nf.rms_norm_backward(dy, x, rstd, w)
    e, e_rstd = tolerance.rms_norm(x, w, 1e-6, dtype)
    dx, dw = _norm_slip(dy, x, w, rstd, np.zeros_like(rstd), rounded(e_rstd, rstd, dtype))
    back = tolerance.norm_backward(dy, x, None, rstd, w, None, dtype)
    bounds = e, back[0] + dx, back[1] + dw
    judge((y, *grads), lambda x, w: F.rms_norm(x, (65,), w, eps=1e-6), (x, w), dy, bounds, "rms_norm")


@FLOATS
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(rng, dtype, label_smoothing, reduction):
    x, targets = normal(rng, 40, 61, dtype=dtype, scale=3.0), rng.integers(0, 61, 40)
    targets[::5] = -100
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    loss, lse = nf.cross_entropy(x, targets, return_lse=True, **options)
    dloss = np.asarray(rng.standard_normal(np.shape(loss)), dtype)
    dx = nf.cross_entropy_backward(dloss, x, targets, lse, **options)
    e, e_lse = tolerance.cross_entropy(x, targets, label_smoothing, dtype)
    e = np.where(targets == -100, 0.0, e)
    if reduction != "none":
        rows = reference.cross_entropy(x, targets, label_smoothing=label_smoothing, reduction="none")
        e = e.sum() + tolerance.gamma(40, dtype) * np.abs(rows).sum()
        e = e / (targets != -100).sum() if reduction == "mean" else e
    back = tolerance.cross_entropy_backward(dloss, x, targets, lse, dtype, **options)
    weight = np.abs(dloss) / ((targets != -100).sum() if reduction == "mean" else 1)
    p = np.exp(x.astype(np.float64) - lse[:, None])
    back = back + p * np.broadcast_to(weight, 40)[:, None] * rounded(e_lse, lse, dtype)[:, None]

    def theirs(x):
        return F.cross_entropy(x, torch.tensor(targets), **options)

    judge((loss, dx), theirs, (x,), dloss, (e, back), "cross_entropy")


@FLOATS
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear_cross_entropy(rng, dtype, label_smoothing, reduction):
    x, weight = normal(rng, 70, 33, dtype=dtype), normal(rng, 61, 33, dtype=dtype, scale=0.3)
    bias, targets = normal(rng, 61, dtype=dtype), rng.integers(0, 61, 70)
    targets[::5] = -100
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    dloss = float(rng.standard_normal())
    ours = nf.linear_cross_entropy(x, weight, targets, bias=bias, dloss=dloss, chunk=30, **options)
    bounds = tolerance.linear_cross_entropy(x, weight, targets, dtype, bias=bias, dloss=dloss, **options)

    def theirs(x, weight, bias):
        return F.cross_entropy(F.linear(x, weight, bias), torch.tensor(targets), **options)

    judge(ours, theirs, (x, weight, bias), dloss, bounds, "linear_cross_entropy")


@FLOATS
def test_embedding(rng, dtype):
    w, ids = normal(rng, 11, 9, dtype=dtype), rng.integers(0, 11, (5, 20))
    dy = normal(rng, 5, 20, 9, dtype=dtype)
    ours = nf.embedding(w, ids), nf.embedding_backward(dy, ids, 11)
    bounds = np.zeros((5, 20, 9)), tolerance.embedding_backward(dy, ids, 11, dtype)
    judge(ours, lambda w: F.embedding(torch.tensor(ids), w), (w,), dy, bounds, "embedding")


@FLOATS
def test_add_and_sum_rows(rng, dtype):
    x, b, dy = normal(rng, 30, 7, dtype=dtype), normal(rng, 7, dtype=dtype), normal(rng, 30, 7, dtype=dtype)
    y = nf.add(x, np.broadcast_to(b, x.shape))
    bounds = np.zeros(x.shape), np.zeros(x.shape), tolerance.sum_rows(dy, dtype)
    judge((y, dy, nf.sum_rows(dy)), lambda x, b: x + b, (x, b), dy, bounds, "add")
