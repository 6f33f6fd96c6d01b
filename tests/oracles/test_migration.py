"""docs/migration.md: what stands left and right computes the same."""

from pathlib import Path

import numformer as nf
import numpy as np
import pytest


@pytest.fixture
def qkv(rng):
    """(batch, heads, positions, size) with more keys than queries, and fewer of their heads."""
    return (
        rng.standard_normal((2, 4, 9, 8), np.float32),
        rng.standard_normal((2, 2, 13, 8), np.float32),
        rng.standard_normal((2, 2, 13, 8), np.float32),
    )


def same(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=2e-5)


def test_attention_of_torch(qkv, rng):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    q, k, v = qkv
    mask = rng.random((2, 1, 9, 13)) < 0.7
    bias = rng.standard_normal((4, 9, 13), np.float32)
    tq, tk, tv = map(torch.from_numpy, qkv)

    def theirs(**options):
        return functional.scaled_dot_product_attention(tq, tk, tv, enable_gqa=True, **options)

    same(nf.attention(q, k, v), theirs())
    same(nf.attention(q, k, v, causal="top_left"), theirs(is_causal=True))
    same(nf.attention(q, k, v, mask=mask), theirs(attn_mask=torch.from_numpy(mask)))
    same(nf.attention(q, k, v, bias=bias), theirs(attn_mask=torch.from_numpy(bias)))
    same(nf.attention(q, k, v, scale=0.3), theirs(scale=0.3))
    same(nf.attention(q, q, q, causal=True), functional.scaled_dot_product_attention(tq, tq, tq, is_causal=True))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_of_torch(qkv, rng):
    torch = pytest.importorskip("torch")
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q = qkv[0]  # as many keys as queries: the tables of masks are for these
    slopes = rng.random(4, np.float32)
    t, ts = torch.from_numpy(q), torch.from_numpy(slopes)

    def theirs(score=None, mask=None):
        block_mask = None if mask is None else flex.create_block_mask(mask, None, None, 9, 9, device="cpu")
        return flex.flex_attention(t, t, t, score_mod=score, block_mask=block_mask)

    same(nf.attention(q, q, q, window=(3, 2)), theirs(mask=lambda b, h, i, j: (i - j <= 3) & (j - i <= 2)))
    same(nf.attention(q, q, q, softcap=0.5), theirs(lambda s, b, h, i, j: 0.5 * torch.tanh(s / 0.5)))
    same(nf.attention(q, q, q, alibi_slopes=slopes), theirs(lambda s, b, h, i, j: s - ts[h] * (i - j).abs()))


def test_other_functions_of_torch(rng):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, w = rng.standard_normal((7, 16), np.float32), rng.standard_normal((5, 16), np.float32)
    b, scale, shift = (rng.standard_normal(n, np.float32) for n in (5, 16, 16))
    targets, ids = rng.integers(16, size=7), rng.integers(5, size=(3, 2))
    tx, tw, tb, ts, th = map(torch.from_numpy, (x, w, b, scale, shift))
    linear = functional.linear(tx, tw, tb)
    same(nf.matmul(x, w.T, bias=b), linear)
    same(nf.matmul(x, w.T, bias=b, activation="gelu"), functional.gelu(linear))
    same(nf.layer_norm(x, scale, shift), functional.layer_norm(tx, (16,), ts, th))
    same(nf.rms_norm(x, scale, eps=1e-6), functional.rms_norm(tx, (16,), ts, 1e-6))
    same(nf.softmax(x, axis=0), functional.softmax(tx, dim=0))
    same(nf.gelu(x, approximate="tanh"), functional.gelu(tx, approximate="tanh"))
    loss = functional.cross_entropy(tx, torch.from_numpy(targets), label_smoothing=0.1)
    same(nf.cross_entropy(x, targets, label_smoothing=0.1), loss)
    same(nf.embedding(w, ids), functional.embedding(torch.from_numpy(ids), tw))
    assert torch.nn.Linear(16, 5).weight.shape == nf.nn.Linear(16, 5, transposed=True).weight.value.shape
    assert nf.nn.Linear(16, 5).weight.value.shape == (16, 5)
    layer = torch.nn.MultiheadAttention(16, 1, batch_first=True)
    kept = np.array([[True] * 5 + [False] * 2])
    with torch.no_grad():
        out = layer(tx[None], tx[None], tx[None], key_padding_mask=torch.from_numpy(~kept))[0]
        q, k, v = (x @ part.detach().numpy().T for part in layer.in_proj_weight.chunk(3))
        ours = nf.attention(q, k, v, mask=kept) @ layer.out_proj.weight.numpy().T
    same(ours[None], out)


def test_attention_of_jax(qkv, rng):
    jax = pytest.importorskip("jax")
    theirs = jax.nn.dot_product_attention
    q, k, v = (x.swapaxes(1, 2) for x in qkv)  # (batch, positions, heads, size)

    def ours(q, k, v, **options):
        return nf.attention(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), **options).swapaxes(1, 2)

    mask = rng.random((2, 1, 9, 13)) < 0.7
    bias = rng.standard_normal((1, 4, 9, 13), np.float32)
    lengths = np.array([13, 5], np.int32)
    same(ours(q, k, v), theirs(q, k, v))
    same(ours(q, k, v, causal="top_left"), theirs(q, k, v, is_causal=True))
    same(ours(q, k, v, mask=mask), theirs(q, k, v, mask=mask))
    same(ours(q, k, v, bias=bias), theirs(q, k, v, bias=bias))
    same(ours(q, k, v, scale=0.3), theirs(q, k, v, scale=0.3))
    same(
        ours(q, k, v, mask=np.arange(13) < lengths[:, None, None, None]),
        theirs(q, k, v, key_value_seq_lengths=lengths),
    )
    same(ours(q, q, q, window=(2, 1)), theirs(q, q, q, local_window_size=(2, 1)))
    same(nf.gelu(q, approximate="tanh"), jax.nn.gelu(q))
    same(nf.softmax(q, axis=1), jax.nn.softmax(q, 1))


def flash_attn(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None):
    """What flash-attn (Dao, 2023) documents of flash_attn_func, in float64: the output, and softmax_lse.

    Arrays are (batch, positions, heads, size). Diagonals are aligned at the bottom right; -1 and a softcap of 0: none.
    """
    q, k, v = (x.astype(np.float64).swapaxes(1, 2) for x in (q, k, v))
    k, v = (x.repeat(q.shape[1] // x.shape[1], 1) for x in (k, v))
    n, m = q.shape[2], k.shape[2]
    scores = q @ k.swapaxes(2, 3) * (q.shape[3] ** -0.5 if softmax_scale is None else softmax_scale)
    if softcap > 0:
        scores = softcap * np.tanh(scores / softcap)
    diagonal = np.arange(n)[:, None] + m - n
    keys = np.arange(m)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * np.abs(diagonal - keys)
    left, right = window_size
    if causal:
        right = 0
    seen = ((left < 0) | (keys >= diagonal - left)) & ((right < 0) | (keys <= diagonal + right))
    weights = np.where(seen, np.exp(scores), 0)
    sums = weights.sum(-1)
    with np.errstate(divide="ignore"):
        return ((weights / np.where(sums == 0, 1, sums)[..., None]) @ v).swapaxes(1, 2), np.log(sums)


def test_attention_of_flash_attn(qkv, rng):
    q, k, v = (x.swapaxes(1, 2) for x in qkv)  # (batch, positions, heads, size)
    slopes = rng.random(4, np.float32)

    def ours(q, k, v, **options):
        out, lse = nf.attention(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), return_lse=True, **options)
        return out.swapaxes(1, 2), lse

    def compare(mine, theirs):
        for x, y in zip(mine, theirs, strict=True):
            same(x, y)

    compare(ours(q, k, v), flash_attn(q, k, v))
    compare(ours(q, k, v, scale=0.3), flash_attn(q, k, v, softmax_scale=0.3))
    compare(ours(q, k, v, causal=True), flash_attn(q, k, v, causal=True))
    few = q[:, :, :2]
    compare(ours(k, few, few, causal=True), flash_attn(k, few, few, causal=True))  # first rows see nothing
    compare(ours(q, k, v, window=(3, 2)), flash_attn(q, k, v, window_size=(3, 2)))
    compare(ours(q, k, v, window=(None, 1)), flash_attn(q, k, v, window_size=(-1, 1)))
    compare(ours(q, k, v, causal=True, window=(3, None)), flash_attn(q, k, v, causal=True, window_size=(3, -1)))
    compare(ours(q, k, v, softcap=0.5), flash_attn(q, k, v, softcap=0.5))
    compare(ours(q, k, v, alibi_slopes=slopes), flash_attn(q, k, v, alibi_slopes=slopes))
    options = {"softcap": 0.5, "alibi_slopes": slopes, "causal": True}
    compare(ours(q, k, v, **options), flash_attn(q, k, v, **options))


def test_varlen_and_cache_of_flash_attn(qkv):
    q, k, v = (x.swapaxes(1, 2) for x in qkv)
    cu_q, cu_k = np.array([0, 2, 9], np.int32), np.array([0, 9, 13], np.int32)
    mine = nf.attention_varlen(q[0], k[0], v[0], cu_q, cu_k, causal=True)
    for i in range(2):
        rows, keys = slice(*cu_q[i : i + 2]), slice(*cu_k[i : i + 2])
        same(mine[rows], flash_attn(q[:1, rows], k[:1, keys], v[:1, keys], causal=True)[0][0])
    cache = nf.KVCache()
    for start, end in ((0, 5), (5, 6), (6, 9)):  # keys and values come with the queries
        heads_first = (x[:, start:end].swapaxes(1, 2) for x in (k, v))
        mine = nf.attention(q[:, start:end].swapaxes(1, 2), *cache.append(*heads_first), causal=True)
        same(mine.swapaxes(1, 2), flash_attn(q[:, start:end], k[:, :end], v[:, :end], causal=True)[0])


def test_layers_of_thinc(rng):
    thinc = pytest.importorskip("thinc.api")
    x, dy = rng.standard_normal((7, 6), np.float32), rng.standard_normal((7, 5), np.float32)

    def compare(theirs, ours, parameters, x, dy):
        """The same values in both: the result, and all gradients."""
        theirs.initialize(x)
        for name, (parameter, transposed) in parameters.items():
            value = rng.standard_normal(theirs.get_param(name).shape, np.float32)
            theirs.set_param(name, value)
            parameter.value[...] = value.T if transposed else value
        y, backprop = theirs(x, is_train=True)
        mine, backward = ours(x)
        same(mine, y)
        same(ours.infer(x), theirs.predict(x))
        dx = backprop(dy)
        if x.dtype == np.float32:
            same(backward(dy), dx)
        else:
            backward(dy)
        for name, (parameter, transposed) in parameters.items():
            same(parameter.grad.T if transposed else parameter.grad, theirs.get_grad(name))

    def linear(theirs, **options):
        layer = nf.nn.Linear(6, 5, **options)
        compare(theirs, layer, {"W": (layer.weight, True), "b": (layer.bias, False)}, x, dy)
        return layer

    layer = linear(thinc.Linear(5, 6))
    linear(thinc.Gelu(5, 6), activation="gelu")
    linear(thinc.Relu(5, 6), activation="relu")
    norm, table = nf.nn.LayerNorm(6, eps=1e-8), nf.nn.Embedding(9, 5)
    compare(thinc.LayerNorm(6), norm, {"G": (norm.weight, False), "b": (norm.bias, False)}, 0.1 * x, x[::-1].copy())
    compare(thinc.Embed(5, 9), table, {"E": (table.weight, False)}, rng.integers(9, size=7), dy)

    classes, right = rng.integers(5, size=7), np.eye(5, dtype=np.float32)
    _, backward = nf.nn.CrossEntropy()(dy, classes)
    judge = thinc.CategoricalCrossentropy()
    same(backward(), judge.get_grad(nf.softmax(dy), right[classes]))

    theirs = thinc.Linear(5, 6).initialize(x)
    theirs.set_param("W", layer.weight.value.T.copy())
    theirs.set_param("b", layer.bias.value.copy())
    theirs(x, is_train=True)[1](dy)
    theirs.finish_update(thinc.SGD(0.1, L2=0.0, grad_clip=0.0))
    nf.optim.GradientDescent([layer.weight, layer.bias], lr=0.1).step()
    same(layer.weight.value.T, theirs.get_param("W"))
    same(layer.bias.value, theirs.get_param("b"))


def test_a_layer_of_ones_own(rng):
    """The class at the end of the page."""
    page = Path(__file__).resolve().parents[2] / "docs" / "migration.md"
    if not page.is_file():
        pytest.skip("docs/ is not here: this is an installed package")
    names: dict = {}
    exec(page.read_text().rsplit("```python\n", 1)[1].split("```")[0], names)
    first, second = nf.nn.Linear(3, 4, rng=rng), nf.nn.Linear(4, 2, rng=rng)
    pair = names["Pair"](first, second)
    x = rng.standard_normal((5, 3), np.float32)
    y, backward = pair(x)
    same(y, pair.infer(x))
    dx = backward(np.ones_like(y))
    same(dx, np.ones((5, 2)) @ second.weight.value.T @ first.weight.value.T)
    assert set(pair.named_parameters()) == {"a.weight", "a.bias", "b.weight", "b.bias"}
