"""What csrc/cuda/README.md says of the native module, done by the CPU's kernels in the same memory.

With it the Python of the CUDA backend is tested at the speed of the CPU, also where the module for the host is not
built; that one runs the kernels themselves.
"""

import ctypes
from contextlib import suppress
from types import FunctionType, ModuleType, SimpleNamespace

import ml_dtypes
import numformer as nf
import numpy as np

calls = []


def view(described):
    """The array that is described."""
    if described is None:
        return None
    pointer, shape, strides, name = described
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if 0 in shape:
        return np.empty(shape, dtype)
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    assert pointer % dtype.itemsize == 0
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * ((reach + 1) * dtype.itemsize)).from_address(pointer)
    return np.ndarray(shape, dtype, memory, 0, tuple(stride * dtype.itemsize for stride in strides))


def views(described):
    return None if described is None else [view(one) for one in described]


def _contiguous(*arrays):
    assert all(x is None or x.flags.c_contiguous for x in arrays)


def activation(out, x, name, stream):
    out, x = view(out), view(x)
    _contiguous(out, x)
    if name.startswith("gelu"):
        out[...] = nf.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")
    else:
        out[...] = getattr(nf, name)(x)


def activation_backward(dx, dy, x, name, stream):
    dx, dy, x = view(dx), view(dy), view(x)
    _contiguous(dx, dy, x)
    if name.startswith("gelu"):
        dx[...] = nf.gelu_backward(dy, x, approximate="tanh" if name == "gelu_tanh" else "none")
    else:
        dx[...] = getattr(nf, f"{name}_backward")(dy, x)


def add(out, a, b, stream):
    view(out)[...] = nf.add(view(a), view(b))


def cast(out, x, scale, stream):
    out = view(out)
    out[...] = nf.cast(view(x), out.dtype, scale=scale)


def sum_rows(out, x, accumulate, allocate, stream):
    nf.sum_rows(view(x), out=view(out), accumulate=accumulate)


def softmax(out, x, stream):
    view(out)[...] = nf.softmax(view(x))


def softmax_backward(dx, dy, y, stream):
    view(dx)[...] = nf.softmax_backward(view(dy), view(y))


def dropout(out, x, residual, p, seed, layer, step, sample, samples, starts, stream):
    out, x, residual, starts = view(out), view(x), view(residual), view(starts)
    place = {"seed": seed, "layer": layer, "step": step, "sample": sample}
    if starts is not None:
        place["cu_seqlens"] = starts // (x.size // x.shape[0])
    else:
        assert samples == x.shape[0]
    out[...] = nf.dropout(x, p, residual=residual, **place)


def embedding(out, weight, ids, stream):
    out, weight, ids = view(out), view(weight), view(ids)
    inside = (ids >= 0) & (ids < len(weight))
    out[...] = np.nan
    out[inside] = nf.embedding(weight, ids[inside])


def embedding_backward(dweight, dy, ids, accumulate, allocate, stream):
    dweight, dy, ids = view(dweight), view(dy), view(ids)
    inside = (ids >= 0) & (ids < len(dweight))
    nf.embedding_backward(dy[inside], ids[inside], len(dweight), accumulate=accumulate, out=dweight)


def layer_norm(out, mean, rstd, x, weight, bias, eps, stream):
    y, *statistics = nf.layer_norm(view(x), view(weight), view(bias), eps=eps, return_stats=True)
    view(out)[...] = y
    for given, found in zip((mean, rstd), statistics, strict=True):
        if given is not None:
            view(given)[...] = found


def rms_norm(out, rstd, x, weight, eps, stream):
    y, found = nf.rms_norm(view(x), view(weight), eps=eps, return_stats=True)
    view(out)[...] = y
    if rstd is not None:
        view(rstd)[...] = found


def layer_norm_backward(dx, dweight, dbias, dy, x, mean, rstd, weight, residual, allocate, stream):
    arrays = [view(one) for one in (dy, x, mean, rstd, weight)]
    found = nf.layer_norm_backward(*arrays, bias=dbias is not None, residual=view(residual))
    for given, gradient in zip((dx, dweight, dbias), found, strict=True):
        if given is not None:
            view(given)[...] = gradient


def rms_norm_backward(dx, dweight, dy, x, rstd, weight, residual, allocate, stream):
    found = nf.rms_norm_backward(*[view(one) for one in (dy, x, rstd, weight)], residual=view(residual))
    for given, gradient in zip((dx, dweight), found, strict=True):
        if given is not None:
            view(given)[...] = gradient


def cross_entropy(loss, losses, lse, logits, targets, ignore_index, label_smoothing, reduction, stream):
    logits, targets, options = view(logits), view(targets), {"label_smoothing": label_smoothing}
    wrong = _outside_of(logits, targets, ignore_index)
    targets = np.where(wrong, ignore_index, targets)
    rows, found = nf.cross_entropy(
        logits, targets, reduction="none", return_lse=True, ignore_index=ignore_index, **options
    )
    view(losses)[...] = np.where(wrong, np.nan, rows)
    view(lse)[...] = found
    if loss is not None:
        total = nf.cross_entropy(logits, targets, reduction=reduction, ignore_index=ignore_index, **options)
        view(loss)[...] = np.nan if wrong.any() else total


def _outside_of(logits, targets, ignore_index):
    return ((targets < 0) | (targets >= logits.shape[-1])) & (targets != ignore_index)


def cross_entropy_backward(
    dlogits, dloss, logits, targets, lse, ignore_index, label_smoothing, reduction, allocate, stream
):
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    dlogits, dloss, logits, targets, lse = (view(one) for one in (dlogits, dloss, logits, targets, lse))
    wrong = _outside_of(logits, targets, ignore_index)
    dlogits[...] = nf.cross_entropy_backward(dloss, logits, np.where(wrong, ignore_index, targets), lse, **options)
    dlogits[wrong] = np.nan


def count_targets(count, targets, ignore_index, mean, stream):
    view(count)[...] = max(np.count_nonzero(view(targets) != ignore_index), 1) if mean else 1


def cross_entropy_gradient(losses, dlogits, logits, targets, count, ignore_index, label_smoothing, dloss, stream):
    logits, targets, dlogits = view(logits), view(targets), view(dlogits)
    wrong = _outside_of(logits, targets, ignore_index)
    targets = np.where(wrong, ignore_index, targets)
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    rows, lse = nf.cross_entropy(logits, targets, reduction="none", return_lse=True, **options)
    upstream = logits.dtype.type(dloss / view(count)[0])
    view(losses)[...] = np.where(wrong, np.nan, rows)
    dlogits[...] = nf.cross_entropy_backward(upstream, logits, targets, lse, reduction="sum", **options)


def global_norm(out, arrays, allocate, stream):
    view(out)[...] = nf.global_norm(views(arrays))


class _NotFiniteError(Exception):
    """A norm that is not finite: the update changes nothing."""


def _clipped(grad_scale, norm, max_norm):
    found = view(norm)
    if found is None:
        return grad_scale
    if not np.isfinite(found):
        raise _NotFiniteError
    return grad_scale * min(1.0, max_norm / (grad_scale * float(found) + 1e-6))


def adam_update(
    values,
    grads,
    m,
    v,
    copies,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    step,
    grad_scale,
    decoupled,
    norm,
    max_norm,
    stream,
):
    lists = [views(one) for one in (values, grads, m, v)]
    options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "step": step}
    rule = nf.adamw_update if decoupled else nf.adam_update
    rule(*lists, grad_scale=_clipped(grad_scale, norm, max_norm), copies=views(copies), **options)


def sgd_update(
    values, grads, momenta, copies, lr, momentum, nesterov, weight_decay, grad_scale, norm, max_norm, stream
):
    lists = [views(one) for one in (values, grads, momenta)]
    options = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    nf.sgd_update(*lists, grad_scale=_clipped(grad_scale, norm, max_norm), copies=views(copies), **options)


def adagrad_update(values, grads, sums, copies, lr, eps, weight_decay, grad_scale, norm, max_norm, stream):
    lists = [views(one) for one in (values, grads, sums)]
    scale = _clipped(grad_scale, norm, max_norm)
    nf.adagrad_update(*lists, lr=lr, eps=eps, weight_decay=weight_decay, grad_scale=scale, copies=views(copies))


def rmsprop_update(values, grads, squares, means, momenta, copies, lr, alpha, eps, weight_decay, momentum, *more):
    grad_scale, norm, max_norm, _ = more
    lists = [views(one) for one in (values, grads, squares, means, momenta)]
    options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    nf.rmsprop_update(*lists, grad_scale=_clipped(grad_scale, norm, max_norm), copies=views(copies), **options)


def lion_update(values, grads, m, copies, lr, beta1, beta2, weight_decay, grad_scale, norm, max_norm, stream):
    rule = SimpleNamespace(beta1=beta1, beta2=beta2)
    options = {"lr": lr, "weight_decay": weight_decay, "step": 1, "copies": views(copies)}
    scale = _clipped(grad_scale, norm, max_norm)
    nf.optim.Lion._update(rule, views(values), views(grads), [views(m)], grad_scale=scale, **options)


def adafactor_update(values, grads, rows, columns, copies, lr, share, rate, eps1, eps2, d, weight_decay, *more):
    grad_scale, norm, max_norm, _, _ = more
    step = share ** (1 / -0.8)
    assert abs(rate - min(lr, step**-0.5)) < 1e-9
    rule = SimpleNamespace(beta2_decay=-0.8, eps1=eps1, eps2=eps2, d=d)
    state = [views(rows), views(columns)]
    options = {"lr": lr, "weight_decay": weight_decay, "step": step, "copies": views(copies)}
    scale = _clipped(grad_scale, norm, max_norm)
    nf.optim.Adafactor._update(rule, views(values), views(grads), state, grad_scale=scale, **options)


def matmul(out, a, b, bias, activation, residual, preactivation, scale, accumulate, allocate, stream):
    out, a, b, bias, residual, z = (view(one) for one in (out, a, b, bias, residual, preactivation))
    _contiguous(bias, residual, z)
    assert out.size == 0 or out.shape[-1] == 1 or out.strides[-1] == out.itemsize
    assert out.shape[:-2] == a.shape[:-2] == b.shape[:-2]
    options = {"bias": bias, "activation": activation, "residual": residual, "scale": scale, "accumulate": accumulate}
    found = nf.matmul(a, b, out=out, save_preactivation=z is not None, **options)
    if z is not None:
        z[...] = found[1]


def _options(options):
    """Those of the twin, and whether sequences are packed."""
    arrays = ("mask", "bias", "alibi_slopes", "sinks", "global_tokens", "cu_seqlens_q", "cu_seqlens_k")
    found = {name: view(value) if name in arrays else value for name, value in options.items() if value is not None}
    if "rel" in found:
        found["rel"] = (*map(view, found["rel"][:3]), found["rel"][3])
    starts = [found.pop(name) for name in ("cu_seqlens_q", "cu_seqlens_k") if name in found]
    kernel = found.pop("kernel", None)
    if kernel not in (None, "mma.sync", "wgmma"):
        raise ValueError(f"attention: kernel must be None, 'mma.sync' or 'wgmma', got '{kernel}'")
    return found, starts


def _outside(starts, *arrays):
    return [x.swapaxes(0, 1) for x in arrays] if starts else arrays


def attention(out, lse, q, k, v, options, allocate, stream):
    found, starts = _options(options)
    out, q, k, v = _outside(starts, *(view(one) for one in (out, q, k, v)))
    if not np.isfinite(found.get("alibi_slopes", 0.0)).all():
        out[...] = np.nan
        return "mma.sync"
    function = nf.attention_varlen if starts else nf.attention
    y, rows = function(q, k, v, *starts, return_lse=True, **found)
    out[...] = y
    if lse is not None:
        view(lse)[...] = rows
    return "mma.sync"


def attention_backward(dq, dk, dv, dout, q, k, v, out, lse, dlse, options, grads, allocate, stream):
    found, starts = _options(options)
    written = _outside(starts, *(view(one) for one in (dq, dk, dv)))
    arrays = _outside(starts, *(view(one) for one in (dout, q, k, v, out)))
    function = nf.attention_varlen_backward if starts else nf.attention_backward
    result = function(*arrays, view(lse), *starts, dlse=view(dlse), grads=tuple(grads), **found)
    for target, gradient in zip(written, result, strict=False):
        target[...] = gradient
    for name, given in grads.items():
        several = zip(given, result[3][name], strict=True) if name == "rel" else [(given, result[3][name])]
        for target, gradient in several:
            view(target)[...] = gradient


def _noted(name, function):
    def call(*arguments):
        calls.append(name)
        assert isinstance(arguments[-1], int)
        with suppress(_NotFiniteError):
            return function(*arguments)

    return call


core = ModuleType("numformer_cuda._core")
core.runtime_version = 13000
for _name, _function in list(globals().items()):
    if isinstance(_function, FunctionType) and not _name.startswith("_") and _name not in ("view", "views"):
        setattr(core, _name, _noted(_name, _function))
