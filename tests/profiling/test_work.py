"""FLOPs and bytes that kernels declare, against counting: formulas are run on numbers that count their operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numformer as nf
import numpy as np
import pytest

COLUMNS, ROWS = 6, 5
F32 = np.float32


class Number:
    """A number that counts what is done to it."""

    done = 0

    def _one(self, *_: Any) -> Number:
        Number.done += 1
        return Number()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _one


def one(*_: Any) -> Number:
    """max, a choice, exp, erf, tanh, sqrt: one operation."""
    Number.done += 1
    return Number()


class Sum(Number):
    """A sum that begins with 0: the first addition counts too."""


def count(formula: Callable[..., Any], arguments: int) -> int:
    """Operations that an element needs."""
    Number.done = 0
    formula(*(Number() for _ in range(arguments)))
    return Number.done


def work(call: Callable[[], Any], name: str) -> tuple[float, float]:
    with nf.profile() as p:
        call()
    (record,) = [r for r in p.records() if r["name"] == name]
    return float(record["flops"]), float(record["bytes"])


def _ones(*shape: int, dtype: Any = F32) -> np.ndarray:
    return np.ones(shape, dtype)


X, ROW, STAT = _ones(ROWS, COLUMNS), _ones(COLUMNS), _ones(ROWS)

# Name, call, the formula of one element, its arguments, operands in (elements, bytes of one).
E = ROWS * COLUMNS
ELEMENTWISE: list[tuple[str, Callable[[], Any], Callable[..., Any], int, int]] = [
    ("relu", lambda: nf.relu(X), lambda x: one(x), 1, 2 * E * 4),
    ("relu_backward", lambda: nf.relu_backward(X, X), lambda dy, x: one(dy, x), 2, 3 * E * 4),
    ("gelu", lambda: nf.gelu(X), lambda x: x * 0.5 * (1 + one(x * 0.7)), 1, 2 * E * 4),
    ("gelu", lambda: nf.gelu(X, approximate="tanh"), lambda x: x * 0.5 * (1 + one(x * (0.8 + 0.04 * (x * x)))), 1, 240),
    ("silu", lambda: nf.silu(X), lambda x: x / (1 + one(x)), 1, 2 * E * 4),
    (
        "gelu_backward",
        lambda: nf.gelu_backward(X, X),
        lambda dy, x: dy * (0.5 * (1 + one(x * 0.7)) + x * (0.4 * one(-0.5 * (x * x)))),
        2,
        3 * E * 4,
    ),
    (
        "gelu_backward",
        lambda: nf.gelu_backward(X, X, approximate="tanh"),
        lambda dy, x: _gelu_tanh_backward(dy, x),
        2,
        3 * E * 4,
    ),
    ("silu_backward", lambda: nf.silu_backward(X, X), lambda dy, x: _silu_backward(dy, x), 2, 3 * E * 4),
    ("add", lambda: nf.add(X, X), lambda a, b: a + b, 2, 3 * E * 4),
    ("add", lambda: nf.add(X, ROW), lambda a, b: a + b, 2, (2 * E + COLUMNS) * 4),
    ("cast", lambda: nf.cast(X, np.float16), lambda x: x, 1, E * (4 + 2)),
    ("cast", lambda: nf.cast(X, np.float64, scale=0.5), lambda x: x * 0.5, 1, E * (4 + 8)),
    ("dropout", lambda: nf.dropout(X, 0.5, seed=1), lambda x: x * 2.0, 1, 2 * E * 4),
    ("dropout", lambda: nf.dropout(X, 0.5, seed=1, residual=X), lambda x, r: x * 2.0 + r, 2, 3 * E * 4),
    ("dropout_backward", lambda: nf.dropout_backward(X, 0.5, seed=1), lambda dy: dy * 2.0, 1, 2 * E * 4),
    ("softmax", lambda: nf.softmax(X), lambda x: (one(x), Sum() + one(x - 1) * Number()), 1, 2 * E * 4),
    ("softmax_backward", lambda: nf.softmax_backward(X, X), lambda dy, y: (Sum() + dy * y, y * (dy - 1)), 2, 360),
    ("sum_rows", lambda: nf.sum_rows(X), lambda x: Sum() + x, 1, (E + COLUMNS) * 4),
    ("sum_rows", lambda: nf.sum_rows(X, accumulate=True, out=_ones(COLUMNS)), lambda x: Sum() + x, 1, 168),
    ("global_norm", lambda: nf.global_norm([X, ROW]), lambda x: Sum() + x * x, 1, (E + COLUMNS) * 4),
]


def _gelu_tanh_backward(dy: Any, x: Any) -> Any:
    square = x * x
    t = one(x * (0.8 + 0.04 * square))
    return dy * (0.5 * (1 + t) + (0.5 * x) * (1 - t * t) * (0.8 + 0.1 * square))


def _silu_backward(dy: Any, x: Any) -> Any:
    s = 1 / (1 + one(x))
    return dy * (s * (1 + x * (1 - s)))


@pytest.mark.parametrize("case", ELEMENTWISE, ids=lambda case: case[0])
def test_elementwise(case):
    name, call, formula, arguments, moved = case
    flops, bytes_ = work(call, name)
    elements = E + COLUMNS if name == "global_norm" else E
    assert flops == count(formula, arguments) * elements
    assert bytes_ == moved


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(weight, bias):
    w, b = (ROW if weight else None), (ROW if bias else None)

    def forward(x: Number) -> None:
        mean = Sum() + x
        d = x - mean
        square = Sum() + d * d  # around the mean
        h = (x - mean) * square
        h = h * 1.0 if weight else h
        _ = h + 1.0 if bias else h

    # x - mean is made twice, once for the variance and once for h.
    flops, moved = work(lambda: nf.layer_norm(X, w, b, return_stats=True), "layer_norm")
    assert flops == count(forward, 1) * E
    assert moved == 4 * (2 * E + (weight + bias) * COLUMNS + 2 * ROWS)

    def backward(dy: Number, x: Number) -> None:
        h = (x - 1.0) * 1.0
        if weight:
            _ = Sum() + dy * h  # dweight
        if bias:
            _ = Sum() + dy
        g = dy * 1.0 if weight else dy
        mean_g, mean_gh = Sum() + g, Sum() + g * h
        dx = (g - mean_g - h * mean_gh) * 1.0
        _ = dx + 1.0  # residual

    call = lambda: nf.layer_norm_backward(X, X, STAT, STAT, w, bias=bias, residual=X)
    flops, moved = work(call, "layer_norm_backward")
    assert flops == count(backward, 2) * E
    assert moved == 4 * (4 * E + (2 * weight + bias) * COLUMNS + 2 * ROWS)


def test_rms_norm():
    def forward(x: Number) -> None:
        square = Sum() + x * x
        _ = x * square * 1.0

    def backward(dy: Number, x: Number) -> None:
        h = x * 1.0
        _ = Sum() + dy * h
        g = dy * 1.0
        mean_gh = Sum() + g * h
        _ = (g - h * mean_gh) * 1.0

    flops, moved = work(lambda: nf.rms_norm(X, ROW, return_stats=True), "rms_norm")
    assert (flops, moved) == (count(forward, 1) * E, 4 * (2 * E + COLUMNS + ROWS))
    flops, moved = work(lambda: nf.rms_norm_backward(X, X, STAT, ROW), "rms_norm_backward")
    assert (flops, moved) == (count(backward, 2) * E, 4 * (3 * E + 2 * COLUMNS + ROWS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    targets = np.array([0, -100, 2, 3, -100])

    def forward(x: Number) -> None:
        top = one(x)
        _ = Sum() + one(x - top)
        if smoothing:
            _ = Sum() + (x - top)

    def backward(x: Number) -> None:
        p = one(x - 1.0)
        p = p - 1.0 if smoothing else p
        _ = p * 1.0

    flops, moved = work(lambda: nf.cross_entropy(X, targets, label_smoothing=smoothing), "cross_entropy")
    assert (flops, moved) == (count(forward, 1) * E, 4 * E + 8 * ROWS + 2 * 4 * ROWS)
    call = lambda: nf.cross_entropy_backward(1.0, X, targets, STAT, label_smoothing=smoothing)
    flops, moved = work(call, "cross_entropy_backward")
    used = 3  # ignored rows are written, nothing else
    assert flops == count(backward, 1) * used * COLUMNS
    assert moved == 4 * (used * COLUMNS + E) + 8 * ROWS + 4 * (used + 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy(smoothing):
    """Three products and, on the logits, loss and gradient in one; 16-bit sums are rounded at the end."""

    def both(x: Number) -> None:
        top = one(x)
        e = one(x - top)
        _ = Sum() + e
        if smoothing:
            _ = Sum() + (x - top)
        d = e * 1.0
        _ = d - 1.0 if smoothing else d

    classes = 7
    for dtype, item in ((F32, 4), (ml_dtypes.bfloat16, 2)):
        x, weight = _ones(ROWS, COLUMNS, dtype=dtype), _ones(classes, COLUMNS, dtype=dtype)
        call = lambda x=x, weight=weight: nf.linear_cross_entropy(
            x, weight, np.zeros(ROWS, int), label_smoothing=smoothing
        )
        elements = ROWS * classes
        flops, moved = work(call, "cross_entropy_gradient")
        assert (flops, moved) == (count(both, 1) * elements, elements * (4 + item) + ROWS * (8 + 4))
        with nf.profile() as p:
            call()
        assert sum(r["flops"] for r in p.records() if r["name"] == "matmul") == 3 * 2 * elements * COLUMNS
    weights = classes * COLUMNS
    assert work(call, "round_sums") == (0, weights * (4 + 2))
    dweight = weight.copy()
    add = lambda: nf.linear_cross_entropy(x, weight, np.zeros(ROWS, int), dweight=dweight, accumulate=True)
    assert work(add, "round_sums") == (weights, weights * (4 + 2 + 2))


def test_embedding():
    table, ids = _ones(9, COLUMNS), np.array([1, 2, 2, 8])
    assert work(lambda: nf.embedding(table, ids), "embedding") == (0, 2 * 4 * COLUMNS * 4 + 8 * 4)
    dy = _ones(4, COLUMNS)
    flops, moved = work(lambda: nf.embedding_backward(dy, ids, 9), "embedding_backward")
    assert (flops, moved) == (4 * COLUMNS, 4 * (4 * COLUMNS + 9 * COLUMNS) + 8 * 4)
    out = _ones(9, COLUMNS)
    call = lambda: nf.embedding_backward(dy, ids, 9, accumulate=True, out=out)
    assert work(call, "embedding_backward") == (4 * COLUMNS, 4 * (3 * 4 * COLUMNS) + 8 * 4)


def _gradient(grad: Number, w: Number) -> Number:
    return grad * 1.0 + w * 0.1


def _adam(grad: Number, w: Number, m: Number, v: Number) -> None:
    g = _gradient(grad, w)
    m = m * 0.9 + g * 0.1
    v = v * 0.9 + g * g * 0.1
    _ = w * 1.0 - m * 0.1 / (one(v) * 1.0 + 1e-8)


def _rmsprop(centred: bool, momentum: bool) -> Callable[..., None]:
    def formula(grad: Number, w: Number, s: Number) -> None:
        g = _gradient(grad, w)
        s = s * 0.9 + g * g * 0.1
        if centred:
            m = s * 0.9 + g * 0.1
            s = one(s - m * m)
        step = g / (one(s) + 1e-8)
        if momentum:
            step = s * 0.9 + step
        _ = w - step * 0.1

    return formula


def test_updates():
    n = 37

    def arrays(count: int) -> list[list[np.ndarray]]:
        return [[_ones(n - 7), _ones(7)] for _ in range(count)]

    w, g, m, v, u = arrays(5)

    def check(name: str, call: Callable[[], Any], formula: Callable[..., None], arguments: int, streams: int) -> None:
        assert work(call, name) == (count(formula, arguments) * n, streams * n * 4)

    def sgd(momentum: bool, nesterov: bool) -> Callable[..., None]:
        def formula(grad: Number, w: Number, u: Number) -> None:
            step = _gradient(grad, w)
            if momentum:
                u = u * 0.9 + step
                step = step + u * 0.9 if nesterov else u
            _ = w - step * 0.1

        return formula

    check("sgd_update", lambda: nf.sgd_update(w, g, None, lr=0.1), sgd(False, False), 3, 3)
    check("sgd_update", lambda: nf.sgd_update(w, g, m, lr=0.1, momentum=0.9), sgd(True, False), 3, 5)
    call = lambda: nf.sgd_update(w, g, m, lr=0.1, momentum=0.9, nesterov=True)
    check("sgd_update", call, sgd(True, True), 3, 5)
    check("adamw_update", lambda: nf.adamw_update(w, g, m, v, lr=0.1, step=1), _adam, 4, 7)
    check("adam_update", lambda: nf.adam_update(w, g, m, v, lr=0.1, step=1), _adam, 4, 7)

    def adagrad(grad: Number, w: Number, s: Number) -> None:
        gradient = _gradient(grad, w)
        s = s + gradient * gradient
        _ = w - gradient * 0.1 / (one(s) + 1e-8)

    check("adagrad_update", lambda: nf.adagrad_update(w, g, m, lr=0.1), adagrad, 3, 5)
    check("rmsprop_update", lambda: nf.rmsprop_update(w, g, m, lr=0.1), _rmsprop(False, False), 3, 5)
    call = lambda: nf.rmsprop_update(w, g, m, v, u, lr=0.1, momentum=0.9)
    check("rmsprop_update", call, _rmsprop(True, True), 3, 9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
def test_matmul(dtype):
    item = np.dtype(dtype).itemsize
    a, b = _ones(5, 3, 4, dtype=dtype), _ones(4, 7, dtype=dtype)
    multiply_adds = sum(1 for _ in np.ndindex(5, 3, 7, 4))
    out = 5 * 3 * 7 * item
    operands = (a.size + b.size) * item  # b is broadcast over the batch: one matrix in memory
    assert work(lambda: nf.matmul(a, b), "matmul") == (2 * multiply_adds, operands + out)
    y = nf.matmul(a, b)
    flops, moved = work(lambda: nf.matmul(a, b, bias=b[0].copy(), residual=y), "matmul")
    assert (flops, moved) == (2 * multiply_adds, operands + 2 * out + 7 * item)
    call = lambda: nf.matmul(a, b, activation="gelu", save_preactivation=True)
    assert work(call, "matmul")[1] == operands + 2 * out
    assert work(lambda: nf.matmul(a, b, out=y, accumulate=True), "matmul")[1] == operands + 2 * out


def _allowed(queries: int, keys: int, causal: Any, window: Any) -> int:
    """Pairs that may meet, one by one."""
    diagonal = 0 if causal == "top_left" else keys - queries
    left, right = window or (None, None)
    return sum(
        (not causal or j <= i + diagonal)
        and (left is None or i + diagonal - j <= left)
        and (right is None or j - (i + diagonal) <= right)
        for i in range(queries)
        for j in range(keys)
    )


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (5, 9), (9, 5), (1, 12), (12, 1), (0, 4), (33, 20)])
@pytest.mark.parametrize("causal", [False, True, "top_left"])
@pytest.mark.parametrize("window", [None, (0, 0), (3, 1), (None, 2), (2, None), (100, 100)])
def test_attention(queries, keys, causal, window):
    batch, heads, kv_heads, dim, value_dim = 2, 4, 2, 3, 5
    q, k = _ones(batch, heads, queries, dim), _ones(batch, kv_heads, keys, dim)
    v = _ones(batch, kv_heads, keys, value_dim)
    options = {"causal": causal, "window": window}
    pairs = batch * heads * _allowed(queries, keys, causal, window)
    flops, moved = work(lambda: nf.attention(q, k, v, **options), "attention")
    out = batch * heads * queries * value_dim
    lse = batch * heads * queries
    assert flops == pairs * 2 * (dim + value_dim)  # q . k, and p v
    assert moved == 4 * (q.size + k.size + v.size + out + lse)
    y, statistics = nf.attention(q, k, v, return_lse=True, **options)
    call = lambda: nf.attention_backward(y, q, k, v, y, statistics, **options)
    flops, moved = work(call, "attention_backward")
    # q . k again, dv = p dout, dp = dout . v, dq = ds k, dk = ds q
    assert flops == pairs * 2 * (dim + value_dim + value_dim + dim + dim)
    assert moved == 4 * (2 * (q.size + k.size + v.size + out) + lse)


def test_attention_bias_backward():
    q, k, v = _ones(2, 3, 5, 4), _ones(2, 3, 7, 4), _ones(2, 3, 7, 6)
    bias = _ones(3, 1, 7)
    y, lse = nf.attention(q, k, v, bias=bias, return_lse=True)
    call = lambda: nf.attention_backward(y, q, k, v, y, lse, bias=bias, grads=("bias",))
    flops, moved = work(call, "attention_bias_backward")
    assert flops == 2 * 3 * 5 * 7 * 2 * (4 + 6)  # q . k and dp = dout . v again
    assert moved == 4 * (q.size + k.size + v.size + y.size + bias.size)


@pytest.mark.parametrize(("queries", "keys", "causal", "window"), [(7, 12, False, None), (9, 9, True, (3, None))])
def test_attention_with_relative_positions(queries, keys, causal, window):
    """One product more a pair; backward the scores again and dq; its own gradient: scores and dp again, and dr."""
    heads, dim, value_dim = 2, 5, 3
    q, k, v = _ones(heads, queries, dim), _ones(heads, keys, dim), _ones(heads, keys, value_dim)
    sees = np.array([[1] * keys] * queries)
    distance = np.arange(queries)[:, None] + keys - queries - np.arange(keys)
    if causal:
        sees = (distance >= 0) & (distance <= window[0])
    pairs, needed = heads * int(sees.sum()), len(np.unique(distance[sees.astype(bool)]))
    rel = _ones(heads, queries + keys, dim), _ones(heads, dim), _ones(heads, dim), queries
    options = {"rel": rel, "causal": causal, "window": window}
    operands = 4 * heads * (queries + keys) * (dim + value_dim)
    lse, r = 4 * heads * queries, 4 * heads * needed * dim
    assert work(lambda: nf.attention(q, k, v, **options), "attention") == (
        2 * pairs * (2 * dim + value_dim),
        operands + r + lse,
    )
    out, stats = nf.attention(q, k, v, return_lse=True, **options)
    call = lambda: nf.attention_backward(out, q, k, v, out, stats, grads=("rel",), **options)
    assert work(call, "attention_backward") == (2 * pairs * (5 * dim + 2 * value_dim), 2 * operands + r + lse)
    assert work(call, "attention_relative_backward") == (2 * pairs * (3 * dim + value_dim), operands + 2 * r)


def test_attention_of_packed_sequences():
    """The sum over the sequences, and no pair across two of them."""
    starts = np.array([0, 3, 3, 8])
    q, k, v = _ones(8, 4, 3), _ones(8, 2, 3), _ones(8, 2, 5)
    flops, moved = work(lambda: nf.attention_varlen(q, k, v, starts, starts, causal=True), "attention_varlen")
    assert flops == 4 * (3 * 4 // 2 + 5 * 6 // 2) * 2 * (3 + 5)
    assert moved == 4 * (q.size + k.size + v.size + 8 * 4 * 5 + 4 * 8)


def test_a_training_step_counts_what_the_model_needs():
    """Products: 6 operations a weight and token, and attention's 2 + 5 products over half the square."""
    from numformer.models import GPT, GPTConfig

    config = GPTConfig(vocab_size=61, context=32, layers=3, heads=4, width=48)
    model = GPT(config, rng=0)
    ids, targets = np.random.default_rng(0).integers(0, 61, (2, 5, 32))
    with nf.profile() as p:
        _, backward = model.loss((ids, targets))
        backward()
    records = p.records()
    tokens, pairs = 5 * 32, 32 * 33 // 2
    weights = config.layers * 12 * 48 * 48 + 61 * 48
    analytic = 6 * weights * tokens + config.layers * 5 * pairs * 2 * 7 * 48
    products = np.isin(records["name"], ["matmul", "attention", "attention_backward"])
    assert records["flops"][products].sum() == analytic
    assert analytic >= 0.8 * records["flops"].sum(), "the rest is small even in a small model"


def test_every_kernel_is_counted_here():
    """A kernel that is added needs its formula counted above."""
    import re
    from pathlib import Path

    ops = Path(__file__).resolve().parents[2] / "csrc" / "ops"
    if not ops.is_dir():
        pytest.skip("csrc/ is not here: this is an installed package")
    formulas = set(re.findall(r"^inline Work (\w+)\(", (ops / "work.hpp").read_text(), re.MULTILINE))
    assert formulas == {
        *("matmul", "attention", "attention_backward", "attention_bias_backward", "attention_relative_backward"),
        *("softmax", "softmax_backward", "norm", "norm_backward"),
        *("activation", "activation_backward", "cross_entropy", "cross_entropy_backward"),
        *("cross_entropy_gradient", "round_sums", "embedding"),
        *("embedding_backward", "dropout", "add", "cast", "sum_rows", "sgd", "adam", "adagrad", "rmsprop"),
    }
