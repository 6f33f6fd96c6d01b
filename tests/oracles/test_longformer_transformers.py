"""Longformer beside Hugging Face's: windows, global tokens, lengths that are no multiple of anything."""

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
from numformer.models import Longformer  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {
        "hidden_size": 15,
        "num_attention_heads": 5,
        "num_hidden_layers": 3,
        "intermediate_size": 22,
        "hidden_act": "relu",
        "attention_window": [4, 12, 6],
    },
}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
# name: the global tokens of each row; None says nothing
GLOBAL: dict[str, Any] = {
    "none": None,
    "first": [[0], [0], [0], [0]],
    "some": [[0, 5, 22], [3], [], [1, 2]],
    "padding": [[4], [10, 20], [0], [19]],  # two of them are not read
}
ROWS, POSITIONS, LABELS = 4, 23, 3


@pytest.fixture(autouse=True)
def softmax_in_its_own_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs rounds the weights of attention to float32, whatever the model's dtype."""
    softmax = torch.nn.functional.softmax

    def wide(x: Any, dim: int | None = None, dtype: Any = None, **more: Any) -> Any:
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **more)

    monkeypatch.setattr(torch.nn.functional, "softmax", wide)


def _theirs(head: str, size: str, dtype: str, **more: Any) -> Any:
    options = {
        "vocab_size": 37,
        "max_position_embeddings": 40,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "attention_window": 6,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": LABELS,
    }
    config = transformers.LongformerConfig(**(options | SIZES[size] | more))
    theirs = judge.peer(getattr(transformers, f"Longformer{head}"), config, dtype, attention="eager")
    theirs.config.return_dict = True
    return theirs


def _inputs() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 37, (ROWS, POSITIONS))
    mask = np.arange(POSITIONS) < np.array([23, 17, 1, 22])[:, None]
    ids[~mask] = 1
    return ids, mask, rng.integers(0, 2, ids.shape)


def _tokens(case: str) -> Any:
    if GLOBAL[case] is None:
        return None
    found = np.zeros((ROWS, POSITIONS), bool)
    for row, places in enumerate(GLOBAL[case]):
        found[row, places] = True
    return found


def _targets(head: str, mask: Any) -> Any:
    rng = np.random.default_rng(1)
    if head == "ForSequenceClassification":
        return rng.integers(0, LABELS, ROWS)
    tokens = rng.integers(0, 37 if head == "ForMaskedLM" else LABELS, mask.shape)
    tokens[~mask | (rng.random(mask.shape) < 0.5)] = -100
    return tokens


@pytest.mark.parametrize("dtype", judge.DTYPES)
@pytest.mark.parametrize(
    ("head", "size", "tokens"),
    [
        *(("ForMaskedLM", size, tokens) for size in SIZES for tokens in GLOBAL),
        *((head, "plain", tokens) for head in HEADS if head != "ForMaskedLM" for tokens in ("none", "some")),
    ],
)
def test_everything(head: str, size: str, tokens: str, dtype: str, tmp_path: Path) -> None:
    theirs = _theirs(head, size, dtype)
    ours = judge.read(Longformer, theirs, tmp_path)
    assert ours.config.dtype == dtype
    ids, mask, types = _inputs()
    everywhere = _tokens(tokens)
    inputs = {
        "input_ids": judge.tensors(ids),
        "attention_mask": judge.tensors(mask.astype(np.int64)),
        "token_type_ids": judge.tensors(types),
    }
    if everywhere is not None:
        inputs["global_attention_mask"] = judge.tensors(everywhere.astype(np.int64))
    if head != "Model":
        targets = _targets(head, mask)
        inputs["labels"] = judge.tensors(targets)
    result = theirs(**inputs, output_hidden_states=True)

    hidden: list[Any] = []
    answer = ours.infer(ids, mask, types, everywhere, hidden=hidden)
    assert len(hidden) == len(result.hidden_states)
    for index, (state, other) in enumerate(zip(hidden, result.hidden_states, strict=True)):
        judge.close(state[mask], other.detach().numpy()[mask], dtype, f"hidden {index}")
    other = result["last_hidden_state" if head == "Model" else "logits"].detach().numpy()
    where = mask if other.ndim == 3 else slice(None)
    judge.close(answer[where], other[where], dtype, "answer")
    if head == "Model":
        return
    loss, backward = ours.loss((ids, mask, types, everywhere, targets))
    backward()
    result.loss.backward()
    judge.close(loss, result.loss, dtype, "loss")
    judge.close(ours.infer_loss((ids, mask, types, everywhere, targets)), result.loss, dtype, "loss")
    judge.gradients(ours, theirs, dtype)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", SIZES)
def test_they_read_what_we_write(head: str, size: str, tmp_path: Path) -> None:
    theirs = _theirs(head, size, "float32")
    judge.read(Longformer, theirs, tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    ids, mask, _ = _inputs()
    inputs = {
        "input_ids": judge.tensors(ids),
        "attention_mask": judge.tensors(mask.astype(np.int64)),
        "global_attention_mask": judge.tensors(_tokens("some").astype(np.int64)),
    }
    judge.same_weights(tmp_path / "ours", theirs, getattr(transformers, f"Longformer{head}"), inputs, attention="eager")
