"""The examples run; how well they learn is theirs to say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples/ is not here: this is an installed package")
def test_dates(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("babel", reason="needs the extra 'examples'")
    example = runpy.run_path(str(EXAMPLES / "dates.py"))
    accuracy = example["main"](["--steps", "3", "--pairs", "100", "--held-out", "10", "--batch", "8"])
    assert 0.0 <= accuracy <= 1.0
    said = capsys.readouterr().out
    assert "step 3/3" in said
    assert "exact match on dates never seen" in said
    pairs = example["make"](range(0, 70_000, 7_000), example["np"].random.default_rng(0))
    assert pairs[0][1] == "1900-01-01"
    assert all(iso[:4] in words for words, iso in pairs), "the words say the year"


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples/ is not here: this is an installed package")
def test_digits(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="needs the extra 'examples'")
    example = runpy.run_path(str(EXAMPLES / "digits.py"))
    accuracy = example["main"](["--steps", "150", "--batch", "32", "--layers", "2", "--width", "32"])
    assert accuracy > 0.6, "chance is a tenth"
    assert "of 359 images that it has never seen" in capsys.readouterr().out


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples/ is not here: this is an installed package")
def test_attention_pictures(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="needs the extra 'plot'")
    example = runpy.run_path(str(EXAMPLES / "attention_pictures.py"))
    paths = example["main"](["--out", str(tmp_path)])
    assert sorted(path.name for path in paths) == ["attention_map.png", "attention_masks.png"]
    for path in paths:
        made, shown = plt.imread(path), plt.imread(DOCS / "images" / path.name)
        assert made.shape == shown.shape, "docs/images holds another picture than the example makes"
        assert made[..., :3].std() > 0.05, "an empty picture"
    kinds = example["kinds"]()
    seen = {title: p > 0 for title, p in kinds.items()}
    i, j = np.arange(12)[:, None], np.arange(12)
    assert (seen["causal=True, 12 queries, 18 keys"] == (np.arange(18) <= i + 6)).all()
    assert (seen['causal="top_left"'] == (np.arange(18) <= i)).all()
    assert (seen["window=(3, 1)"] == ((j - i >= -3) & (j - i <= 1))).all()
    assert (seen["causal=True, window=(3, None)"] == ((j - i >= -3) & (j <= i))).all()
    assert (seen["window=(1, 1), global_tokens: 4"] == ((abs(i - j) <= 1) | (i == 4) | (j == 4))).all()
    assert all(np.allclose(p.sum(axis=-1), 1, atol=1e-5) for p in kinds.values())
    words, found = example["SENTENCE"], example["attention_map"]()
    second = words.index("cat", words.index("cat") + 1)
    assert set(found[second].argsort()[-2:]) == {words.index("cat"), second}


@pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is not here: this is an installed package")
def test_code_of_the_attention_page() -> None:
    page = (DOCS / "fast_attention.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 10
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/fast_attention.md", "exec"), names)
    for picture in re.findall(r"\]\((images/[^)]+)\)", page):
        assert (DOCS / picture).is_file(), picture
