"""BERT and RoBERTa: gradients, heads, files, bad input, and the batches that they are pre-trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradient import along
from numformer import data, nn
from numformer.models import BERT, BERTConfig, RoBERTa, RoBERTaConfig
from safetensors.numpy import save_file

SMALL: dict[str, Any] = {"vocab_size": 13, "context": 9, "layers": 2, "heads": 2, "width": 8, "dropout": 0.0}
MODELS = {"bert": (BERT, BERTConfig), "roberta": (RoBERTa, RoBERTaConfig)}
HEADS = ["pretraining", "masked_lm", "sequence", "token", "question"]


def _model(kind: str = "bert", **options: Any) -> Any:
    model, config = MODELS[kind]
    made = model(config(**(SMALL | {"dtype": "float64"} | options)), rng=0)
    rng = np.random.default_rng(1)
    for parameter in made.parameters():
        parameter.value += 0.2 * rng.standard_normal(parameter.value.shape)
    return made


def _batch(model: Any) -> tuple[Any, ...]:
    rng = np.random.default_rng(2)
    mask = np.arange(7) < np.array([7, 4, 2])[:, None]
    ids = np.where(mask, rng.integers(2, 13, (3, 7)), model.config.pad_id)
    types = rng.integers(0, model.config.types, (3, 7))
    tokens = np.where(mask & (rng.random((3, 7)) < 0.6), rng.integers(0, 2, (3, 7)), -100)
    targets = {
        "pretraining": (np.array([0, 1, 1]), tokens),
        "masked_lm": (tokens,),
        "token": (tokens,),
        "sequence": (np.array([1, 0, -100]),),
        "question": (np.array([[1, 3], [0, 0], [-100, -100]]),),
    }[model.config.head]
    return ids, mask, types, *targets


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("kind", "head"), [*(("bert", head) for head in HEADS), ("roberta", "masked_lm")])
def test_gradient(kind: str, head: str, dropout: float) -> None:
    model = _model(kind, head=head, dropout=dropout)
    ctx, batch, rng = nn.Context(seed=1, step=4), _batch(model), np.random.default_rng(3)
    loss, backward = model.loss(batch, ctx=ctx)
    backward()
    assert np.isfinite(loss)
    assert all(parameter.pending == 0 for parameter in model.parameters())
    tables = {id(model.encoder.tokens.weight), id(model.encoder.positions.weight)}
    for parameter in model.parameters():
        gradient = parameter.grad.copy()
        # Padding's rows get no gradient. Nothing that counts reads them, but for an answer, which may stand anywhere.
        if head != "question" or id(parameter) not in tables:
            along(lambda: model.loss(batch, ctx=ctx)[0], parameter.value, gradient, rng)
    if dropout == 0.0:
        assert model.infer_loss(batch) == pytest.approx(loss, rel=1e-12)


def test_mixed_precision() -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    model = _model(head="pretraining", dtype="float32")
    exact = model.infer_loss(_batch(model))
    loss, backward = model.loss(_batch(model), ctx=nn.Context(dtype=bfloat16))
    backward()
    assert abs(loss - exact) < 0.1
    assert all(parameter.grad.dtype == np.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "head"),
    [*(("bert", head) for head in (None, *HEADS)), *(("roberta", head) for head in (None, *HEADS[1:]))],
)
def test_round_trip(kind: str, head: str | None, tmp_path: Path) -> None:
    model = _model(kind, head=head, labels=3, hidden=12, activation="silu", tie_weights=head != "masked_lm")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config == model.config or head not in ("sequence", "token")  # others say nothing of labels
    ids = np.array([[3, 4, 5]])
    for a, b in zip(again.infer(ids), model.infer(ids), strict=True):
        np.testing.assert_array_equal(a, b)


def test_old_names_are_read(tmp_path: Path) -> None:
    model = _model(head="masked_lm")
    model.save_pretrained(tmp_path)
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in model.state_dict().items()
    }
    state["bert.embeddings.position_ids"] = np.arange(9)[None]
    state["bert.pooler.dense.weight"] = np.zeros((8, 8))
    state["cls.seq_relationship.weight"] = np.zeros((2, 8))
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].copy()
    save_file(state, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(BERT.from_pretrained(tmp_path).infer([3, 4]), model.infer([3, 4]))
    state["cls.predictions.decoder.weight"] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="differs from"):
        BERT.from_pretrained(tmp_path)


def test_broken_folders(tmp_path: Path) -> None:
    _model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for change, words in (
        ({"num_hidden_layers": 3}, r"missing bert\.encoder\.layer\.2\.attention"),
        ({"num_hidden_layers": 1}, r"unexpected bert\.encoder\.layer\.1"),
        ({"vocab_size": 14}, r"word_embeddings\.weight must have shape \(14, 8\), got \(13, 8\)"),
        ({"model_type": "roberta"}, "model_type 'bert', got 'roberta'"),
        ({"architectures": ["BertForMultipleChoice"]}, "architectures must be one of"),
        ({"architectures": ["BertForTokenClassification"]}, r"missing classifier\.weight.*unexpected cls"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"max_position_embeddings": "9"}, "max_position_embeddings must be an integer"),
        ({"hidden_act": "tanh"}, "hidden_act must be one of"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=words):
            BERT.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", MODELS)
def test_embeddings(kind: str) -> None:
    model = _model(kind, head=None)
    texts = [np.array([3, 4, 5, 6]), np.array([7]), np.array([8, 9]), np.array([3, 4, 5])]
    done: list[int] = []
    found = model.embed(texts, batch_size=2, progress=done.append)
    assert done == [2, 4]
    for text, vector in zip(texts, found, strict=True):
        mean = model.infer(text).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.embed(texts[:1], normalize=False)[0], model.infer(texts[0]).mean(axis=0))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({0: np.zeros((3, 10), int)}, ValueError, "ids may have up to 9 positions, got 10"),
        ({0: np.zeros((3, 7))}, TypeError, "ids must be integers"),
        ({0: np.full((3, 7), 13)}, ValueError, "ids must be at least 0 and below 13, got 13"),
        ({1: np.ones((3, 6), bool)}, ValueError, r"mask must have the shape of ids \(3, 7\), got \(3, 6\)"),
        ({1: np.ones((3, 7))}, TypeError, "mask must be boolean"),
        ({2: np.full((3, 7), 2)}, ValueError, "types must be at least 0 and below 2, got 2"),
        ({2: np.zeros((3, 7))}, TypeError, "types must be integers"),
        ({3: np.zeros((3, 6), int)}, ValueError, r"targets must have shape \(3, 7\), got \(3, 6\)"),
        ({3: np.zeros((3, 7))}, TypeError, "targets must be integers"),
        ({3: np.full((3, 7), 13)}, ValueError, "targets"),
    ],
)
def test_bad_batches(change: dict[int, Any], error: type[Exception], words: str) -> None:
    model = _model()
    batch = [change.get(i, array) for i, array in enumerate(_batch(model))]
    with pytest.raises(error, match=words):
        model.loss(tuple(batch))


def test_bad_configs() -> None:
    for change in ({"head": "answers"}, {"heads": 3}, {"pad_id": 13}, {"activation": "tanh"}, {"labels": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            BERTConfig(**(SMALL | change))
    with pytest.raises(ValueError, match="head must be one of"):
        RoBERTaConfig(head="pretraining")
    with pytest.raises(TypeError, match="config must be a RoBERTaConfig, got BERTConfig"):
        RoBERTa(BERTConfig(**SMALL))
    with pytest.raises(ValueError, match=r"batch of head 'masked_lm' must be \(ids, mask, types\) and 1 arrays"):
        _model().loss((np.array([[3]]), None, None))


def test_masked_tokens_are_as_devlin_has_them() -> None:
    ids = np.random.default_rng(0).integers(0, 50, 200_000)
    masked, targets = data.mask_tokens(ids, mask_id=4, vocab_size=50, special=[0, 1], seed=3)
    chosen = targets != -100
    assert not chosen[np.isin(ids, [0, 1])].any()
    np.testing.assert_array_equal(targets[chosen], ids[chosen])
    np.testing.assert_array_equal(masked[~chosen], ids[~chosen])
    # five standard deviations of a frequency over 192,000 or 29,000 draws
    free = ~np.isin(ids, [0, 1])
    np.testing.assert_allclose(chosen[free].mean(), 0.15, atol=5 * np.sqrt(0.15 / 192_000))
    some = chosen & (ids != 4)
    np.testing.assert_allclose((masked == 4)[some].mean(), 0.8, atol=5 * np.sqrt(0.25 / 28_000))
    np.testing.assert_allclose((masked == ids)[some].mean(), 0.1 + 0.1 / 47, atol=5 * np.sqrt(0.1 / 28_000))
    assert not np.isin(masked[some & (masked != 4)], [0, 1]).any()
    bytes_of_them = data.mask_tokens(ids.astype(np.uint8), mask_id=4, vocab_size=50, special=[0, 1], seed=3)
    assert all(np.array_equal(*pair) for pair in zip(bytes_of_them, (masked, targets), strict=True))
    other, _ = data.mask_tokens(ids, mask_id=4, vocab_size=50, special=[0, 1], seed=3, step=1)
    assert (other != masked).any()


@pytest.mark.parametrize("copies", [2, None])
def test_static_and_dynamic_masks(copies: int | None) -> None:
    sequences = [np.arange(5, 5 + n) for n in (20, 30, 25, 28)]
    text = data.MaskedText(sequences, mask_id=3, pad_id=0, vocab_size=60, special=[1, 2], copies=copies, seed=5)

    def epoch(number: int) -> dict[int, list[int]]:
        """By length of the sequence: what is left of it."""
        ids, mask, types, targets = text.draw(4, seed=0, step=number)
        assert types.shape == ids.shape == mask.shape == targets.shape == (4, 30)
        np.testing.assert_array_equal(ids[~mask], 0)
        np.testing.assert_array_equal(targets[~mask], -100)
        return {int(m.sum()): row[m].tolist() for row, m in zip(ids, mask, strict=True)}

    assert epoch(0).keys() == {20, 30, 25, 28}
    assert epoch(0) != epoch(1)
    assert (epoch(0) == epoch(2)) is (copies == 2)
    np.testing.assert_array_equal(text.draw(3, seed=0, step=1)[0], text.draw(3, seed=0, step=1)[0])
    first = text.samples(1, 2)[0][0]
    np.testing.assert_array_equal(text.samples(0, 4)[0][1], first)


def test_next_sentences() -> None:
    documents = [[np.full(3 + i % 4, 10 * d + i + 10) for i in range(9)] for d in range(5)]
    sequences, types, labels = data.next_sentences(documents, cls_id=1, sep_id=2, context=9, seed=1)
    assert len(sequences) == 40
    assert 8 < labels.sum() < 32
    for tokens, kinds, label in zip(sequences, types, labels, strict=True):
        assert len(tokens) <= 9
        assert tokens[0] == 1 and tokens[-1] == 2
        ends = np.flatnonzero(tokens == 2)
        assert len(ends) == 2
        np.testing.assert_array_equal(kinds, np.arange(len(tokens)) > ends[0])
        first, second = int(tokens[1]), int(tokens[ends[0] + 1])
        assert (second == first + 1) if label == 0 else (second // 10 != first // 10)
    model = _model(head="pretraining", vocab_size=70)
    text = data.MaskedText(
        sequences, types=types, labels=labels, mask_id=3, pad_id=0, vocab_size=70, special=[1, 2], rate=0.5
    )
    assert np.isfinite(model.loss(text.draw(6, seed=0, step=0))[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: data.mask_tokens(np.zeros(3, int), mask_id=9, vocab_size=9), "mask_id must be in"),
        (lambda: data.mask_tokens(np.zeros(3, int), mask_id=1, vocab_size=9, rate=0), "rate must be above 0"),
        (lambda: data.mask_tokens(np.zeros(3, int), mask_id=1, vocab_size=2, special=[0]), "vocab_size must leave"),
        (lambda: data.MaskedText([], mask_id=1, pad_id=0, vocab_size=9), "sequences must not be empty"),
        (
            lambda: data.MaskedText([np.arange(3)], labels=np.zeros(2), mask_id=1, pad_id=0, vocab_size=9),
            "labels must be as many",
        ),
        (lambda: data.next_sentences([[np.arange(3)]], cls_id=1, sep_id=2, context=9), "at least two"),
        (lambda: data.next_sentences([], cls_id=1, sep_id=2, context=4), "context must be at least 5"),
    ],
)
def test_bad_data(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
