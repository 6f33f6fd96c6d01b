"""Every function on the device gives what it gives on the host."""

import gpu
import gpu_twin
import numformer as nf
import numpy as np
import pytest
from arrays import DTYPES, normal
from attention_judge import relative

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")


@pytest.fixture(scope="module", params=["twin", "kernels"])
def device(request):
    """The CPU's kernels, or those of the GPU themselves, run on the host."""
    core = gpu_twin.core if request.param == "twin" else pytest.importorskip("cuda_host").load()
    with gpu.standing_in(core) as found:
        found.twin = request.param == "twin"
        yield found


ROUNDING = {2: 2.0**-7, 4: 2.0**-22, 8: 2.0**-50}
"""By the size of a dtype; twice that of bfloat16, float32 and float64."""
IN_PLACE = ROUNDING if gpu.TRUE else dict.fromkeys(ROUNDING, 0.0)
"""Updates: the same operations in the same order, of which a device contracts some, and divides its own way."""


def agree(call, *arguments, tolerance=8.0, **options):
    """The call on the host and on the device; `tolerance` in roundings of the narrowest dtype."""
    narrow = min(x.itemsize for x in arguments if isinstance(x, np.ndarray) and x.dtype.kind not in "iub")
    tolerance *= ROUNDING[narrow]
    lengths = {name: value for name, value in options.items() if name.startswith("cu_seqlens")}
    found = call(*gpu.put(list(arguments)), **gpu.put(options) | lengths)
    compare(gpu.got(found), call(*arguments, **options), tolerance)


def compare(found, expected, tolerance):
    if isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other, tolerance)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            compare(found[name], expected[name], tolerance)
    elif expected is None:
        assert found is None
    else:
        expected = np.asarray(expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        wide = [np.asarray(x, np.float64) for x in (found, expected)]
        tolerance = tolerance[expected.itemsize] if isinstance(tolerance, dict) else tolerance
        largest = abs(wide[1][np.isfinite(wide[1])]).max(initial=0) or 1  # lse may be -inf
        np.testing.assert_allclose(*wide, rtol=tolerance, atol=tolerance * largest)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5,), (3, 2, 7), (0,)])
def test_elementwise(device, rng, dtype, shape):
    x, dy = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
    for name in ("relu", "silu", "gelu"):
        agree(getattr(nf, name), x)
        agree(getattr(nf, f"{name}_backward"), dy, x)
    agree(nf.gelu, x, approximate="tanh")
    agree(nf.gelu_backward, dy, x, approximate="tanh")
    agree(nf.add, x, dy)
    agree(nf.add, x, dy[0] if len(shape) > 1 and shape[0] else dy)
    agree(nf.sum_rows, x)
    for other in DTYPES:
        agree(nf.cast, x, other, scale=0.5)
    if 0 not in shape:
        for axis in range(-len(shape), len(shape)):
            y = nf.softmax(x, axis)
            agree(nf.softmax, x, axis)
            agree(nf.softmax_backward, dy, y, axis)


def test_outputs_that_are_given(device, rng, dtype):
    x = normal(rng, 4, 6, dtype=dtype)
    out = normal(rng, 6, dtype=dtype)
    agree(lambda x, out: (nf.sum_rows(x, out=out, accumulate=True), out), x, out.copy())
    # Not contiguous, and over its own input: computed beside.
    there = gpu.put(np.stack([out, out], axis=1))[:, 0]
    nf.sum_rows(gpu.put(x), out=there, accumulate=True)
    expected = out.copy()
    nf.sum_rows(x, out=expected, accumulate=True)
    compare(gpu.got(there), expected, 8 * ROUNDING[dtype.itemsize])
    square = normal(rng, 5, 5, dtype=dtype)
    there = gpu.put(square)
    assert nf.matmul(there, there, out=there) is there
    compare(gpu.got(there), nf.matmul(square, square), 8 * ROUNDING[dtype.itemsize])
    there = gpu.put(square)
    assert nf.cast(there, dtype, scale=2.0, out=there) is there
    compare(gpu.got(there), nf.cast(square, dtype, scale=2.0), 0)


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)),
     ((2, 1, 3, 4), (5, 4, 2)), ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((2, 3, 4), (4,))],
)  # fmt: skip
def test_matmul(device, rng, dtype, a, b):
    a, b = normal(rng, *a, dtype=dtype), normal(rng, *b, dtype=dtype)
    y = nf.matmul(a, b)
    agree(nf.matmul, a, b, tolerance=8)
    agree(nf.matmul, a, b, scale=0.5, activation="gelu", save_preactivation=True, tolerance=8)
    if np.ndim(y):
        residual = normal(rng, *y.shape, dtype=dtype)
        agree(nf.matmul, a, b, residual=residual, tolerance=8)
        agree(lambda a, b, out: nf.matmul(a, b, out=out, accumulate=True), a, b, residual, tolerance=8)
    if b.ndim > 1:
        bias = normal(rng, b.shape[-1], dtype=dtype)
        agree(nf.matmul, a, b, bias=bias, tolerance=8)
        if a.size and a.ndim > 1:
            agree(nf.matmul_backward, y, a, b, bias=bias, tolerance=16)
    if dtype.itemsize == 2:
        agree(nf.matmul, a, b, dtype=np.float32, tolerance=8)
        if b.ndim > 1:
            agree(nf.matmul, a, b, bias=normal(rng, b.shape[-1]), tolerance=8)


def test_norms(device, rng, dtype):
    x, dy, residual = (normal(rng, 2, 3, 7, dtype=dtype) for _ in range(3))
    weight, bias = (normal(rng, 7, dtype=dtype) for _ in range(2))
    for vectors in ((), (weight,), (weight, bias)):
        agree(nf.layer_norm, x, *vectors)
        agree(nf.layer_norm, x, *vectors, return_stats=True)
        _, mean, rstd = nf.layer_norm(x, *vectors, return_stats=True)
        agree(nf.layer_norm_backward, dy, x, mean, rstd, *vectors[:1], bias=len(vectors) > 1, residual=residual)
    for vectors in ((), (weight,)):
        agree(nf.rms_norm, x, *vectors)
        _, rstd = nf.rms_norm(x, *vectors, return_stats=True)
        agree(nf.rms_norm_backward, dy, x, rstd, *vectors, residual=residual)
    if dtype.itemsize == 2:
        agree(nf.layer_norm, x, weight.astype(np.float32), bias.astype(np.float32))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(device, rng, dtype, reduction):
    logits, targets = normal(rng, 3, 4, 9, dtype=dtype), rng.integers(0, 9, (3, 4))
    targets[1, 2] = -100
    options = {"label_smoothing": 0.1, "reduction": reduction}
    agree(nf.cross_entropy, logits, targets, return_lse=True, **options)
    loss, lse = nf.cross_entropy(logits, targets, return_lse=True, **options)
    dloss = np.asarray(rng.standard_normal(np.shape(loss)), lse.dtype)
    agree(nf.cross_entropy_backward, dloss, logits, targets, lse, **options)
    agree(nf.cross_entropy_backward, 2.0, logits, targets, lse, **options)
    agree(nf.cross_entropy, logits, targets.astype(np.int32), **options)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_linear_cross_entropy(device, rng, dtype, reduction, chunk):
    x, weight, targets = normal(rng, 2, 5, 6, dtype=dtype), normal(rng, 9, 6, dtype=dtype), rng.integers(0, 9, (2, 5))
    targets[0, 1] = -100
    bias = normal(rng, 9, dtype=dtype)
    options = {"reduction": reduction, "chunk": chunk, "dloss": 0.5, "label_smoothing": 0.1, "tolerance": 8}
    agree(nf.linear_cross_entropy, x, weight, targets, **options)
    agree(nf.linear_cross_entropy, x, weight, targets, bias=bias, **options)
    agree(nf.linear_cross_entropy, x, weight, targets, gradients=False, **options)
    wide = np.float64 if dtype == np.float64 else np.float32
    held, row = normal(rng, 9, 6, dtype=wide), normal(rng, 9, dtype=wide)

    def given(x, weight, targets, bias, dweight, dbias, accumulate):
        loss, dx, *_ = nf.linear_cross_entropy(
            x, weight, targets, bias=bias, dweight=dweight, dbias=dbias, accumulate=accumulate, chunk=chunk
        )
        return loss, dx, dweight, dbias

    for accumulate in (False, True):
        agree(given, x, weight, targets, bias, held.copy(), row.copy(), accumulate=accumulate, tolerance=8)
    empty = np.zeros((0, 6), dtype), weight, np.zeros(0, np.int64)
    agree(nf.linear_cross_entropy, *empty, bias=bias)


@pytest.mark.parametrize("classes", [3, 75])
def test_linear_cross_entropy_of_a_padded_head(device, rng, dtype, classes):
    """In 16 bits products are given whole packs of classes, where there are rows enough."""
    x, weight = normal(rng, 260, 6, dtype=dtype), normal(rng, classes, 6, dtype=dtype)
    targets, bias = rng.integers(0, classes, 260), normal(rng, classes, dtype=dtype)
    options = {"chunk": 100, "label_smoothing": 0.1, "tolerance": 8}
    agree(nf.linear_cross_entropy, x, weight, targets, bias=bias, **options)
    agree(nf.linear_cross_entropy, x, weight.T.copy().T, targets, **options)
    agree(nf.linear_cross_entropy, x, weight, targets, gradients=False, **options)
    held = normal(rng, classes, 6, dtype=np.float64 if dtype == np.float64 else np.float32)

    def given(x, weight, targets, dweight, accumulate):
        loss, dx, _ = nf.linear_cross_entropy(
            x, weight, targets, dweight=dweight, accumulate=accumulate, chunk=100, reduction="sum"
        )
        return loss, dx, dweight

    for accumulate in (False, True):
        agree(given, x, weight, targets, held.copy(), accumulate=accumulate, tolerance=8)


def test_embedding_and_dropout(device, rng, dtype):
    weight, ids = normal(rng, 11, 5, dtype=dtype), rng.integers(0, 11, (3, 4))
    agree(nf.embedding, weight, ids)
    dy = normal(rng, 3, 4, 5, dtype=dtype)
    agree(nf.embedding_backward, dy, ids, 11)
    wide = np.float64 if dtype == np.float64 else np.float32
    agree(
        lambda dy, ids, out: nf.embedding_backward(dy, ids, 11, out=out, accumulate=True),
        dy,
        ids,
        normal(rng, 11, 5, dtype=wide),
    )
    x, residual = normal(rng, 6, 4, dtype=dtype), normal(rng, 6, 4, dtype=dtype)
    place = {"seed": 3, "layer": 1, "step": 5, "sample": 2}
    agree(nf.dropout, x, 0.3, residual=residual, **place)
    agree(nf.dropout, x, 0.3, cu_seqlens=np.array([0, 2, 2, 6]), **place)
    agree(nf.dropout_backward, x, 0.3, **place)
    agree(nf.dropout, x[:0], 0.3, **place)


OPTIONS = [
    {},
    {"causal": True, "window": (3, None)},
    {"causal": "top_left", "scale": 0.3, "softcap": 4.0},
    {"window": (1, 2)},
    {"mask": "mask"},
    {"bias": "bias", "sinks": "heads", "alibi_slopes": "heads"},
    {"dropout": 0.3, "seed": (7, 1, 2, 3)},
    {"dropout": 0.3, "seed": 7},
]


@pytest.mark.parametrize("number", range(len(OPTIONS)))
@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (2, 3, 4)])
def test_attention(device, rng, dtype, number, lead):
    n, m, size = 5, 7, 8
    kv = (*lead[:-1], 2) if lead else ()
    q, k = normal(rng, *lead, n, size, dtype=dtype), normal(rng, *kv, m, size, dtype=dtype)
    v, dout = normal(rng, *kv, m, 6, dtype=dtype), normal(rng, *lead, n, 6, dtype=dtype)
    heads = lead[-1] if lead else 1
    made = {
        "mask": rng.random((n, m)) < 0.7,
        "bias": normal(rng, heads, n, m, dtype=dtype) if lead else normal(rng, n, m, dtype=dtype),
        "heads": np.abs(normal(rng, heads, dtype=dtype)),
    }
    options = {
        name: made.get(value, value) if isinstance(value, str) else value for name, value in OPTIONS[number].items()
    }
    agree(nf.attention, q, k, v, **options)
    agree(nf.attention, q, k, v, return_lse=True, **options)
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    agree(nf.attention_backward, dout, q, k, v, out, lse, dlse=np.ones_like(lse), **options)
    if "bias" in options:
        agree(nf.attention_backward, dout, q, k, v, out, lse, grads=("bias", "sinks"), **options)


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_attention_with_relative_positions(device, rng, dtype, lead):
    n, m, size = 5, 7, 8
    q, k, v, dout = (normal(rng, *lead, rows, size, dtype=dtype) for rows in (n, m, m, n))
    options = {"causal": True, "rel": relative(rng, dtype, n, m, heads=(lead or (1,))[-1], d=size, causal=True)}
    agree(nf.attention, q, k, v, return_lse=True, **options)
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    agree(nf.attention_backward, dout, q, k, v, out, lse, grads=("rel",), **options)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("lead", [(), (2, 4)])
def test_attention_with_global_tokens(device, rng, dtype, lead, rows):
    q, k, v, dout = (normal(rng, *lead, 6, 8, dtype=dtype) for _ in range(4))
    options = {"window": (1, 0), "global_tokens": rng.random((*lead[:-1], 6)) < 0.4, "global_rows": rows}
    agree(nf.attention, q, k, v, return_lse=True, **options)
    out, lse = nf.attention(q, k, v, return_lse=True, **options)
    agree(nf.attention_backward, dout, q, k, v, out, lse, **options)


def test_the_kernel_of_attention_may_be_named(device, rng, monkeypatch):
    q = gpu.put(normal(rng, 5, 8))
    monkeypatch.setenv("NUMFORMER_CUDA_ATTENTION", "mma.sync")
    nf.attention(q, q, q)
    monkeypatch.setenv("NUMFORMER_CUDA_ATTENTION", "best")
    with pytest.raises(ValueError, match=r"attention: kernel must be None, 'mma\.sync' or 'wgmma', got 'best'"):
        nf.attention(q, q, q)


@pytest.mark.parametrize(
    ("tokens", "kind", "words"),
    [
        (np.ones(6, np.float32), TypeError, "global_tokens must have dtype bool, got float32"),
        (np.ones(5, bool), ValueError, r"global_tokens must have shape \(6,\), got \(5,\)"),
    ],
)
def test_global_tokens_that_do_not_fit(device, rng, tokens, kind, words):
    q = normal(rng, 6, 8)
    for put in (lambda x: x, gpu.put):
        with pytest.raises(kind, match=words):
            nf.attention(put(q), put(q), put(q), global_tokens=put(tokens))
        with pytest.raises(
            ValueError, match="global_tokens must be None unless q and k have as many rows, got 5 and 6"
        ):
            nf.attention(put(q[:5]), put(q), put(q), global_tokens=put(np.ones(5, bool)))


def test_attention_of_packed_sequences(device, rng, dtype):
    q, k, v = (normal(rng, total, heads, 8, dtype=dtype) for total, heads in ((9, 4), (11, 2), (11, 2)))
    starts = {"cu_seqlens_q": np.array([0, 4, 4, 9]), "cu_seqlens_k": np.array([0, 5, 6, 11], np.int32)}

    def call(q, k, v, dout, **starts):
        out, lse = nf.attention_varlen(q, k, v, *starts.values(), causal=True, return_lse=True)
        return out, lse, nf.attention_varlen_backward(dout, q, k, v, out, lse, *starts.values(), causal=True)

    agree(call, q, k, v, normal(rng, 9, 4, 8, dtype=dtype), **starts)


def test_attention_writes_where_it_is_told(device, rng, dtype):
    """Views of one array by head, as the layers give them."""
    host = normal(rng, 2, 5, 3, 4, 8, dtype=dtype)  # batch, positions, q k v, heads, size
    there = gpu.put(host)
    views = [there[:, :, i].swapaxes(1, 2) for i in range(3)]
    arrays = [host[:, :, i].swapaxes(1, 2) for i in range(3)]
    merged = gpu.put(np.zeros((2, 5, 4, 8), dtype))
    out, lse = nf.attention(*views, causal=True, return_lse=True, out=merged.swapaxes(1, 2))
    expected, rows = nf.attention(*arrays, causal=True, return_lse=True)
    roundings = 16 * ROUNDING[dtype.itemsize]
    compare(gpu.got(merged).swapaxes(1, 2), expected, roundings)
    grads = gpu.put(np.zeros_like(host))
    into = tuple(grads[:, :, i].swapaxes(1, 2) for i in range(3))
    nf.attention_backward(out, *views, out, lse, causal=True, into=into)
    wanted = nf.attention_backward(expected, *arrays, expected, rows, causal=True)
    compare([gpu.got(grads)[:, :, i].swapaxes(1, 2) for i in range(3)], list(wanted), roundings)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_updates(device, rng, dtype):
    def lists(count):
        return [[np.abs(normal(rng, *shape, dtype=dtype)) for shape in ((3, 4), (5,), (0,))] for _ in range(count)]

    def adam(rule):
        def call(values, grads, m, v, copies):
            rule(values, grads, m, v, lr=0.1, weight_decay=0.1, step=3, grad_scale=0.5, copies=copies)
            return values, m, v, copies

        return call

    copies = [np.zeros((3, 4), DTYPES[3]), None, None] if dtype == np.float32 else None
    for rule in (nf.adam_update, nf.adamw_update):
        agree_in_place(adam(rule), *lists(4), copies)

    def sgd(values, grads, momenta, copies):
        nf.sgd_update(values, grads, momenta, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, copies=copies)
        return values, momenta, copies

    agree_in_place(sgd, *lists(3), copies)

    def adagrad(values, grads, sums, copies):
        nf.adagrad_update(values, grads, sums, lr=0.1, weight_decay=0.1, grad_scale=0.5, copies=copies)
        return values, sums, copies

    agree_in_place(adagrad, *lists(3), copies)

    def rmsprop(values, grads, squares, means, momenta, copies):
        options = {"lr": 0.1, "alpha": 0.9, "momentum": 0.9, "grad_scale": 0.5}
        nf.rmsprop_update(values, grads, squares, means, momenta, copies=copies, **options)
        return values, squares, means, momenta, copies

    *kept, squares = lists(5)
    squares = [square + 9 for square in squares]  # above the squares of the means
    agree_in_place(rmsprop, kept[0], kept[1], squares, kept[2], kept[3], copies)
    agree_in_place(rmsprop, kept[0], kept[1], squares, None, kept[3], copies)

    def descent(values, grads):
        nf.sgd_update(values, grads, None, lr=0.1)
        return values

    agree_in_place(descent, *lists(2))
    arrays = lists(1)[0]
    compare(np.asarray(nf.global_norm(gpu.put(arrays))), nf.global_norm(arrays), IN_PLACE)


def agree_in_place(call, *arguments):
    there = gpu.put(list(arguments))
    compare(gpu.got(call(*there)), call(*arguments), IN_PLACE)
