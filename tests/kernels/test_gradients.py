"""Every backward against the slope of its forward, in float64 along random directions."""

from collections.abc import Callable
from typing import Any

import numformer as nf
import numpy as np
import pytest
from arrays import normal

EPS = np.finfo(np.float64).eps
F64 = np.float64


def slope(f: Callable[..., Any], xs: list[Any], directions: list[Any], dy: Any) -> tuple[float, float]:
    """d/dt sum(dy * f(x + t * direction)) at 0, and how far off it may be.

    Central differences at h and h / 2 are off by c h^2 + ..., so (4 D(h/2) - D(h)) / 3 cancels the first term, and
    what is left is smaller than their difference. Rounding makes an error of a few eps * (sum of absolute terms) / h.
    """
    h = 2.0**-10

    def central(h: float) -> tuple[float, float]:
        up, down = (f(*(x + s * h * d for x, d in zip(xs, directions, strict=True))) for s in (1, -1))
        return float((dy * (up - down)).sum() / (2 * h)), float((np.abs(dy) * (np.abs(up) + np.abs(down))).sum())

    wide, size = central(h)
    narrow, _ = central(h / 2)
    return (4 * narrow - wide) / 3, abs(narrow - wide) + 64 * EPS * (size + 1) / h


def gradient_check(rng, f, backward, xs):
    """`backward(dy)` gives one gradient for each of xs."""
    xs = [np.asarray(x) for x in xs]
    y = np.asarray(f(*xs))
    dy = rng.standard_normal(y.shape)
    grads = backward(dy)
    grads = grads if isinstance(grads, tuple) else (grads,)
    for i, grad in enumerate(grads):
        assert grad.dtype == F64
        for _ in range(3):
            directions = [rng.standard_normal(x.shape) if i == j else np.zeros(x.shape) for j, x in enumerate(xs)]
            want, error = slope(f, xs, directions, dy)
            got = float((grad * directions[i]).sum())
            assert abs(got - want) <= error, f"input {i}: backward says {got}, the slope is {want} +- {error}"
            size = float(np.abs(grad * directions[i]).sum())
            assert error <= 1e-3 * (1 + size), "too rough: the check would see nothing"


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [((6, 7), (7, 5)), ((2, 20, 7), (7, 5)), ((3, 1, 4, 7), (2, 7, 5)), ((7,), (7, 5)), ((4, 7), (7,))],
)
def test_matmul(rng, activation, shape_a, shape_b):
    a, b = normal(rng, *shape_a, dtype=F64), normal(rng, *shape_b, dtype=F64)
    bias = normal(rng, shape_b[-1] if len(shape_b) > 1 else 1, dtype=F64)

    def f(a, b, bias):
        return nf.matmul(a, b, bias=bias, activation=activation, scale=0.6)

    _, z = nf.matmul(a, b, bias=bias, scale=0.6, save_preactivation=True)
    if activation == "relu" and np.abs(z).min() < 0.05:
        # A kink between the two points has no slope: use a bias that keeps away from it.
        bias = bias + 40.0 * np.sign(bias)
        _, z = nf.matmul(a, b, bias=bias, scale=0.6, save_preactivation=True)
    options = {"bias": bias, "activation": activation, "scale": 0.6, "preactivation": z if activation else None}
    gradient_check(rng, f, lambda dy: nf.matmul_backward(dy, a, b, **options), [a, b, bias])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"causal": "top_left"},
        {"window": (3, 2)},
        {"causal": True, "window": (4, None)},
        {"scale": 0.9},
        {"mask": np.arange(13 * 21).reshape(13, 21) % 3 > 0},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_attention(rng, options):
    for heads, kv_heads, n, m, d, dv in ((4, 2, 13, 21, 6, 5), (1, 1, 13, 21, 33, 33)):
        q, k = normal(rng, 2, heads, n, d, dtype=F64), normal(rng, 2, kv_heads, m, d, dtype=F64)
        v = normal(rng, 2, kv_heads, m, dv, dtype=F64)
        out, lse = nf.attention(q, k, v, return_lse=True, **options)
        gradient_check(
            rng,
            lambda q, k, v: nf.attention(q, k, v, **options),
            lambda dy: nf.attention_backward(dy, q, k, v, out, lse, **options),
            [q, k, v],
        )


@pytest.mark.parametrize("bias_shape", [(13, 21), (2, 1, 13, 21), (4, 1, 21), (1,)])
def test_attention_scores(rng, bias_shape):
    """All that changes scores, with the gradients of bias and sinks, of out and of lse."""
    q, k, v = (normal(rng, 2, h, n, 6, dtype=F64) for h, n in ((4, 13), (2, 21), (2, 21)))
    bias, sinks = normal(rng, *bias_shape, dtype=F64), normal(rng, 4, dtype=F64)
    options = {"softcap": 2.0, "alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0]), "dropout": 0.3, "seed": (3, 1, 4, 1)}
    options |= {"causal": True, "window": (9, None)}

    def f(q, k, v, bias, sinks):
        out, lse = nf.attention(q, k, v, bias=bias, sinks=sinks, return_lse=True, **options)
        return np.concatenate([out, lse[..., None]], axis=-1)

    def backward(dy):
        given = {"bias": bias, "sinks": sinks, **options}
        out, lse = nf.attention(q, k, v, return_lse=True, **given)
        *grads, more = nf.attention_backward(
            dy[..., :-1], q, k, v, out, lse, dlse=dy[..., -1], grads=("bias", "sinks"), **given
        )
        return (*grads, more["bias"], more["sinks"])

    gradient_check(rng, f, backward, [q, k, v, bias, sinks])


@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 2.0, "dropout": 0.3, "seed": 5}])
def test_attention_relative(rng, options):
    """r and both biases, of one head for each and of groups, with the gradients of out and of lse."""
    for heads, kv_heads, n, m in ((2, 2, 13, 21), (4, 2, 21, 21), (2, 1, 3, 9)):
        q, k, v = (normal(rng, 2, h, s, 6, dtype=F64) for h, s in ((heads, n), (kv_heads, m), (kv_heads, m)))
        r, u, w = (normal(rng, heads, *shape, 6, dtype=F64) for shape in ((n + m,), (), ()))

        def f(q, k, v, r, u, w, n=n):
            out, lse = nf.attention(q, k, v, rel=(r, u, w, n), return_lse=True, **options)
            return np.concatenate([out, lse[..., None]], axis=-1)

        def backward(dy, arrays=(q, k, v), rel=(r, u, w, n)):
            out, lse = nf.attention(*arrays, rel=rel, return_lse=True, **options)
            *grads, more = nf.attention_backward(
                dy[..., :-1], *arrays, out, lse, rel=rel, dlse=dy[..., -1], grads=("rel",), **options
            )
            return (*grads, *more["rel"])

        gradient_check(rng, f, backward, [q, k, v, r, u, w])


def test_attention_of_packed_sequences(rng):
    """With relative positions, whose r and biases all sequences share, and sinks."""
    rows, keys = np.array([0, 13, 13, 16]), np.array([0, 9, 11, 18])
    q, k, v = (normal(rng, total, h, 6, dtype=F64) for total, h in ((16, 4), (18, 2), (18, 2)))
    r, u, w = (normal(rng, 4, *shape, 6, dtype=F64) for shape in ((25,), (), ()))
    sinks = normal(rng, 4, dtype=F64)
    options = {"causal": True, "dropout": 0.3, "seed": 5}

    def f(q, k, v, sinks, r, u, w):
        given = {"sinks": sinks, "rel": (r, u, w, 12), **options}
        out, lse = nf.attention_varlen(q, k, v, rows, keys, return_lse=True, **given)
        return np.concatenate([out, lse.T[..., None]], axis=-1)

    def backward(dy):
        given = {"sinks": sinks, "rel": (r, u, w, 12), **options}
        out, lse = nf.attention_varlen(q, k, v, rows, keys, return_lse=True, **given)
        dlse = np.ascontiguousarray(dy[..., -1].T)
        *grads, more = nf.attention_varlen_backward(
            dy[..., :-1], q, k, v, out, lse, rows, keys, dlse=dlse, grads=("sinks", "rel"), **given
        )
        return (*grads, more["sinks"], *more["rel"])

    gradient_check(rng, f, backward, [q, k, v, sinks, r, u, w])


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(rng, axis):
    x = normal(rng, 3, 5, 19, dtype=F64)
    y = nf.softmax(x, axis=axis)
    gradient_check(rng, lambda x: nf.softmax(x, axis=axis), lambda dy: nf.softmax_backward(dy, y, axis=axis), [x])


def test_layer_norm(rng):
    x, w, b = normal(rng, 3, 5, 33, dtype=F64), normal(rng, 33, dtype=F64), normal(rng, 33, dtype=F64)
    _, mean, rstd = nf.layer_norm(x, w, b, return_stats=True)
    gradient_check(rng, nf.layer_norm, lambda dy: nf.layer_norm_backward(dy, x, mean, rstd, w, bias=True), [x, w, b])
    gradient_check(rng, nf.layer_norm, lambda dy: nf.layer_norm_backward(dy, x, mean, rstd)[:1], [x])


def test_rms_norm(rng):
    x, w = normal(rng, 3, 5, 33, dtype=F64), normal(rng, 33, dtype=F64)
    _, rstd = nf.rms_norm(x, w, return_stats=True)
    gradient_check(rng, nf.rms_norm, lambda dy: nf.rms_norm_backward(dy, x, rstd, w), [x, w])
    gradient_check(rng, nf.rms_norm, lambda dy: nf.rms_norm_backward(dy, x, rstd)[:1], [x])


@pytest.mark.parametrize(
    ("f", "options"), [("relu", {}), ("gelu", {}), ("gelu", {"approximate": "tanh"}), ("silu", {})]
)
def test_activations(rng, f, options):
    x = normal(rng, 7, 31, dtype=F64, scale=2.0)
    x += 0.1 * np.sign(x)  # away from the kink of ReLU
    forward, backward = getattr(nf, f), getattr(nf, f + "_backward")
    gradient_check(rng, lambda x: forward(x, **options), lambda dy: backward(dy, x, **options), [x])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(rng, label_smoothing, reduction):
    x, targets = normal(rng, 4, 5, 23, dtype=F64), rng.integers(0, 23, (4, 5))
    targets[1, 2:] = -100
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    _, lse = nf.cross_entropy(x, targets, return_lse=True, **options)
    gradient_check(
        rng,
        lambda x: np.asarray(nf.cross_entropy(x, targets, **options)),
        lambda dy: nf.cross_entropy_backward(dy, x, targets, lse, **options),
        [x],
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear_cross_entropy(rng, label_smoothing, reduction):
    x, weight, bias = normal(rng, 3, 9, 6, dtype=F64), normal(rng, 23, 6, dtype=F64), normal(rng, 23, dtype=F64)
    targets = rng.integers(0, 23, (3, 9))
    targets[1, 2:] = -100
    options = {"label_smoothing": label_smoothing, "reduction": reduction, "chunk": 5}
    gradient_check(
        rng,
        lambda x, weight, bias: nf.linear_cross_entropy(x, weight, targets, bias=bias, gradients=False, **options),
        lambda dy: nf.linear_cross_entropy(x, weight, targets, bias=bias, dloss=float(dy), **options)[1:],
        [x, weight, bias],
    )


def test_embedding(rng):
    w, ids = normal(rng, 9, 17, dtype=F64), rng.integers(0, 9, (4, 6))
    gradient_check(rng, lambda w: nf.embedding(w, ids), lambda dy: nf.embedding_backward(dy, ids, 9), [w])


def test_dropout(rng):
    x = normal(rng, 4, 6, 7, dtype=F64)
    options = {"seed": 3, "layer": 1, "step": 4, "sample": 1}
    gradient_check(
        rng, lambda x: nf.dropout(x, 0.4, **options), lambda dy: nf.dropout_backward(dy, 0.4, **options), [x]
    )


def test_add_and_bias(rng):
    a, b, bias = normal(rng, 4, 7, dtype=F64), normal(rng, 4, 7, dtype=F64), normal(rng, 7, dtype=F64)
    gradient_check(rng, nf.add, lambda dy: (dy, dy), [a, b])
    gradient_check(rng, lambda bias: np.broadcast_to(bias, (4, 7)), nf.sum_rows, [bias])
