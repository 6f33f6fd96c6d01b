"""Wrong calls raise a TypeError or ValueError that names operation and argument; nothing is written, nothing dies."""

import re

import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES
from numformer import _core

BF16 = DTYPES[3]


def f(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def ids(*values):
    return np.array(values, np.int64)


X = f(4, 8)
IDS = ids(0, 1, 2, 3)
FROZEN = f(4, 5)
FROZEN.flags.writeable = False
Q = f(2, 4, 10, 64)
OUT, LSE = f(2, 4, 10, 64), f(2, 4, 10)
REL = f(4, 20, 64), f(4, 64), f(4, 64), 10
NAN = float("nan")


def adam(**options):
    given = {"values": [f(3)], "grads": [f(3)], "m": [f(3)], "v": [f(3)], "lr": 0.1, "step": 1, **options}
    lists = [given.pop(key) for key in ("values", "grads", "m", "v")]
    return lambda: nf.adamw_update(*lists, **given)


def sgd(values=None, grads=None, momenta=None, **options):
    values, grads = [f(3)] if values is None else values, [f(3)] if grads is None else grads
    return lambda: nf.sgd_update(values, grads, momenta, **{"lr": 0.1, **options})


def adagrad(**options):
    sums = options.pop("sums", [f(3)])
    return lambda: nf.adagrad_update([f(3)], [f(3)], sums, **{"lr": 0.1, **options})


def rmsprop(means=None, momenta=None, **options):
    return lambda: nf.rmsprop_update([f(3)], [f(3)], [f(3)], means, momenta, **{"lr": 0.1, **options})


def attend(q=Q, k=Q, v=Q, **options):
    return lambda: nf.attention(q, k, v, **options)


def attend_back(dout=Q, q=Q, k=Q, v=Q, out=OUT, lse=LSE, **options):
    return lambda: nf.attention_backward(dout, q, k, v, out, lse, **options)


def entropy(logits=X, targets=IDS, **options):
    return lambda: nf.cross_entropy(logits, targets, **options)


def entropy_back(dloss=np.float32(1), logits=X, targets=IDS, lse=f(4), **options):  # noqa: B008
    return lambda: nf.cross_entropy_backward(dloss, logits, targets, lse, **options)


def linear(x=X, weight=f(6, 8), targets=IDS, **options):  # noqa: B008
    return lambda: nf.linear_cross_entropy(x, weight, targets, **options)


def drop(x=X, p=0.5, **options):
    return lambda: nf.dropout(x, p, **{"seed": 1, **options})


class Unwilling:
    """A number and a truth that raise when they are asked."""

    def __index__(self):
        raise OverflowError("no number")

    def __bool__(self):
        raise OverflowError("neither")


# call, exception, words of the message
BAD = [
    (lambda: nf.matmul([[1.0]], X), TypeError, "matmul a ndarray list"),
    (lambda: nf.matmul(None, X), TypeError, "matmul a ndarray"),
    (lambda: nf.matmul(X, "b"), TypeError, "matmul b ndarray str"),
    (lambda: nf.matmul(X, f(7, 3)), ValueError, "matmul b 8 (7, 3)"),
    (lambda: nf.matmul(X, f(8, 3, dtype=np.float64)), TypeError, "matmul b float32 float64"),
    (lambda: nf.matmul(X.astype(np.int32), X), TypeError, "matmul a float32 int32"),
    (lambda: nf.matmul(X.astype(np.complex64), X), TypeError, "matmul a float32 complex64"),
    (lambda: nf.matmul(X.astype(">f4"), X), TypeError, "matmul a float32"),
    (lambda: nf.matmul(X.astype(object), X), TypeError, "matmul a float32 object"),
    (lambda: nf.matmul(np.float32(1).reshape(()), X), ValueError, "matmul a axes ()"),
    (lambda: nf.matmul(f(3, 4, 8), f(2, 8, 5)), ValueError, "matmul batch (3, 4, 8) (2, 8, 5)"),
    (lambda: nf.matmul(X, f(8, 5), bias=f(4)), ValueError, "matmul bias (5,) (4,)"),
    (lambda: nf.matmul(X, f(8, 5), bias=f(1, 5)), ValueError, "matmul bias (5,) (1, 5)"),
    (lambda: nf.matmul(X, f(8, 5), bias=f(5, dtype=np.float64)), TypeError, "matmul bias float64"),
    (lambda: nf.matmul(X, f(8, 5), residual=f(5)), ValueError, "matmul residual (4, 5) (5,)"),
    (lambda: nf.matmul(X, f(8, 5), activation="swish"), ValueError, "matmul activation gelu_tanh swish"),
    (lambda: nf.matmul(X, f(8, 5), activation=3), TypeError, "matmul activation"),
    (lambda: nf.matmul(X, f(8, 5), scale=NAN), ValueError, "matmul scale finite nan"),
    (lambda: nf.matmul(X, f(8, 5), scale="2"), TypeError, "matmul scale"),
    (lambda: nf.matmul(X, f(8, 5), accumulate=True), ValueError, "matmul accumulate out"),
    (lambda: nf.matmul(X, f(8, 5), out=f(4, 6)), ValueError, "matmul out (4, 5) (4, 6)"),
    (lambda: nf.matmul(X, f(8, 5), out=FROZEN), ValueError, "matmul out writeable"),
    (lambda: nf.matmul(X, f(8, 5), out=[0]), TypeError, "matmul out ndarray list"),
    (lambda: nf.matmul(X, f(8, 5), dtype=np.int32), TypeError, "matmul dtype int32"),
    (lambda: nf.matmul(X, f(8, 5), dtype="nonsense"), TypeError, ""),
    (lambda: nf.matmul_backward(f(4, 6), X, f(8, 5)), ValueError, "matmul_backward dy (4, 6)"),
    (lambda: nf.matmul_backward(f(4, 5), X, f(8, 5), activation="gelu"), ValueError, "matmul_backward preactivation"),
    (
        lambda: nf.matmul_backward(f(4, 5), X, f(8, 5), activation="swish", preactivation=f(4, 5)),
        ValueError,
        "matmul_backward activation swish",
    ),
    (lambda: nf.matmul_backward(f(4, 5, dtype=np.float64), X, f(8, 5)), TypeError, "matmul_backward float64"),
    (attend(q=None), TypeError, "attention q"),
    (attend(q=f(64)), ValueError, "attention q H, N, D (64,)"),
    (attend(k=f(2, 4, 10, 32)), ValueError, "attention k (2, 4, 10, 32) 64"),
    (attend(k=f(2, 3, 10, 64), v=f(2, 3, 10, 64)), ValueError, "attention k heads divides (2, 3, 10, 64)"),
    (attend(v=f(2, 4, 11, 64)), ValueError, "attention v (2, 4, 11, 64)"),
    (attend(k=f(3, 4, 10, 64), v=f(3, 4, 10, 64)), ValueError, "attention k (3, 4, 10, 64)"),
    (attend(k=f(4, 10, 64), v=f(4, 10, 64)), ValueError, "attention k (4, 10, 64)"),
    (attend(k=Q.astype(np.float64)), TypeError, "attention k float32 float64"),
    (attend(q=Q.astype(np.int64)), TypeError, "attention q int64"),
    (attend(q=f(2, 4, 10, 0), k=f(2, 4, 10, 0)), ValueError, "attention q"),
    (attend(causal="lower"), ValueError, "attention causal bottom_right lower"),
    (attend(causal=2.5), TypeError, "attention causal"),
    (attend(mask=f(10, 10)), TypeError, "attention mask bool float32"),
    (attend(mask=np.ones((10, 11), bool)), ValueError, "attention mask (10, 11) (2, 4, 10, 10)"),
    (attend(window=3), TypeError, "attention window"),
    (attend(window=(1, 2, 3)), ValueError, "attention window"),
    (attend(window=(-1, 0)), ValueError, "attention window -1"),
    (attend(window=(0.5, 0)), TypeError, "attention window"),
    (attend(scale=NAN), ValueError, "attention scale finite nan"),
    (attend(scale="1"), TypeError, "attention scale"),
    (attend(bias=np.ones((10, 10), np.int64)), TypeError, "attention bias float32 int64"),
    (attend(bias=f(10, 10, dtype=np.float64)), TypeError, "attention bias float32 float64"),
    (attend(bias=f(10, 11)), ValueError, "attention bias (2, 4, 10, 10) (10, 11)"),
    (attend(bias=[[0.0]]), TypeError, "attention bias ndarray list"),
    (attend(softcap=0.0), ValueError, "attention softcap 0"),
    (attend(softcap=NAN), ValueError, "attention softcap nan"),
    (attend(softcap="30"), TypeError, "attention softcap"),
    (attend(alibi_slopes=f(3)), ValueError, "attention alibi_slopes (4,) (3,)"),
    (attend(alibi_slopes=f(4, dtype=np.float16)), TypeError, "attention alibi_slopes float32 float16"),
    (attend(alibi_slopes=np.full(4, NAN, np.float32)), ValueError, "attention alibi_slopes finite nan"),
    (attend(sinks=f(4, 1)), ValueError, "attention sinks (4,) (4, 1)"),
    (attend(sinks=1.0), TypeError, "attention sinks ndarray float"),
    (attend(dropout=0.5), ValueError, "attention seed dropout None"),
    (attend(dropout=1.5, seed=1), ValueError, "attention dropout 1.5"),
    (attend(dropout="half", seed=1), TypeError, "attention dropout str"),
    (attend(dropout=0.5, seed=-1), ValueError, "attention seed -1"),
    (attend(dropout=0.5, seed=0.5), TypeError, "attention seed float"),
    (attend(dropout=0.5, seed=(1, 2)), ValueError, "attention seed layer step sample (1, 2)"),
    (attend(dropout=0.5, seed=(1, 2, 3, 2**32 - 1)), ValueError, "attention seed sample 4294967296"),
    (attend(rel=f(4, 20, 64)), TypeError, "attention rel r, bias_u, bias_v, origin ndarray"),
    (attend(rel=REL[:3]), ValueError, "attention rel r, bias_u, bias_v, origin 3"),
    (attend(rel=(None, *REL[1:])), TypeError, "attention rel's r ndarray NoneType"),
    (attend(rel=(f(20, 64), *REL[1:])), ValueError, "attention rel's r (4, L, 64) (20, 64)"),
    (attend(rel=(f(4, 20, 63), *REL[1:])), ValueError, "attention rel's r (4, L, 64) (4, 20, 63)"),
    (attend(rel=(f(4, 20, 64, dtype=np.float64), *REL[1:])), TypeError, "attention rel's r float32 float64"),
    (attend(rel=(REL[0], f(64), *REL[2:])), ValueError, "attention rel's bias_u (4, 64) (64,)"),
    (attend(rel=(*REL[:2], f(4, 64, dtype=np.float64), 10)), TypeError, "attention rel's bias_v float32 float64"),
    (attend(rel=(*REL[:3], 1.5)), TypeError, "attention rel's origin integer float"),
    (attend(rel=(*REL[:3], 8)), ValueError, "attention rel's r distance -9 to 9 20 origin 8"),
    (attend(rel=(*REL[:3], 11)), ValueError, "attention rel's r distance -9 to 9 20 origin 11"),
    (attend(rel=(*REL[:3], 2**80)), ValueError, "attention rel's origin 64 bits"),
    (attend_back(grads=("rel",)), ValueError, "attention_backward grads rel None"),
    (attend(out=f(2, 4, 10, 63)), ValueError, "attention out (2, 4, 10, 64) (2, 4, 10, 63)"),
    (attend(out=f(2, 4, 10, 64, dtype=np.float64)), TypeError, "attention out float32 float64"),
    (attend_back(dout=f(2, 4, 10, 63)), ValueError, "attention_backward dout (2, 4, 10, 63)"),
    (attend_back(lse=f(2, 4, 9)), ValueError, "attention_backward lse (2, 4, 10) (2, 4, 9)"),
    (attend_back(lse=LSE.astype(np.float64)), TypeError, "attention_backward lse float32 float64"),
    (attend_back(out=f(2, 4, 11, 64)), ValueError, "attention_backward out (2, 4, 11, 64)"),
    (attend_back(dlse=f(2, 4, 9)), ValueError, "attention_backward dlse (2, 4, 10) (2, 4, 9)"),
    (attend_back(dlse=f(2, 4, 10, dtype=np.float64)), TypeError, "attention_backward dlse float32 float64"),
    (attend_back(grads="bias"), TypeError, "attention_backward grads tuple str"),
    (attend_back(grads=("mask",)), ValueError, "attention_backward grads bias sinks mask"),
    (attend_back(grads=("bias",)), ValueError, "attention_backward grads bias None"),
    (attend_back(into=(Q, Q)), TypeError, "attention_backward into dq, dk, dv"),
    (attend_back(into=(f(1), f(1), f(1))), ValueError, "attention_backward (2, 4, 10, 64) (1,)"),
    (lambda: nf.softmax(X, axis=2), ValueError, "softmax axis 2"),
    (lambda: nf.softmax(X, axis=0.5), TypeError, "softmax axis"),
    (lambda: nf.softmax(np.ones((3,), np.int32)), TypeError, "softmax x int32"),
    (lambda: nf.softmax(np.float32(1).reshape(())), ValueError, "softmax axis"),
    (lambda: nf.softmax_backward(X, f(4, 7)), ValueError, "softmax_backward y (4, 8) (4, 7)"),
    (lambda: nf.layer_norm(X, f(7)), ValueError, "layer_norm weight (8,) (7,)"),
    (lambda: nf.layer_norm(X, f(8), f(4, 8)), ValueError, "layer_norm bias (8,) (4, 8)"),
    (lambda: nf.layer_norm(X, eps=-1.0), ValueError, "layer_norm eps -1"),
    (lambda: nf.layer_norm(X, eps=NAN), ValueError, "layer_norm eps nan"),
    (lambda: nf.layer_norm(X, f(8, dtype=np.float64)), TypeError, "layer_norm weight float64"),
    (lambda: nf.layer_norm(f(4, 0)), ValueError, "layer_norm x (4, 0)"),
    (lambda: nf.layer_norm(X.astype(BF16), f(8), f(8, dtype=BF16)), TypeError, "layer_norm bias float32 bfloat16"),
    (lambda: nf.rms_norm(X.astype(BF16), f(8, dtype=np.float16)), TypeError, "rms_norm weight bfloat16 float16"),
    (lambda: nf.layer_norm_backward(X, X, f(3), f(4)), ValueError, "layer_norm_backward mean (4,) (3,)"),
    (lambda: nf.layer_norm_backward(f(4, 7), X, f(4), f(4)), ValueError, "layer_norm_backward (4, 8) (4, 7)"),
    (lambda: nf.layer_norm_backward(X, X, f(4), f(4), residual=f(8)), ValueError, "layer_norm_backward residual (8,)"),
    (lambda: nf.rms_norm(X, f(7)), ValueError, "rms_norm weight (8,) (7,)"),
    (lambda: nf.rms_norm(X, eps="small"), TypeError, "rms_norm eps"),
    (lambda: nf.rms_norm_backward(X, X, f(4, 1)), ValueError, "rms_norm_backward rstd (4,) (4, 1)"),
    (lambda: nf.relu([1.0]), TypeError, "relu x ndarray list"),
    (lambda: nf.gelu(X, approximate="fast"), ValueError, "gelu approximate tanh fast"),
    (lambda: nf.gelu_backward(f(4, 7), X), ValueError, "gelu_backward (4, 8) (4, 7)"),
    (lambda: nf.silu_backward(X.astype(BF16), X), TypeError, "silu_backward bfloat16 float32"),
    (entropy(targets=ids(0, 1, 2)), ValueError, "cross_entropy targets (4,) (3,)"),
    (entropy(targets=ids(0, 1, 2, 8)), ValueError, "cross_entropy targets 8"),
    (entropy(targets=ids(0, 1, 2, -1)), ValueError, "cross_entropy targets -1"),
    (entropy(targets=f(4)), TypeError, "cross_entropy targets float32"),
    (entropy(label_smoothing=1.5), ValueError, "cross_entropy label_smoothing 1.5"),
    (entropy(label_smoothing=NAN), ValueError, "cross_entropy label_smoothing nan"),
    (entropy(reduction="avg"), ValueError, "cross_entropy reduction mean avg"),
    (entropy(logits=f(4, 0)), ValueError, "cross_entropy logits"),
    (entropy(ignore_index=0.5), TypeError, "cross_entropy ignore_index"),
    (entropy_back(lse=f(3)), ValueError, "cross_entropy_backward lse (4,) (3,)"),
    (entropy_back(dloss=f(4)), ValueError, "cross_entropy_backward dloss"),
    (entropy_back(out=f(4, 9)), ValueError, "cross_entropy_backward out (4, 8) (4, 9)"),
    (entropy_back(targets=ids(0, 1, 2, 99)), ValueError, "cross_entropy_backward targets 99"),
    (linear(x=[[1.0]]), TypeError, "linear_cross_entropy x ndarray list"),
    (linear(x=np.float32(1).reshape(())), ValueError, "linear_cross_entropy x ()"),
    (linear(weight=f(6, 7)), ValueError, "linear_cross_entropy weight (V, 8) (6, 7)"),
    (linear(weight=f(0, 8)), ValueError, "linear_cross_entropy weight (V, 8) (0, 8)"),
    (linear(weight=f(1, 6, 8)), ValueError, "linear_cross_entropy weight (V, 8) (1, 6, 8)"),
    (linear(weight=f(6, 8, dtype=np.float64)), TypeError, "linear_cross_entropy weight float32 float64"),
    (linear(weight=None), TypeError, "linear_cross_entropy weight ndarray NoneType"),
    (linear(targets=ids(0, 1, 2)), ValueError, "linear_cross_entropy targets (4,) (3,)"),
    (linear(targets=ids(0, 1, 2, 6)), ValueError, "linear_cross_entropy targets 6"),
    (linear(targets=f(4)), TypeError, "linear_cross_entropy targets float32"),
    (linear(bias=f(7)), ValueError, "linear_cross_entropy bias (6,) (7,)"),
    (linear(bias=f(6, dtype=np.float64)), TypeError, "linear_cross_entropy bias float32 float64"),
    (linear(label_smoothing=-0.1), ValueError, "linear_cross_entropy label_smoothing -0.1"),
    (linear(reduction="none"), ValueError, "linear_cross_entropy reduction mean sum none"),
    (linear(reduction=1), TypeError, "linear_cross_entropy reduction int"),
    (linear(dloss=NAN), ValueError, "linear_cross_entropy dloss nan"),
    (linear(dloss="1"), TypeError, "linear_cross_entropy dloss str"),
    (linear(chunk=0), ValueError, "linear_cross_entropy chunk 0"),
    (linear(chunk=1.5), TypeError, "linear_cross_entropy chunk float"),
    (linear(dweight=f(6, 7)), ValueError, "linear_cross_entropy dweight (6, 8) (6, 7)"),
    (linear(dweight=f(6, 8, dtype=np.float64)), TypeError, "linear_cross_entropy dweight float32 float64"),
    (linear(dweight=[0]), TypeError, "linear_cross_entropy dweight ndarray list"),
    (linear(bias=f(6), dbias=f(7)), ValueError, "linear_cross_entropy dbias (6,) (7,)"),
    (linear(dbias=f(6)), ValueError, "linear_cross_entropy dbias bias None"),
    (linear(accumulate=True), ValueError, "linear_cross_entropy accumulate dweight"),
    (linear(bias=f(6), dweight=f(6, 8), accumulate=True), ValueError, "linear_cross_entropy accumulate dbias"),
    (linear(gradients=False, dweight=f(6, 8)), ValueError, "linear_cross_entropy dweight gradients"),
    (lambda: nf.embedding(X, ids(0, 4)), ValueError, "embedding ids 4"),
    (lambda: nf.embedding(X, ids(-1)), ValueError, "embedding ids -1"),
    (lambda: nf.embedding(X, f(2)), TypeError, "embedding ids float32"),
    (lambda: nf.embedding(f(8), ids(0)), ValueError, "embedding weight (8,)"),
    (lambda: nf.embedding_backward(f(2, 8), ids(0, 9), 9), ValueError, "embedding_backward ids 9"),
    (lambda: nf.embedding_backward(f(3, 8), ids(0, 1), 9), ValueError, "embedding_backward dy (3, 8)"),
    (lambda: nf.embedding_backward(f(2, 8), ids(0, 1), -9), ValueError, "embedding_backward num_embeddings -9"),
    (
        lambda: nf.embedding_backward(f(2, 8), ids(0, 1), 9, out=f(8, 8)),
        ValueError,
        "embedding_backward out (9, 8) (8, 8)",
    ),
    (lambda: nf.embedding_backward(f(2, 8), ids(0, 1), 9, accumulate=True), ValueError, "embedding_backward out"),
    (drop(p=-0.1), ValueError, "dropout p -0.1"),
    (drop(p=1.5), ValueError, "dropout p 1.5"),
    (drop(p=NAN), ValueError, "dropout p nan"),
    (drop(p="half"), TypeError, "dropout p"),
    (drop(seed=-1), ValueError, "dropout seed -1"),
    (drop(seed=2**32), ValueError, "dropout seed 4294967296"),
    (drop(seed=None), TypeError, "dropout seed"),
    (drop(seed=1.5), TypeError, "dropout seed"),
    (drop(step=-1), ValueError, "dropout step -1"),
    (drop(residual=f(4, 7)), ValueError, "dropout residual (4, 8) (4, 7)"),
    (drop(x=np.float32(1).reshape(())), ValueError, "dropout x"),
    (drop(cu_seqlens=[0, 4]), TypeError, "dropout cu_seqlens list"),
    (drop(cu_seqlens=f(2)), TypeError, "dropout cu_seqlens float32"),
    (drop(cu_seqlens=ids()), ValueError, "dropout cu_seqlens (sequences + 1,) (0,)"),
    (drop(cu_seqlens=ids(1, 4)), ValueError, "dropout cu_seqlens 1"),
    (drop(cu_seqlens=ids(0, 5)), ValueError, "dropout cu_seqlens 4 5"),
    (drop(cu_seqlens=ids(0, 3, 2, 4)), ValueError, "dropout cu_seqlens 2 3"),
    (drop(cu_seqlens=ids(0, 2, 4), sample=2**32 - 1), ValueError, "dropout sample 4294967296"),
    (lambda: nf.dropout_backward(X, 0.5, seed=1, cu_seqlens=ids(0, 5)), ValueError, "dropout_backward cu_seqlens 4 5"),
    (lambda: nf.add(X, f(7)), ValueError, "add b (4, 8) (7,)"),
    (lambda: nf.add(X, f(1, 4, 8)), ValueError, "add b (4, 8) (1, 4, 8)"),
    (lambda: nf.add(X, f(4, 1)), ValueError, "add b (4, 8) (4, 1)"),
    (lambda: nf.add(X.astype(BF16), X.astype(np.float64)), TypeError, "add b bfloat16 float64"),
    (lambda: nf.cast([1.0], BF16), TypeError, "cast x ndarray list"),
    (lambda: nf.cast(X, np.int32), TypeError, "cast dtype int32"),
    (lambda: nf.cast(X, "half a float"), TypeError, "cast dtype half a float"),
    (lambda: nf.cast(X, None), TypeError, "cast dtype float32 bfloat16 None"),
    (lambda: nf.cast(X, BF16, out=X), TypeError, "cast out bfloat16 float32"),
    (lambda: nf.cast(X, BF16, out=f(4, 7, dtype=BF16)), ValueError, "cast out (4, 8) (4, 7)"),
    (lambda: nf.cast(X, BF16, scale=NAN), ValueError, "cast scale nan"),
    (lambda: nf.cast(X, BF16, scale="2"), TypeError, "cast scale str"),
    (lambda: nf.add(X, X.astype(np.float64)), TypeError, "add b float32 float64"),
    (lambda: nf.sum_rows(X, out=f(7)), ValueError, "sum_rows out (8,) (7,)"),
    (lambda: nf.sum_rows(X, accumulate=True), ValueError, "sum_rows out"),
    (sgd(grads=[]), ValueError, "sgd_update grads 1 0"),
    (sgd(grads=[f(4)]), ValueError, "sgd_update grads (3,) (4,)"),
    (sgd(values=[f(6)[::2]]), ValueError, "sgd_update values contiguous"),
    (sgd(values=f(3)), TypeError, "sgd_update values list"),
    (sgd(lr=NAN), ValueError, "sgd_update lr nan"),
    (sgd(momentum=0.9), ValueError, "sgd_update momenta"),
    (sgd(momentum=-0.9, momenta=[f(3)]), ValueError, "sgd_update momentum -0.9"),
    (sgd(nesterov=True), ValueError, "sgd_update nesterov momentum"),
    (
        sgd(values=[f(3, dtype=np.float16)], grads=[f(3, dtype=np.float16)]),
        TypeError,
        "sgd_update values float32 float16",
    ),
    (sgd(copies=[]), ValueError, "sgd_update copies 1 0"),
    (sgd(copies=[f(3)]), TypeError, "sgd_update copies float16 bfloat16 float32"),
    (sgd(copies=[f(4, dtype=BF16)]), ValueError, "sgd_update copies (3,) (4,)"),
    (sgd(copies=[f(6, dtype=BF16)[::2]]), ValueError, "sgd_update copies contiguous"),
    (sgd(copies=f(3, dtype=BF16)), TypeError, "sgd_update copies list ndarray"),
    (
        sgd(values=[f(3, dtype=np.float64)], grads=[f(3, dtype=np.float64)], copies=[f(3, dtype=BF16)]),
        TypeError,
        "sgd_update copies float32 bfloat16",
    ),
    (adam(copies=[f(3, dtype=BF16), None]), ValueError, "adamw_update copies 1 2"),
    (adagrad(copies=[1.0]), TypeError, "adagrad_update copies float"),
    (rmsprop(copies=[f(3, dtype=np.float64)]), TypeError, "rmsprop_update copies float64"),
    (adam(step=0), ValueError, "adamw_update step 0"),
    (adam(beta1=1.0), ValueError, "adamw_update beta1 1"),
    (adam(beta2=-0.1), ValueError, "adamw_update beta2 -0.1"),
    (adam(eps=-1.0), ValueError, "adamw_update eps -1"),
    (adam(lr="fast"), TypeError, "adamw_update lr"),
    (adam(m=[f(4)]), ValueError, "adamw_update m (3,) (4,)"),
    (adam(v=[f(3, dtype=np.float64)]), TypeError, "adamw_update v float64"),
    (adam(values=[1.0]), TypeError, "adamw_update values float"),
    (adam(grad_scale=NAN), ValueError, "adamw_update grad_scale nan"),
    (lambda: nf.adam_update([f(3)], [f(3)], [f(3)], [f(3)], lr=0.1, step=0), ValueError, "adam_update step 0"),
    (adagrad(sums=[f(4)]), ValueError, "adagrad_update sums (3,) (4,)"),
    (adagrad(sums=None), TypeError, "adagrad_update sums list NoneType"),
    (adagrad(eps=-1.0), ValueError, "adagrad_update eps -1"),
    (rmsprop(alpha=1.0), ValueError, "rmsprop_update alpha 1"),
    (rmsprop(momentum=0.5), ValueError, "rmsprop_update momenta 0.5 None"),
    (rmsprop(momentum=1.5, momenta=[f(3)]), ValueError, "rmsprop_update momentum 1.5"),
    (rmsprop(means=[f(2)]), ValueError, "rmsprop_update means (3,) (2,)"),
    (rmsprop(momenta=[f(3, dtype=np.float64)]), TypeError, "rmsprop_update momenta float64"),
    (lambda: nf.global_norm(X), TypeError, "global_norm arrays"),
    (lambda: nf.global_norm([ids(1)]), TypeError, "global_norm arrays int64"),
    (lambda: nf.softmax(X, axis=Unwilling()), TypeError, "softmax axis integer Unwilling"),
    (lambda: nf.softmax(X, axis=2**64), ValueError, "softmax axis 64 bits 18446744073709551616"),
    (lambda: nf.layer_norm(X, return_stats=Unwilling()), TypeError, "layer_norm return_stats True False Unwilling"),
    (lambda: nf.gelu(X, approximate=1), TypeError, "gelu approximate string int"),
    (attend_back(grads=(1,)), TypeError, "attention_backward grads string int"),
    (attend(window=(Unwilling(), 0)), TypeError, "attention window integers None Unwilling"),
    (lambda: _core.empty([3], np.float32), TypeError, "empty shape tuple list"),
    (lambda: _core.empty((3, -1), np.float32), ValueError, "empty shape negative -1"),
    (lambda: _core.empty((3,), None), TypeError, "empty dtype None"),
    (lambda: _core.ceiling_gflops("int8", 1), ValueError, "ceiling_gflops dtype int8"),
    (lambda: nf.to_dlpack(np.zeros(3, np.longdouble)), TypeError, "to_dlpack a dtype DLPack float"),
    (lambda: nf.to_dlpack(np.zeros(3, "M8[s]")), TypeError, "to_dlpack a dtype DLPack datetime64"),
    (lambda: nf.set_num_threads(0), ValueError, "set_num_threads n 0"),
    (lambda: nf.set_num_threads(1.5), TypeError, "set_num_threads n float"),
    (lambda: nf.set_pool_limit(-1), ValueError, "set_pool_limit bytes -1"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_call(number):
    call, kind, words = BAD[number]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    # Shapes are words too, although they contain spaces.
    wanted = re.findall(r"\([^)]*\)|[^\s(]+", words)
    missing = [w for w in wanted if w not in message]
    assert not missing, f"{message!r} does not say {missing}"
    assert type(caught.value) is kind, f"{type(caught.value).__name__} {message!r}, expected {kind.__name__}"


def test_attention_writes_over_nothing_that_it_reads(rng):
    """An `out` or `into` over an input: an error, and the input is as it was."""
    shape = (2, 12, 12)
    q, k, v, dout, out, bias = (rng.standard_normal(shape).astype(np.float32) for _ in range(6))
    lse, dlse = (rng.standard_normal((2, 12)).astype(np.float32) for _ in range(2))
    mask = rng.random((2, 12, 48)) < 0.5
    r, u = rng.standard_normal((2, 23, 12)).astype(np.float32), np.zeros((2, 12), np.float32)
    options = {"bias": bias, "mask": mask[..., ::4], "rel": (r, u, u, 11)}
    read = {"q": q, "k": k, "v": v, "bias": bias, "rel": r[:, :12], "mask": mask.view(np.float32)}
    before = {name: array.copy() for name, array in read.items()}
    for name, array in read.items():
        with pytest.raises(ValueError, match="attention: out must not overlap an input"):
            nf.attention(q, k, v, out=array, **options)
        assert array.tobytes() == before[name].tobytes()
    memory = np.zeros((2, *shape), np.float32)
    memory[0].reshape(-1)[:24], memory[1].reshape(-1)[:24] = lse.reshape(-1), dlse.reshape(-1)
    given = [memory[i].reshape(-1)[:24].reshape(2, 12) for i in range(2)]
    read |= {"dout": dout, "out": out, "lse": memory[0], "dlse": memory[1]}
    before = {name: array.copy() for name, array in read.items()}
    for name, array in read.items():
        for i in range(3):
            into = [None, None, None]
            into[i] = array
            with pytest.raises(ValueError, match=rf"attention_backward: into\[{i}\] must not overlap an input"):
                nf.attention_backward(dout, q, k, v, out, given[0], dlse=given[1], into=tuple(into), **options)
            assert array.tobytes() == before[name].tobytes(), name
    twice = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="attention_backward: into must hold three different arrays"):
        nf.attention_backward(dout, q, k, v, out, lse, into=(twice, None, twice))


def test_there_are_enough():
    assert len(BAD) >= 60


def test_nothing_is_written_before_the_checks():
    w, g = f(3), f(3)
    with pytest.raises(ValueError, match="grads"):
        nf.sgd_update([w, f(4)], [g, f(5)], None, lr=0.1)
    assert (w == 1).all()
    out = np.full((4, 8), 7, np.float32)
    with pytest.raises(ValueError, match="targets"):
        nf.cross_entropy_backward(np.float32(1), X, ids(0, 1, 2, 99), f(4), out=out)
    assert (out == 7).all()
    dweight = np.full((6, 8), 7, np.float32)
    with pytest.raises(ValueError, match="targets"):
        linear(targets=ids(0, 1, 2, 6), dweight=dweight)()
    assert (dweight == 7).all()
    table = np.full((4, 8), 7, np.float32)
    with pytest.raises(ValueError, match="ids"):
        nf.embedding_backward(f(2, 8), ids(0, 4), 4, out=table)
    assert (table == 7).all()
