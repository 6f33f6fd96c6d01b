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
