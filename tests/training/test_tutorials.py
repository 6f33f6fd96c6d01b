"""The tutorials run from top to bottom, with fewer steps, and do what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "tutorials"


def _run(name: str, steps: int = 20) -> dict[str, Any]:
    path = PAGES / f"{name}.md"
    if not path.is_file():
        pytest.skip("docs/ is not here: this is an installed package")
    matplotlib = pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    page = path.read_text(encoding="utf-8")
    cells = re.findall(r"^```\{code-cell\} ipython3\n(?::[^\n]*\n)*(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(cells) >= 4
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        code = re.sub(r"^STEPS = \d+", f"STEPS = {steps}", cell, flags=re.MULTILINE)
        exec(compile(code, f"{path.name}, cell {number + 1}", "exec"), names)
    assert plt.get_fignums(), "there is a picture"
    plt.close("all")
    return names


def test_translate() -> None:
    names = _run("translate")
    assert names["say"](423) == ("four hundred and twenty-three", "vierhundertdreiundzwanzig")
    assert names["say"](101)[1] == "einhunderteins" and names["say"](70) == ("seventy", "siebzig")
    assert names["history"][-1]["loss"] < names["history"][0]["loss"]
    assert len(names["answers"]) == 100


def test_bert() -> None:
    pytest.importorskip("tokenizers", reason="needs the extra 'text'")
    names = _run("bert")
    assert names["history"][-1]["loss"] < names["history"][0]["loss"]
    np.testing.assert_allclose(names["weights"].sum(axis=-1), 1, rtol=1e-5)
    assert np.isclose(names["p"].sum(), 1)


def test_search() -> None:
    pytest.importorskip("tokenizers", reason="needs the extra 'text'")
    names = _run("search")
    best = names["scores"].argmax(axis=1)
    if names["spec"] is not None:
        assert best[0] in (0, 1) and best[1] == 4 and best[2] in (2, 3) and best[3] == 5
    np.testing.assert_allclose(names["alone"], names["index"], atol=1e-5)


def test_long_documents() -> None:
    names = _run("long_documents")
    assert 0 <= names["accuracy"]() <= 1
    assert names["pairs"][-1] / names["pairs"][-2] < 2.1, "linear in the length"


def test_transformer_xl() -> None:
    names = _run("transformer_xl")
    assert names["history"][-1]["loss"] < names["history"][0]["loss"]
    np.testing.assert_allclose(names["seen"].sum(axis=-1), 1, rtol=1e-5)
    assert len(names["losses"]) == len(names["reaches"])
