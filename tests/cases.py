"""One call of every operation, big enough to be worth threads: for what must hold of all of them."""

from collections.abc import Callable
from typing import Any

import numformer as nf
import numpy as np
from arrays import DTYPES, heavy, normal

Rng = np.random.Generator
Case = Callable[[Rng, Any], Callable[[], Any]]


def _matmul(rng: Rng, dtype: Any) -> Callable[[], Any]:
    a, b, bias = normal(rng, 257, 515, dtype=dtype), normal(rng, 515, 389, dtype=dtype), normal(rng, 389, dtype=dtype)
    residual = normal(rng, 257, 389, dtype=dtype)
    return lambda: nf.matmul(a, b, bias=bias, activation="gelu", residual=residual, save_preactivation=True)


def _matmul_batch(rng: Rng, dtype: Any) -> Callable[[], Any]:
    a, b = normal(rng, 9, 67, 65, dtype=dtype), normal(rng, 9, 33, 65, dtype=dtype)
    return lambda: nf.matmul(a, b.swapaxes(-1, -2))


def _matmul_few_rows(rng: Rng, dtype: Any) -> Callable[[], Any]:
    a, b, c = (
        normal(rng, 3, 1037, dtype=dtype),
        normal(rng, 1037, 771, dtype=dtype),
        normal(rng, 771, 1037, dtype=dtype),
    )
    return lambda: (nf.matmul(a, b), nf.matmul(a, c.T))


def _matmul_backward(rng: Rng, dtype: Any) -> Callable[[], Any]:
    a, b, bias = normal(rng, 261, 130, dtype=dtype), normal(rng, 130, 259, dtype=dtype), normal(rng, 259, dtype=dtype)
    dy, z = normal(rng, 261, 259, dtype=dtype), normal(rng, 261, 259, dtype=dtype)
    return lambda: nf.matmul_backward(dy, a, b, bias=bias, activation="silu", preactivation=z)


def _attention(rng: Rng, dtype: Any) -> Callable[[], Any]:
    q, k, v = (normal(rng, 2, h, n, 40, dtype=dtype) for h, n in ((6, 193), (2, 301), (2, 301)))
    mask = rng.random((2, 1, 193, 301)) < 0.7
    return lambda: nf.attention(q, k, v, causal=True, mask=mask, return_lse=True)


def _attention_decode(rng: Rng, dtype: Any) -> Callable[[], Any]:
    q, k, v = (normal(rng, 2, h, n, 64, dtype=dtype) for h, n in ((4, 1), (4, 1203), (4, 1203)))
    return lambda: nf.attention(q, k, v, causal=True, return_lse=True)


def _attention_backward(rng: Rng, dtype: Any) -> Callable[[], Any]:
    q, k, v = (normal(rng, h, n, 33, dtype=dtype) for h, n in ((4, 315), (2, 277), (2, 277)))
    dout = normal(rng, 4, 315, 33, dtype=dtype)
    out, lse = nf.attention(q, k, v, causal=True, return_lse=True)
    return lambda: nf.attention_backward(dout, q, k, v, out, lse, causal=True)


def _attention_scores(rng: Rng, dtype: Any) -> Callable[[], Any]:
    q, k, v, dout = (normal(rng, 2, h, n, 40, dtype=dtype) for h, n in ((6, 193), (2, 301), (2, 301), (6, 193)))
    options = {"bias": normal(rng, 193, 301, dtype=dtype), "sinks": normal(rng, 6, dtype=dtype), "softcap": 5.0}
    options |= {"alibi_slopes": normal(rng, 6, dtype=dtype), "dropout": 0.2, "seed": 3, "causal": True}

    def run() -> Any:
        out, lse = nf.attention(q, k, v, return_lse=True, **options)
        *grads, more = nf.attention_backward(dout, q, k, v, out, lse, grads=("bias", "sinks"), **options)
        return out, lse, *grads, more["bias"], more["sinks"]

    return run


def _attention_one_head(rng: Rng, dtype: Any) -> Callable[[], Any]:
    q, k, v, dout = (normal(rng, 1, 1, 700, 64, dtype=dtype) for _ in range(4))
    out, lse = nf.attention(q, k, v, return_lse=True)
    return lambda: (nf.attention(q, k, v), *nf.attention_backward(dout, q, k, v, out, lse))


def _attention_varlen(rng: Rng, dtype: Any) -> Callable[[], Any]:
    q, k, v, dout = (normal(rng, n, h, 40, dtype=dtype) for n, h in ((401, 4), (517, 2), (517, 2), (401, 4)))
    cu_q, cu_k = np.array([0, 1, 150, 401]), np.array([0, 9, 300, 517])
    options = {"causal": True, "dropout": 0.1, "seed": 4, "alibi_slopes": normal(rng, 4, dtype=dtype)}

    def run() -> Any:
        out, lse = nf.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **options)
        return out, lse, *nf.attention_varlen_backward(dout, q, k, v, out, lse, cu_q, cu_k, **options)

    return run


def _attention_global(rng: Rng, dtype: Any) -> Callable[[], Any]:
    q, dout = normal(rng, 2, 3, 257, 32, dtype=dtype), normal(rng, 2, 3, 257, 32, dtype=dtype)
    options = {"window": (20, 20), "global_tokens": rng.random((2, 257)) < 0.05}

    def run() -> Any:
        out, lse = nf.attention(q, q, q, return_lse=True, **options)
        return out, lse, *nf.attention_backward(dout, q, q, q, out, lse, **options)

    return run


def _attention_relative(rng: Rng, dtype: Any) -> Callable[[], Any]:
    q, k, dout = (normal(rng, 2, 3, n, 32, dtype=dtype) for n in (97, 161, 97))
    r, u, v = normal(rng, 3, 161, 32, dtype=dtype), normal(rng, 3, 32, dtype=dtype), normal(rng, 3, 32, dtype=dtype)
    options = {"causal": True, "rel": (r, u, v, 0)}

    def run() -> Any:
        out, lse = nf.attention(q, k, k, return_lse=True, **options)
        *grads, more = nf.attention_backward(dout, q, k, k, out, lse, grads=("rel",), **options)
        return out, lse, *grads, *more["rel"]

    return run


def _kv_cache(rng: Rng, dtype: Any) -> Callable[[], Any]:
    x = normal(rng, 1, 4, 300, 64, dtype=dtype)

    def run() -> Any:
        cache, outs = nf.KVCache(8), []
        for piece in (x[..., :290, :], *(x[..., i : i + 1, :] for i in range(290, 300))):
            outs.append(nf.attention(piece, *cache.append(piece, piece), causal=True))
        return tuple(outs)

    return run


def _packed_matrix(rng: Rng, dtype: Any) -> Callable[[], Any]:
    a, b = normal(rng, 5, 300, dtype=dtype), normal(rng, 300, 210, dtype=dtype)

    def run() -> Any:
        packed = nf.PackedMatrix(b)
        out = nf.matmul(a, packed), packed.unpack()
        return out if dtype == np.float64 else (*out, nf.matmul(a, nf.PackedMatrix(b, dtype=np.int8)))

    return run


def _rows(f: Callable[..., Any], count: int = 1) -> Case:
    def case(rng: Rng, dtype: Any) -> Callable[[], Any]:
        xs = [normal(rng, 403, 387, dtype=dtype, scale=3.0) for _ in range(count)]
        return lambda: f(*xs)

    return case


def _layer_norm(rng: Rng, dtype: Any) -> Callable[[], Any]:
    x, dy, res = (normal(rng, 3, 331, 257, dtype=dtype) for _ in range(3))
    w, b = normal(rng, 257, dtype=dtype), normal(rng, 257, dtype=dtype)
    _, mean, rstd = nf.layer_norm(x, w, b, return_stats=True)
    return lambda: (
        *nf.layer_norm(x, w, b, return_stats=True),
        *nf.layer_norm_backward(dy, x, mean, rstd, w, bias=True, residual=res),
    )


def _rms_norm(rng: Rng, dtype: Any) -> Callable[[], Any]:
    x, dy = (normal(rng, 3, 331, 257, dtype=dtype) for _ in range(2))
    w = normal(rng, 257, dtype=dtype)
    _, rstd = nf.rms_norm(x, w, return_stats=True)
    return lambda: (*nf.rms_norm(x, w, return_stats=True), *nf.rms_norm_backward(dy, x, rstd, w))


def _cross_entropy(rng: Rng, dtype: Any) -> Callable[[], Any]:
    logits, targets = heavy(rng, 611, 263, dtype=dtype, limit=30.0), rng.integers(0, 263, 611)
    targets[::7] = -100

    def run() -> Any:
        loss, lse = nf.cross_entropy(logits, targets, label_smoothing=0.1, return_lse=True)
        d = nf.cross_entropy_backward(np.ones_like(loss), logits, targets, lse, label_smoothing=0.1)
        return loss, lse, d

    return run


def _linear_cross_entropy(rng: Rng, dtype: Any) -> Callable[[], Any]:
    x, weight, targets = normal(rng, 211, 65, dtype=dtype), normal(rng, 531, 65, dtype=dtype), rng.integers(0, 531, 211)
    targets[::7] = -100
    options = {"bias": normal(rng, 531, dtype=dtype), "label_smoothing": 0.1, "chunk": 50}
    return lambda: nf.linear_cross_entropy(x, weight, targets, **options)


def _embedding(rng: Rng, dtype: Any) -> Callable[[], Any]:
    w, ids, dy = normal(rng, 61, 203, dtype=dtype), rng.integers(0, 61, (7, 301)), normal(rng, 7, 301, 203, dtype=dtype)
    return lambda: (nf.embedding(w, ids), nf.embedding_backward(dy, ids, 61))


def _dropout(rng: Rng, dtype: Any) -> Callable[[], Any]:
    x = normal(rng, 7, 113, 211, dtype=dtype)
    options = {"seed": 5, "layer": 3, "step": 11, "sample": 2}
    return lambda: (nf.dropout(x, 0.3, residual=x, **options), nf.dropout_backward(x, 0.3, **options))


def _updates(rng: Rng, dtype: Any) -> Callable[[], Any]:
    dtype = np.float64 if dtype == np.float64 else np.float32  # the only ones that parameters may have
    sizes = (100_003, 17, 0, 40_000)
    first = [[normal(rng, n, dtype=dtype) for n in sizes] for _ in range(3)]
    first.append([np.abs(normal(rng, n, dtype=dtype)) for n in sizes])

    def run() -> Any:
        w, g, m, v = ([x.copy() for x in xs] for xs in first)
        nf.adamw_update(w, g, m, v, lr=1e-2, step=3, grad_scale=0.5)
        nf.sgd_update(w, g, m, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1)
        nf.adam_update(w, g, m, v, lr=1e-2, step=4)
        nf.adagrad_update(w, g, v, lr=1e-2)
        nf.rmsprop_update(w, g, v, lr=1e-2)
        return (*w, *m, *v, np.float64(nf.global_norm(g)))

    return run


CASES: dict[str, Case] = {
    "matmul": _matmul,
    "matmul_batch": _matmul_batch,
    "matmul_few_rows": _matmul_few_rows,
    "matmul_backward": _matmul_backward,
    "attention": _attention,
    "attention_decode": _attention_decode,
    "attention_backward": _attention_backward,
    "attention_scores": _attention_scores,
    "attention_one_head": _attention_one_head,
    "attention_varlen": _attention_varlen,
    "attention_global": _attention_global,
    "attention_relative": _attention_relative,
    "kv_cache": _kv_cache,
    "packed_matrix": _packed_matrix,
    "softmax": _rows(lambda x, dy: (nf.softmax(x), nf.softmax(x, axis=0), nf.softmax_backward(dy, nf.softmax(x))), 2),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "relu": _rows(lambda x, dy: (nf.relu(x), nf.relu_backward(dy, x)), 2),
    "gelu": _rows(lambda x, dy: (nf.gelu(x), nf.gelu_backward(dy, x)), 2),
    "gelu_tanh": _rows(lambda x, dy: (nf.gelu(x, approximate="tanh"), nf.gelu_backward(dy, x, approximate="tanh")), 2),
    "silu": _rows(lambda x, dy: (nf.silu(x), nf.silu_backward(dy, x)), 2),
    "cross_entropy": _cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
    "embedding": _embedding,
    "dropout": _dropout,
    "add": _rows(lambda a, b: (nf.add(a, b), nf.add(a, b[0])), 2),
    "cast": _rows(lambda x: tuple(nf.cast(x, dtype, scale=0.7) for dtype in DTYPES)),
    "sum_rows": _rows(nf.sum_rows),
    "updates": _updates,
}
