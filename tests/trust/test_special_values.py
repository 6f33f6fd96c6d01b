"""Denormals, -0.0, infinities and NaN in every kernel, against the reference.

`.ci/run` runs this at each instruction set of the machine. bfloat16 products at v4bf16 count denormals as zero, which
the instruction does (docs/numerics.md).
"""

import ml_dtypes
import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, name, normal
from numformer import reference
from tolerance import u

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)
ROWS, WIDTH = 12, 37


def small(dtype):
    """Numbers around the smallest ones, and both zeros."""
    info = ml_dtypes.finfo(dtype)
    tiny, least = float(info.tiny), float(info.smallest_subnormal)
    return np.array([0.0, -0.0, least, -least, 3 * least, tiny - least, -tiny, tiny, 4 * tiny], np.float64)


def finite(rng, *shape, dtype):
    x = normal(rng, *shape, dtype=dtype)
    where = rng.random(shape) < 0.4
    x[where] = rng.choice(small(dtype), int(where.sum())).astype(dtype)
    return x


def wild(rng, *shape, dtype):
    """Rows that hold one kind of what is not finite each, in a few places; the others are finite."""
    x = finite(rng, *shape, dtype=dtype)
    rows = x.reshape(-1, shape[-1])
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        rows[row::4][:, rng.integers(0, shape[-1], 3)] = value
    return x


def with_norm(what):
    def call(module, x, dy, w):
        if what == "rms":
            _, rstd = module.rms_norm(x, w, return_stats=True)
            return (*module.rms_norm(x, w, return_stats=True), *module.rms_norm_backward(dy, x, rstd, w))
        _, mean, rstd = module.layer_norm(x, w, w, return_stats=True)
        return (
            *module.layer_norm(x, w, w, return_stats=True),
            *module.layer_norm_backward(dy, x, mean, rstd, w, bias=True),
        )

    return call


def cross_entropy(module, x, dy, w):
    targets = np.arange(len(x)) % x.shape[-1]
    loss, lse = module.cross_entropy(x, targets, reduction="none", return_lse=True)
    return loss, lse, module.cross_entropy_backward(np.ones_like(loss), x, targets, lse, reduction="none")


def linear_cross_entropy(module, x, dy, w):
    targets = np.arange(len(x)) % len(dy)
    return module.linear_cross_entropy(x, dy, targets, reduction="none", gradients=False)


def attention(module, x, dy, w):
    return module.attention(x, dy, dy, causal=True, return_lse=True)


def attention_backward(module, x, dy, w):
    """Of ordinary arrays, with a gradient that is not."""
    q = np.ones_like(x)
    out, lse = (np.asarray(a) for a in nf.attention(q, q, q, causal=True, return_lse=True))
    return module.attention_backward(x, q, q, q, out, lse, causal=True)


# (x, dy, w) of shapes (ROWS, WIDTH), (ROWS, WIDTH), (WIDTH,); x may be anything, dy and w are finite
CALLS = {
    "add": lambda m, x, dy, w: m.add(x, dy),
    "sum_rows": lambda m, x, dy, w: m.sum_rows(x),
    "relu": lambda m, x, dy, w: (m.relu(x), m.relu_backward(dy, x)),
    "gelu": lambda m, x, dy, w: (m.gelu(x), m.gelu_backward(dy, x)),
    "gelu_tanh": lambda m, x, dy, w: (
        m.gelu(x, approximate="tanh"),
        m.gelu_backward(dy, x, approximate="tanh"),
    ),
    "silu": lambda m, x, dy, w: (m.silu(x), m.silu_backward(dy, x)),
    "softmax": lambda m, x, dy, w: (m.softmax(x), m.softmax_backward(x, m.softmax(dy))),
    "layer_norm": with_norm("layer"),
    "rms_norm": with_norm("rms"),
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "embedding": lambda m, x, dy, w: m.embedding(x, np.array([0, 3, 1, 0, 11])),
    "embedding_backward": lambda m, x, dy, w: m.embedding_backward(x, np.arange(len(x)) % 5, 5),
    "dropout": lambda m, x, dy, w: (
        m.dropout(x, 0.4, seed=3, residual=dy),
        m.dropout_backward(x, 0.4, seed=3),
    ),
    "matmul": lambda m, x, dy, w: m.matmul(x, dy.T, bias=w[:ROWS]),
    "matmul_few_rows": lambda m, x, dy, w: m.matmul(x[:2], dy.T),
    "matmul_backward": lambda m, x, dy, w: m.matmul_backward(
        x @ np.eye(WIDTH, dtype=x.dtype), dy, np.eye(WIDTH, dtype=x.dtype)
    ),
    "attention": attention,
    "attention_backward": attention_backward,
}


def results(call, module, *arrays):
    with np.errstate(all="ignore"):
        answer = call(module, *arrays)
    return [a for a in (answer if isinstance(answer, tuple) else (answer,)) if a is not None]


def agree(got, want, dtype, what):
    """NaN and infinite where the reference is, and near it elsewhere: all inputs that are finite are of order 1."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=f"{what}: NaN")
    infinite = np.isinf(want)
    np.testing.assert_array_equal(got[infinite], want[infinite], err_msg=f"{what}: infinities")
    rest = np.isfinite(want)
    largest = np.abs(want[rest]).max(initial=1.0)
    np.testing.assert_allclose(got[rest], want[rest], rtol=0, atol=300 * u(dtype) * largest, err_msg=what)


@by_dtype
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("make", [finite, wild])
def test_against_the_reference(rng, call, make, dtype):
    for _ in range(3):
        x, dy, w = (
            make(rng, ROWS, WIDTH, dtype=dtype),
            finite(rng, ROWS, WIDTH, dtype=dtype),
            finite(rng, WIDTH, dtype=dtype),
        )
        for i, (got, want) in enumerate(
            zip(results(CALLS[call], nf, x, dy, w), results(CALLS[call], reference, x, dy, w), strict=True)
        ):
            agree(got, want, dtype, f"{call}[{i}]")


@by_dtype
def test_denormals_are_numbers(dtype):
    """They are kept, added and multiplied, not flushed to zero."""
    x = np.tile(small(dtype), 7).astype(dtype)
    np.testing.assert_array_equal(nf.add(x, x).astype(np.float64), 2 * x.astype(np.float64))
    np.testing.assert_array_equal(nf.relu(x).astype(np.float64), np.maximum(x.astype(np.float64), 0))
    if dtype.name == "bfloat16" and nf.info()["isa"] == "v4bf16":
        return
    eye = np.eye(len(x), dtype=dtype)
    for rows in (1, 3, 40):
        a = np.tile(x, (rows, 1))
        np.testing.assert_array_equal(nf.matmul(a, eye).astype(np.float64), a.astype(np.float64))


@by_dtype
def test_signs_of_zero(dtype):
    x = np.array([-0.0, 0.0, -0.0, 1.0], dtype)
    sign = lambda y: np.signbit(np.asarray(y, np.float64)).tolist()
    assert sign(nf.add(x, x)) == [True, False, True, False]
    assert sign(nf.gelu(x)) == sign(reference.gelu(x))
    assert sign(nf.silu(x)) == sign(reference.silu(x))
    assert sign(nf.embedding(x[:, None], np.arange(4))) == [[True], [False], [True], [False]]


@by_dtype
def test_updates(rng, dtype):
    """NaN and infinities stay where they are; denormal gradients move nothing they should not."""
    dtype = np.float64 if dtype == np.float64 else np.float32
    grads = wild(rng, 3, 40, dtype=dtype)
    for rule in ("sgd", "adamw", "adagrad", "rmsprop"):
        ours, twin = ([normal(np.random.default_rng(1), 3, 40, dtype=dtype)] for _ in range(2))
        for module, values in ((nf, ours), (reference, twin)):
            zeros = lambda: [np.zeros((3, 40), dtype)]
            with np.errstate(all="ignore"):
                if rule == "sgd":
                    module.sgd_update(values, [grads], zeros(), lr=0.1, momentum=0.9)
                elif rule == "adamw":
                    module.adamw_update(values, [grads], zeros(), zeros(), lr=0.1, step=1)
                elif rule == "adagrad":
                    module.adagrad_update(values, [grads], zeros(), lr=0.1)
                else:
                    module.rmsprop_update(values, [grads], zeros(), lr=0.1)
        agree(ours[0], twin[0], np.dtype(dtype), rule)
    assert np.isnan(nf.global_norm([grads]))
    assert np.isinf(nf.global_norm([np.array([np.inf, 1.0], dtype)]))
