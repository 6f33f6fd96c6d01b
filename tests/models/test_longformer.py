"""Longformer: gradients, what a token can see, cost, conversion, files, bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numformer as nf
import numpy as np
import pytest
from gradient import along
from numformer import nn
from numformer.models import BERT, BERTConfig, Longformer, LongformerConfig, RoBERTa, RoBERTaConfig, from_pretrained

SMALL: dict[str, Any] = {
    "vocab_size": 13,
    "context": 31,
    "layers": 2,
    "heads": 2,
    "width": 8,
    "dropout": 0.0,
    "window": 4,
    "dtype": "float64",
}


def _shaken(model: Any) -> Any:
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.value += 0.2 * rng.standard_normal(parameter.value.shape)
    return model


def _model(**options: Any) -> Longformer:
    return _shaken(Longformer(LongformerConfig(**(SMALL | options)), rng=0))


def _batch(head: str, positions: int = 11) -> tuple[Any, ...]:
    rng = np.random.default_rng(2)
    mask = np.arange(positions) < np.array([positions, 5, 2])[:, None]
    ids = np.where(mask, rng.integers(2, 13, mask.shape), 1)
    everywhere = np.zeros(mask.shape, bool)
    everywhere[0, [1, 9]] = everywhere[1, 4] = everywhere[2, 7] = True  # the last one is not read
    tokens = np.where(mask & (rng.random(mask.shape) < 0.6), rng.integers(0, 2, mask.shape), -100)
    return ids, mask, np.zeros_like(ids), everywhere, np.array([1, 0, -100]) if head == "sequence" else tokens


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("head", ["masked_lm", "sequence", "token"])
def test_gradient(head: str, dropout: float) -> None:
    model = _model(head=head, dropout=dropout, window=(4, 2))
    ctx, batch, rng = nn.Context(seed=1, step=4), _batch(head), np.random.default_rng(3)
    loss, backward = model.loss(batch, ctx=ctx)
    backward()
    assert all(parameter.pending == 0 for parameter in model.parameters())
    for parameter in model.parameters():
        along(lambda: model.loss(batch, ctx=ctx)[0], parameter.value, parameter.grad.copy(), rng)
    if dropout == 0.0:
        assert model.infer_loss(batch) == pytest.approx(loss, rel=1e-12)


def test_what_a_token_sees() -> None:
    """One layer: a token that changes is felt within half a window, and everywhere where it or the other is global."""
    model = _model(layers=1, head=None)
    ids = np.random.default_rng(4).integers(2, 13, 20)
    everywhere = np.zeros(20, bool)
    everywhere[15] = True
    before = model.infer(ids, global_tokens=everywhere)
    for place in (6, 15):
        other = ids.copy()
        other[place] = 2 + (ids[place] - 1) % 11
        felt = (model.infer(other, global_tokens=everywhere) != before).any(axis=1)
        expected = np.abs(np.arange(20) - place) <= 2 if place != 15 else np.ones(20, bool)
        expected[15] = True
        np.testing.assert_array_equal(felt, expected)


def test_a_sequence_has_its_bits_alone_and_in_a_batch(threads: Any) -> None:
    model = _model(dtype="float32", context=80)
    rng = np.random.default_rng(5)
    ids = rng.integers(2, 13, (3, 70))
    everywhere = np.zeros(ids.shape, bool)
    everywhere[0, [0, 33, 69]] = everywhere[2, 5] = True
    threads(2)
    together = model.infer(ids, global_tokens=everywhere)
    threads(1)
    for row in range(3):
        alone = model.infer(ids[row], global_tokens=everywhere[row])
        np.testing.assert_array_equal(alone, together[row])


def _work(length: int) -> float:
    """Floating-point operations of a training pass."""
    model = _model(context=1024, layers=1, dtype="float32", vocab_size=300)
    ids = np.random.default_rng(6).integers(2, 300, (1, length))
    everywhere = np.arange(length)[None] == 0
    with nf.profile() as p:
        model.loss((ids, None, None, everywhere, ids))[1]()
    return float(p.records()["flops"].sum())


def test_work_is_linear_in_the_length() -> None:
    a, b, c = (_work(length) for length in (256, 512, 1024))
    assert c - b == pytest.approx(2 * (b - a), rel=0.01)


@pytest.mark.parametrize("head", [None, "masked_lm", "sequence"])
def test_from_roberta(head: str | None) -> None:
    small = {name: value for name, value in SMALL.items() if name != "window"} | {"context": 10, "head": head}
    roberta = _shaken(RoBERTa(RoBERTaConfig(**small), rng=0))
    model = Longformer.from_roberta(roberta, context=25, window=(24, 22))
    assert (model.config.context, model.config.head) == (25, head)
    # The window spans the text, and the projections of global tokens are those of others: nothing has changed.
    ids = np.random.default_rng(7).integers(2, 13, (2, 10))
    everywhere = np.zeros(ids.shape, bool)
    everywhere[0, 3] = True
    np.testing.assert_allclose(model.infer(ids, global_tokens=everywhere), roberta.infer(ids), rtol=1e-9, atol=1e-12)
    table, first = model.encoder.positions.weight.value, roberta.config.pad_id + 1
    np.testing.assert_array_equal(table[first + 20 :], table[first : first + 5])
    assert not np.shares_memory(table, roberta.encoder.positions.weight.value)
    classes = Longformer.from_roberta(roberta, window=4, head="token", labels=7, rng=0)
    assert classes.infer(ids).shape == (2, 10, 7)
    assert np.isfinite(classes.loss((ids, None, None, None, np.zeros_like(ids)))[0])


@pytest.mark.parametrize("head", [None, "masked_lm", "sequence", "token"])
def test_round_trip(head: str | None, tmp_path: Path) -> None:
    model = _model(head=head, labels=3, window=(4, 2))
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert type(again) is Longformer
    assert again.config.windows == (4, 2)
    np.testing.assert_array_equal(again.infer([3, 4, 5]), model.infer([3, 4, 5]))


def test_embeddings() -> None:
    model = _model(head=None)
    texts = [np.arange(2, 11), np.array([7, 3])]
    for text, vector in zip(texts, model.embed(texts), strict=True):
        mean = model.infer(text).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-9, atol=1e-12)


def test_broken_folders(tmp_path: Path) -> None:
    _model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for change, words in (
        ({"attention_window": [4]}, "window must be one number or 2"),
        ({"attention_window": 5}, "window must be even"),
        ({"attention_window": 0}, "window must be at least 1"),
        ({"attention_window": ["4", 4]}, "window must be an integer"),
        ({"attention_window": {"4": 4}}, "attention_window must be an integer or a list"),
        ({"architectures": ["LongformerForQuestionAnswering"]}, "architectures must be one of"),
        ({"model_type": "roberta"}, "model_type 'longformer', got 'roberta'"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=words):
            Longformer.from_pretrained(tmp_path)


@pytest.mark.parametrize("dilation", [3, (2, 2, 1, 5)], ids=["all-heads", "by-head"])
@pytest.mark.parametrize("padded", [False, True])
def test_dilated_windows(dilation: Any, padded: bool, rng: np.random.Generator) -> None:
    """Against dense attention with a mask: every d-th neighbour and global tokens; forward, backward and infer."""
    layer = nn.SlidingAttention(8, 4, window=2, dilation=dilation, dtype=np.float64, rng=rng)
    x = rng.standard_normal((2, 17, 8))
    roles = np.ones((2, 17), np.int8)
    roles[0, [3, 16]] = 2
    if padded:
        roles[1, 9:] = 0
        roles[0, 16] = 0
    seen = np.empty((2, 4, 17, 17), bool)
    distance = np.abs(np.arange(17)[:, None] - np.arange(17))
    for head, d in enumerate(np.broadcast_to(dilation, 4)):
        seen[:, head] = (distance <= 2 * d) & (distance % d == 0)
    seen = (seen | (roles == 2)[:, None, None, :]) & (roles != 0)[:, None, None, :]
    qkv = layer.qkv.infer(x).reshape(2, 17, 3, 4, 2).transpose(2, 0, 3, 1, 4)
    dense = nf.reference.attention(*qkv, mask=seen).transpose(0, 2, 1, 3).reshape(2, 17, 8)
    local = roles != 2
    np.testing.assert_allclose(
        layer.infer(x, mask=roles)[local], layer.output.infer(dense)[local], rtol=1e-10, atol=1e-12
    )
    plain = nn.SlidingAttention(8, 4, window=2, dtype=np.float64, rng=rng)
    plain.load_state_dict(layer.state_dict())
    far = roles == 2  # their rows see everything either way
    np.testing.assert_allclose(layer.infer(x, mask=roles)[far], plain.infer(x, mask=roles)[far], rtol=1e-10, atol=1e-12)
    weights = rng.standard_normal(x.shape)
    y, backward = layer(x, mask=roles)
    np.testing.assert_allclose(layer.infer(x, mask=roles), y, rtol=1e-12, atol=1e-12)
    dx = backward(weights)
    for array, gradient in [(x, dx), *((p.value, p.grad.copy()) for p in layer.parameters())]:
        along(lambda: float((layer(x, mask=roles)[0] * weights).sum()), array, gradient, rng)
    alone = layer.infer(x[:1], mask=roles[:1])
    np.testing.assert_array_equal(layer.infer(x, mask=roles)[:1], alone)
    without = layer.infer(x)
    spread = nn.SlidingAttention(8, 4, window=2, dilation=100, dtype=np.float64, rng=rng)
    spread.load_state_dict(layer.state_dict())
    v = layer.qkv.infer(x)[..., 16:]
    np.testing.assert_allclose(spread.infer(x), layer.output.infer(np.ascontiguousarray(v)), rtol=1e-10, atol=1e-12)
    assert without.shape == x.shape


def test_dilated_layers(tmp_path: Path) -> None:
    model = _model(head="sequence", dilation=((3, 1), 1))  # of the last layer only the global token is read
    ids = np.arange(2, 13)
    logits = model.infer(ids)
    assert np.abs(logits - _model(head="sequence").infer(ids)).max() > 1e-6
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(again.infer(ids), logits)
    with pytest.raises(ValueError, match="dilation must be one number or 2"):
        LongformerConfig(**SMALL, dilation=(1, 2, 3))
    with pytest.raises(ValueError, match="dilation must be at least 1"):
        nn.SlidingAttention(8, 2, window=1, dilation=0)
    with pytest.raises(ValueError, match="one for each head"):
        nn.SlidingAttention(8, 2, window=1, dilation=(1, 2, 3))


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (np.zeros((3, 11)), TypeError, "global_tokens must be boolean, got float64"),
        (np.zeros((3, 10), bool), ValueError, r"global_tokens must have the shape of ids \(3, 11\), got \(3, 10\)"),
    ],
)
def test_bad_global_tokens(tokens: Any, error: type[Exception], words: str) -> None:
    batch = list(_batch("masked_lm"))
    batch[3] = tokens
    with pytest.raises(error, match=words):
        _model().loss(tuple(batch))


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match=r"must be \(ids, mask, types, global_tokens\) and 1 arrays"):
        _model().loss((np.array([[3]]), None, np.array([[3]])))
    with pytest.raises(ValueError, match="head must be one of"):
        LongformerConfig(head="question")
    with pytest.raises(TypeError, match="model must be a RoBERTa, got BERT"):
        Longformer.from_roberta(BERT(BERTConfig(vocab_size=9, layers=1, heads=1, width=8), rng=0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config must be a LongformerConfig"):
        Longformer(RoBERTaConfig(**{k: v for k, v in SMALL.items() if k != "window"}))  # type: ignore[arg-type]
    layer = nn.SlidingAttention(8, 2, window=1)
    x = np.zeros((2, 3, 8), np.float32)
    with pytest.raises(ValueError, match=r"mask must be integers of shape \(2, 3\), got bool"):
        layer.infer(x, mask=np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="cache must be None, got KVCache"):
        layer.infer(x, cache=nf.KVCache())
    for options in ({"causal": True}, {"num_kv_heads": 1}):
        with pytest.raises(ValueError, match="causal must be False"):
            nn.SlidingAttention(8, 2, window=1, **options)
    assert dataclasses.replace(LongformerConfig(), window=[512] * 12).windows == LongformerConfig().windows


def test_one_window_stands_for_any_number_of_layers():
    """What a config.json claims costs no memory before the weights have been looked at."""
    config = LongformerConfig(**(SMALL | {"layers": 2**60, "window": 4, "dilation": 2}))
    assert config.layers == 2**60 and config.window == 4
