"""Every operation once on small arrays of odd sizes, in every dtype: for tools under which a call takes long."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numformer as nf
import numpy as np
from arrays import DTYPES, normal


def main() -> None:
    rng = np.random.default_rng(0)
    calls = 0
    for dtype in DTYPES:
        x, dy, w = normal(rng, 5, 13, dtype=dtype), normal(rng, 5, 13, dtype=dtype), normal(rng, 13, dtype=dtype)
        q, k, v = (normal(rng, 2, h, n, 7, dtype=dtype) for h, n in ((4, 9), (2, 11), (2, 11)))
        mask, bias = rng.random((9, 11)) < 0.6, normal(rng, 4, 1, 11, dtype=dtype)
        starts, ids = np.array([0, 3, 3, 9]), rng.integers(0, 5, 7)
        for options in ({}, {"causal": True}, {"window": (2, 1), "mask": mask}, {"bias": bias, "softcap": 3.0}):
            out, lse = nf.attention(q, k, v, return_lse=True, **options)
            nf.attention_backward(out, q, k, v, out, lse, **options)
            nf.attention(q[:, :, :1], k, v, bias=None, causal=True)
        packed = np.ascontiguousarray(q[0].swapaxes(0, 1))
        out, lse = nf.attention_varlen(packed, packed, packed, starts, starts, causal=True, return_lse=True)
        nf.attention_varlen_backward(out, packed, packed, packed, out, lse, starts, starts, causal=True)
        for a, b in ((x, dy.T), (x[:1], dy.T), (x.T, dy), (normal(rng, 3, 19, 5, dtype=dtype), x)):
            nf.matmul(a, b, activation="gelu", save_preactivation=True)
        nf.matmul_backward(normal(rng, 5, 5, dtype=dtype), x, dy.T, bias=w)
        _, mean, rstd = nf.layer_norm(x, w, w, return_stats=True)
        nf.layer_norm_backward(dy, x, mean, rstd, w, bias=True, residual=dy)
        _, rstd = nf.rms_norm(x, w, return_stats=True)
        nf.rms_norm_backward(dy, x, rstd, w)
        for f, b in ((nf.relu, nf.relu_backward), (nf.gelu, nf.gelu_backward), (nf.silu, nf.silu_backward)):
            f(x), b(dy, x)
        nf.softmax_backward(dy, nf.softmax(x)), nf.softmax(x, axis=0)
        _, lse = nf.cross_entropy(x, ids[:5], return_lse=True)
        nf.cross_entropy_backward(1.0, x, ids[:5], lse)
        nf.linear_cross_entropy(x, dy, ids[:5] % 5, chunk=2)
        nf.embedding(x, ids), nf.embedding_backward(normal(rng, 7, 13, dtype=dtype), ids, 5)
        nf.dropout(x, 0.3, seed=1, residual=dy), nf.dropout_backward(x, 0.3, seed=1)
        nf.add(x, dy), nf.sum_rows(x), nf.from_dlpack(nf.to_dlpack(x))
        calls += 45
    for dtype in (np.float32, np.float64):
        a, b, c, d = ([np.abs(normal(rng, 29, dtype=dtype))] for _ in range(4))
        nf.adamw_update(a, b, c, d, lr=0.1, step=1), nf.sgd_update(a, b, c, lr=0.1, momentum=0.5)
        nf.adagrad_update(a, b, c, lr=0.1), nf.rmsprop_update(a, b, c, lr=0.1), nf.global_norm(a)
    print(f"about {calls} calls at {nf.info()['isa']}")


if __name__ == "__main__":
    main()
