"""The examples run; how well they learn is theirs to say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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
