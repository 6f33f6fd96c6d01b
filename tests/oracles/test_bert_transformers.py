"""BERT and RoBERTa beside Hugging Face's, with every head."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import judge  # noqa: E402
from numformer.models import BERT, RoBERTa  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {
        "hidden_size": 15,
        "num_attention_heads": 5,
        "intermediate_size": 22,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-3,
    },
}
# head: what their class is called, and what its targets are
HEADS = {
    "Model": (),
    "ForPreTraining": ("next_sentence_label", "labels"),
    "ForMaskedLM": ("labels",),
    "ForSequenceClassification": ("labels",),
    "ForTokenClassification": ("labels",),
    "ForQuestionAnswering": ("start_positions", "end_positions"),
}
CASES = [
    (kind, head, size)
    for kind in ("Bert", "Roberta")
    for head in HEADS
    for size in SIZES
    if (kind, head) != ("Roberta", "ForPreTraining") and (size == "plain" or head in ("Model", "ForMaskedLM"))
]
ROWS, POSITIONS, LABELS = 4, 13, 3


def _theirs(kind: str, head: str, size: str, dtype: str, **more: Any) -> Any:
    options = {
        "vocab_size": 37,
        "max_position_embeddings": 17,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "type_vocab_size": 2 if kind == "Bert" else 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0 if kind == "Bert" else 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "num_labels": 2 if head == "ForQuestionAnswering" else LABELS,
    }
    config = getattr(transformers, f"{kind}Config")(**(options | SIZES[size] | more))
    return judge.peer(getattr(transformers, kind + head), config, dtype)


def _inputs(kind: str) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    pad = 0 if kind == "Bert" else 1
    ids = rng.integers(3, 37, (ROWS, POSITIONS))
    mask = np.arange(POSITIONS) < np.array([13, 7, 1, 12])[:, None]
    ids[~mask] = pad
    types = (np.arange(POSITIONS) > 4).astype(np.int64) * np.ones((ROWS, 1), np.int64)
    return ids, mask, types if kind == "Bert" else np.zeros_like(types)


def _targets(head: str, mask: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 37 if head != "ForTokenClassification" else LABELS, mask.shape)
    tokens[~mask | (rng.random(mask.shape) < 0.5)] = -100
    return {
        "Model": {},
        "ForPreTraining": {"next_sentence_label": rng.integers(0, 2, ROWS), "labels": tokens},
        "ForMaskedLM": {"labels": tokens},
        "ForSequenceClassification": {"labels": rng.integers(0, LABELS, ROWS)},
        "ForTokenClassification": {"labels": tokens},
        "ForQuestionAnswering": {"start_positions": np.array([1, 2, 0, 5]), "end_positions": np.array([9, 4, 0, 5])},
    }[head]


def _ours(kind: str) -> Any:
    return BERT if kind == "Bert" else RoBERTa


@pytest.mark.parametrize("dtype", judge.DTYPES)
@pytest.mark.parametrize(("kind", "head", "size"), CASES)
def test_everything(kind: str, head: str, size: str, dtype: str, tmp_path: Path) -> None:
    theirs = _theirs(kind, head, size, dtype)
    ours = judge.read(_ours(kind), theirs, tmp_path)
    assert ours.config.dtype == dtype
    ids, mask, types = _inputs(kind)
    targets = _targets(head, mask)
    inputs = {
        "input_ids": judge.tensors(ids),
        "attention_mask": judge.tensors(mask.astype(np.int64)),
        "token_type_ids": judge.tensors(types),
    }
    labels = {name: judge.tensors(array) for name, array in targets.items()}
    result = theirs(**inputs, **labels, output_hidden_states=True)

    hidden: list[Any] = []
    answer = ours.infer(ids, mask, types, hidden=hidden)
    judge.close(ours.infer(ids, types=types)[0][0], answer[0][0], dtype, "the padding says what the mask says")
    assert len(hidden) == len(result.hidden_states)
    for index, (state, other) in enumerate(zip(hidden, result.hidden_states, strict=True)):
        judge.close(state[mask], other.detach().numpy()[mask], dtype, f"hidden {index}")
    answers = answer if isinstance(answer, tuple) else (answer,)
    names = ("last_hidden_state",) if head == "Model" else ("logits", "prediction_logits", "seq_relationship_logits")
    names = ("start_logits", "end_logits") if head == "ForQuestionAnswering" else names
    others = [result[name].detach().numpy() for name in names if name in result]
    for found, other in zip(answers, others, strict=True):
        by_token = other.shape[:2] == mask.shape
        judge.close(found[mask] if by_token else found, other[mask] if by_token else other, dtype, "answer")
    if head == "Model":
        judge.close(ours.head.pooler.infer(answer[:, 0]), result.pooler_output, dtype, "pooler")
        with pytest.raises(ValueError, match="without a head there is no loss"):
            ours.loss((ids, mask, types))
        return
    arrays = [*targets.values()]
    if head == "ForQuestionAnswering":
        arrays = [np.stack(arrays, axis=1)]
    loss, backward = ours.loss((ids, mask, types, *arrays))
    backward()
    result.loss.backward()
    judge.close(loss, result.loss, dtype, "loss")
    judge.close(ours.infer_loss((ids, mask, types, *arrays)), result.loss, dtype, "loss")
    judge.gradients(ours, theirs, dtype)


@pytest.mark.parametrize(("kind", "head", "size"), CASES)
def test_they_read_what_we_write(kind: str, head: str, size: str, tmp_path: Path) -> None:
    theirs = _theirs(kind, head, size, "float32")
    judge.read(_ours(kind), theirs, tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    ids, mask, _ = _inputs(kind)
    inputs = {"input_ids": judge.tensors(ids), "attention_mask": judge.tensors(mask.astype(np.int64))}
    judge.same_weights(tmp_path / "ours", theirs, getattr(transformers, kind + head), inputs)


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_untied(kind: str, tmp_path: Path) -> None:
    theirs = _theirs(kind, "ForMaskedLM", "plain", "float64", tie_word_embeddings=False)
    ours = judge.read(_ours(kind), theirs, tmp_path)
    ids, mask, _ = _inputs(kind)
    with torch.no_grad():
        logits = theirs(judge.tensors(ids), attention_mask=judge.tensors(mask.astype(np.int64))).logits.numpy()
    judge.close(ours.infer(ids)[mask], logits[mask], "float64", "logits")
    ours.save_pretrained(tmp_path / "ours")
    inputs = {"input_ids": judge.tensors(ids)}
    judge.same_weights(tmp_path / "ours", theirs, getattr(transformers, f"{kind}ForMaskedLM"), inputs)
