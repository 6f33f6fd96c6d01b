"""The encoder-decoder: gradients, padding, files, bad input."""

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
from numformer.data import Packed, Pairs
from numformer.models import Transformer, TransformerConfig
from numformer.optim import SGD
from numformer.train import Trainer

SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "context": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "heads": 2,
    "width": 8,
    "dropout": 0.0,
}
Batch = tuple[np.ndarray[Any, Any], ...]


def _model(**options: Any) -> Transformer:
    model = Transformer(TransformerConfig(**(SMALL | options)), rng=0)
    rng = np.random.default_rng(1)
    for parameter in model.parameters():  # away from the zeros and ones that hide mistakes
        parameter.value += 0.2 * rng.standard_normal(parameter.value.shape)
    return model


def _batch(pads: tuple[int, int] = (0, 0)) -> Batch:
    """Three pairs of which two are shorter, with `pads` more columns of padding for source and target."""
    rng = np.random.default_rng(2)
    source, target, targets = rng.integers(3, 11, (3, 5)), rng.integers(3, 11, (3, 6)), rng.integers(2, 11, (3, 6))
    target[:, 0] = 1
    source[1, 3:], target[1, 4:], targets[1, 4:] = 0, 0, -100
    source[2, 1:], target[2, 2:], targets[2, 1:] = 0, 0, -100
    return (
        np.pad(source, ((0, 0), (0, pads[0]))),
        np.pad(target, ((0, 0), (0, pads[1]))),
        np.pad(targets, ((0, 0), (0, pads[1])), constant_values=-100),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "gelu"},
        {"activation": "gelu", "norm": "pre"},
        {"activation": "silu", "tie_weights": False, "label_smoothing": 0.0},
        {"activation": "gelu_tanh", "dropout": 0.2, "hidden": 12},
        {"activation": "gelu", "dropout": 0.2, "norm": "pre", "encoder_layers": 1},
    ],
    ids=["post", "pre", "untied", "post-dropout", "pre-dropout"],
)
def test_gradient(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    model = _model(dtype="float64", **options)
    ctx = nn.Context(seed=1, step=4)
    batch = _batch()
    loss, backward = model.loss(batch, ctx=ctx)
    assert np.isfinite(loss)
    backward()
    assert all(parameter.pending == 0 for parameter in model.parameters())
    gradients = [p.grad.copy() for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        along(lambda: model.loss(batch, ctx=ctx)[0], parameter.value, gradient, rng)
        parameter.reset()
    with pytest.raises(RuntimeError, match="run already"):
        backward()


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("pads", [(0, 1), (1, 0), (7, 6)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_padding_changes_nothing(norm: str, pads: tuple[int, int], dropout: float) -> None:
    model = _model(norm=norm, dropout=dropout, dtype="float64")
    ctx = nn.Context(seed=3)
    results = []
    for batch in (_batch(), _batch(pads)):
        loss, backward = model.loss(batch, ctx=ctx)
        backward()
        results.append((loss, [p.grad.copy() for p in model.parameters()]))
        model.zero_grad()
    # Gradients are sums over all positions: more of them, all zero, may be added in another order.
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-13)
    for parameter, a, b in zip(model.parameters(), results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13, err_msg=parameter.name)
    source, target, _ = _batch(pads)
    logits = model.infer(source, target)
    np.testing.assert_allclose(logits[:, :6], model.infer(*_batch()[:2]), rtol=1e-11, atol=1e-12)
    # A sentence alone gives what it gives in a batch.
    np.testing.assert_allclose(model.infer(source[1, :3], target[1, :4]), logits[1, :4], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(model.encode(source[1, :3]), model.encode(source)[1, :3], rtol=1e-11, atol=1e-12)


def _packed() -> tuple[Packed, Packed, Packed]:
    """The batch of :func:`_batch`, packed by hand."""
    source, target, targets = _batch()
    lengths = ((5, 6), (3, 4), (1, 1))
    return (
        Packed.of([row[:n] for row, (n, _) in zip(source, lengths, strict=True)]),
        Packed.of([row[:m] for row, (_, m) in zip(target, lengths, strict=True)]),
        Packed.of([row[:m] for row, (_, m) in zip(targets, lengths, strict=True)]),
    )


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_packing_changes_nothing(norm: str, dropout: float, threads: Any) -> None:
    """Rows have the bits of packed sentences; a sentence alone, at its place in the batch, has its share of both."""
    model = _model(norm=norm, dropout=dropout, dtype="float64")
    ctx = nn.Context(seed=3, step=2, sample=4)
    results = []
    for batch, count in ((_batch(), 1), (_packed(), 1), (_packed(), 3)):
        threads(count)
        loss, backward = model.loss(batch, ctx=ctx)
        backward()
        results.append((loss, [p.grad.copy() for p in model.parameters()], model.infer_loss(batch)))
        model.zero_grad()
    for loss, gradients, held in results[1:]:
        assert (loss, held) == (results[0][0], results[0][2])
        for a, b in zip(gradients, results[0][1], strict=True):
            np.testing.assert_array_equal(a, b)
    total = held = 0.0
    for i in range(3):
        source, target, targets = (part[i : i + 1] for part in _packed())
        share = len(targets.values) / 11
        loss, backward = model.loss((source, target, targets), ctx=dataclasses.replace(ctx, sample=4 + i))
        backward(share)
        total, held = total + share * loss, held + share * model.infer_loss((source, target, targets))
    np.testing.assert_allclose(total, results[0][0], rtol=1e-13)
    np.testing.assert_allclose(held, results[0][2], rtol=1e-13)
    for parameter, gradient in zip(model.parameters(), results[0][1], strict=True):
        np.testing.assert_allclose(parameter.grad, gradient, rtol=1e-10, atol=1e-13, err_msg=parameter.name)


def test_no_padding_is_computed() -> None:
    """Maps, norms and dropout see 9 source and 11 target tokens, whatever rows they came in."""
    model = _model(dropout=0.1)
    names = ("matmul", "layer_norm", "layer_norm_backward", "dropout", "dropout_backward", "embedding", "add")
    counts = []
    for batch in (_packed(), _batch(), _batch((7, 6))):
        with nf.profile() as profile:
            _, backward = model.loss(batch, ctx=nn.Context(seed=1))
            backward()
        counts.append([(r["name"], tuple(r["shape"])) for r in profile.records() if r["name"] in names])
    assert counts[0] == counts[1] == counts[2]
    rows = {shape[0] for name, shape in counts[0] if name in ("layer_norm", "layer_norm_backward", "dropout")}
    assert rows == {9, 11}


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_of_packed_pairs_change_nothing(micro: int) -> None:
    rng = np.random.default_rng(4)
    pairs = Pairs(*([rng.integers(3, 11, rng.integers(1, 10)) for _ in range(17)] for _ in range(2)))
    models = []
    for size in (None, micro):
        model = _model(dtype="float64", dropout=0.3)
        optimizer = SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, optimizer, pairs, batch_size=5, micro_batch=size, steps=5, seed=2, progress=False)
        models.append((model, [row["loss"] for row in trainer.run()]))
    np.testing.assert_allclose(models[0][1], models[1][1], rtol=1e-11)
    for a, b in zip(models[0][0].parameters(), models[1][0].parameters(), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-9, atol=1e-12)


def test_empty_sentences() -> None:
    """A source without tokens has nothing to attend to, a target without tokens no loss; neither harms the others."""
    model = _model(dtype="float64")
    source, target, targets = _packed()
    empty = np.array([], int)
    with_one = (
        Packed.of([source[0], empty, source[1]]),
        Packed.of([target[0], empty, target[1]]),
        Packed.of([targets[0], empty, targets[1]]),
    )
    assert model.loss(with_one)[0] == model.loss((source[:2], target[:2], targets[:2]))[0]
    loss, backward = model.loss((Packed.of([source[0], empty]), target[:2], targets[:2]))
    backward()
    assert np.isfinite(loss)
    assert all(np.isfinite(p.grad).all() for p in model.parameters())


def test_bad_packed_batches() -> None:
    model = _model()
    source, target, targets = _packed()
    rows = _batch()
    middle = rows[0].copy()
    middle[0, 1] = 0
    long = Packed.of([np.full(13, 3), *list(source)[1:]])
    for batch, error, words in (
        ((source, target, rows[2]), TypeError, "must all be packed, or none"),
        ((source[:2], target, targets), ValueError, "target must have as many sequences as source, 2, got 3"),
        ((source, target, targets[:2]), ValueError, "targets must have the lengths of target"),
        ((long, target, targets), ValueError, "source may have up to 12 positions, got 13"),
        ((source, Packed(target.values + 9, target.cu_seqlens), targets), ValueError, "target must be .* below"),
        ((Packed(source.values * 1.0, source.cu_seqlens), target, targets), TypeError, "source must be integers"),
        ((Packed(source.values[:, None], source.cu_seqlens), target, targets), ValueError, r"source .* got \(9, 1\)"),
        ((middle, *rows[1:]), ValueError, "source must have pad_id 0 at the end of its rows only"),
    ):
        for call in (model.loss, model.infer_loss):
            with pytest.raises(error, match=words):
                call(batch)


def test_what_fills_a_target_does_not_matter() -> None:
    model = _model()
    source, target, targets = _batch()
    other = np.where(target == 0, 7, target)
    assert model.loss((source, other, targets))[0] == model.loss((source, target, targets))[0]
    assert model.infer_loss((source, other, targets)) == model.infer_loss((source, target, targets))


def test_causality() -> None:
    model = _model()
    source, target, _ = _batch()
    changed = target.copy()
    changed[:, 3] = target[:, 3] % 8 + 3
    before, after = model.infer(source, target), model.infer(source, changed)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any()
    other = source.copy()
    other[:, 0] = source[:, 0] % 8 + 3
    assert (model.infer(other, target)[:, 0] != before[:, 0]).any()


def test_infer_loss_is_the_plain_loss() -> None:
    batch = _batch()
    plain = _model(label_smoothing=0.0)
    np.testing.assert_allclose(plain.infer_loss(batch), plain.loss(batch)[0], rtol=1e-6)
    smooth = _model(label_smoothing=0.3, dropout=0.5)
    assert smooth.infer_loss(batch) == plain.infer_loss(batch)
    logits = plain.infer(*batch[:2]).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = batch[2] != -100
    expected = -log_p[counted, batch[2][counted]].mean()
    np.testing.assert_allclose(plain.infer_loss(batch), expected, rtol=1e-5)


def test_no_target_counts() -> None:
    model = _model()
    source, target, targets = _batch()
    loss, backward = model.loss((source, target, np.full_like(targets, -100)))
    backward()
    assert loss == 0.0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_initial_values() -> None:
    options = SMALL | {"vocab_size": 512, "width": 64, "encoder_layers": 1}
    model = Transformer(TransformerConfig(**options), rng=0)
    state = model.state_dict()
    np.testing.assert_allclose(state["tokens.weight"].std(), 1 / 8, rtol=0.05)
    np.testing.assert_allclose(state["encoder.0.mlp.outer.weight"].std(), 1 / 16, rtol=0.05)
    assert "head.weight" not in state
    untied = Transformer(TransformerConfig(**options, tie_weights=False), rng=0).state_dict()
    assert set(untied) == set(state) | {"target_tokens.weight", "head.weight"}
    # The paper's scaling: embeddings of deviation 1, and logits that begin near the uniform distribution's loss.
    np.testing.assert_allclose(model.tokens.infer(np.arange(512)).std(), 1.0, rtol=0.05)


def test_mixed_precision_keeps_float32_gradients() -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    model = _model()
    exact, backward = model.loss(_batch())
    backward()
    gradients = {p.name: p.grad.copy() for p in model.parameters()}
    model.zero_grad()
    loss, backward = model.loss(_batch(), ctx=nn.Context(dtype=bfloat16))
    backward()
    assert abs(loss - exact) < 0.03 * exact
    largest = max(np.linalg.norm(g) for g in gradients.values())
    for parameter in model.parameters():
        assert parameter.grad.dtype == np.float32
        error = np.linalg.norm(parameter.grad - gradients[parameter.name])
        # bfloat16 has 8 bits: 2**-8 a rounding, through about sixty of them one after the other
        assert error <= 60 * 2**-8 * max(np.linalg.norm(gradients[parameter.name]), 0.1 * largest), parameter.name


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_cross_attention_weights(norm: str) -> None:
    model = _model(norm=norm)
    source, target, _ = _batch()
    weights = model.cross_attention(source, target)
    assert weights.shape == (2, 3, 2, 6, 5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(weights[:, 1, ..., 3:], 0.0)
    np.testing.assert_allclose(model.cross_attention(source[1, :3], target[1]), weights[:, 1, ..., :3], rtol=1e-4)


def test_pretrained_round_trip(tmp_path: Path) -> None:
    model = _model(dropout=0.1, norm="pre", activation="gelu", eps=1e-6, hidden=20, tie_weights=False, bos_id=2)
    model.save_pretrained(tmp_path / "model")
    again = Transformer.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    np.testing.assert_array_equal(again.infer(*_batch()[:2]), model.infer(*_batch()[:2]))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Transformer.from_pretrained(tmp_path / "nowhere")
    _model().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    fields = json.loads(config.read_text())
    for change, words in (
        ({"encoder_layers": 3}, r"missing encoder\.2"),
        ({"width": 12}, "must have shape"),
        ({"tie_weights": False}, "missing target_tokens.weight"),
        ({"norm": "pre"}, "missing encoder_norm.weight"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"heads": "2"}, "heads must be an integer"),
        ({"colour": 1}, "unknown colour"),
    ):
        config.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=words):
            Transformer.from_pretrained(tmp_path)
    del fields["heads"]
    config.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="lacks heads"):
        Transformer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("position", "ids", "error", "words"),
    [
        (0, np.zeros((3, 13), int), ValueError, "source.* may have up to 12 positions, got 13"),
        (1, np.zeros((3, 13), int), ValueError, "target.* may have up to 12 positions, got 13"),
        (0, np.zeros((3, 0), int), ValueError, "source.* not empty"),
        (1, np.zeros((3, 2, 2), int), ValueError, "target.* must have shape"),
        (0, np.zeros((3, 4)), TypeError, "source.* must be integers, got float64"),
        (0, np.full((3, 4), 11), ValueError, "source.* below the vocabulary's size 11, got 11"),
        (1, np.full((3, 4), -1), ValueError, "target.* at least 0 .* got -1"),
        (1, np.ones((2, 6), int), ValueError, r"target.*\(2, 6\)"),
    ],
)
def test_bad_ids(position: int, ids: Any, error: type[Exception], words: str) -> None:
    model = _model()
    pair = list(_batch()[:2])
    pair[position] = ids
    with pytest.raises(error, match=words):
        model.infer(*pair)
    with pytest.raises(error, match=words):
        model.loss((*pair, np.zeros(pair[1].shape, int)))
    if position == 0:
        with pytest.raises(error, match=words):
            model.generate(ids)


@pytest.mark.parametrize(
    ("targets", "error"),
    [
        (np.zeros((3, 5), int), ValueError),
        (np.full((3, 6), 11), ValueError),
        (np.full((3, 6), -1), ValueError),
        (np.zeros((3, 6)), TypeError),
    ],
)
def test_bad_targets(targets: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="targets"):
        _model().loss((*_batch()[:2], targets))
    with pytest.raises(error, match="targets"):
        _model().infer_loss((*_batch()[:2], targets))


def test_batch_of_two_arrays() -> None:
    with pytest.raises(ValueError, match=r"batch must be \(source, target, targets\), got 2"):
        _model().loss(_batch()[:2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 3},
        {"encoder_layers": 0},
        {"decoder_layers": -1},
        {"dropout": 1.0},
        {"norm": "middle"},
        {"activation": "tanh"},
        {"label_smoothing": 1.0},
        {"pad_id": 11},
        {"pad_id": 2},
        {"eos_id": -1},
        {"eps": float("nan")},
        {"hidden": 0},
    ],
)
def test_bad_config(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        TransformerConfig(**(SMALL | change))


@pytest.mark.parametrize("change", [{"width": 8.0}, {"bos_id": "1"}, {"tie_weights": 1}, {"dtype": "float16"}])
def test_bad_kinds_in_config(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(change))):
        TransformerConfig(**(SMALL | change))
