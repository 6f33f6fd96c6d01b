"""Text and windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numformer import data


def test_windows_side_by_side_have_each_target_once() -> None:
    tokens = np.arange(1, 24, dtype=np.uint8)
    windows = data.Windows(tokens, 5)
    assert len(windows) == 5
    ids, targets = windows.samples(0, 5)
    counted = targets != -100
    np.testing.assert_array_equal(targets[counted], tokens[1:])
    np.testing.assert_array_equal(ids[counted], tokens[:-1])
    np.testing.assert_array_equal(windows.samples(3, 5)[1], targets[3:])
    with pytest.raises(ValueError, match="samples"):
        windows.samples(4, 6)


def test_drawn_windows() -> None:
    tokens = np.arange(100, dtype=np.uint8)
    windows = data.Windows(tokens, 7)
    ids, targets = windows.draw(500, seed=1, step=2)
    assert ids.shape == targets.shape == (500, 7)
    np.testing.assert_array_equal(ids + 1, targets)
    assert ids.min() == 0, "the first window is drawn too"
    assert targets.max() == 99, "and the last"
    np.testing.assert_array_equal(ids, windows.draw(500, seed=1, step=2)[0])
    assert (ids != windows.draw(500, seed=1, step=3)[0]).any()
    assert (ids != windows.draw(500, seed=2, step=2)[0]).any()


def test_short_texts() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens"):
        data.Windows(np.zeros(1, np.uint8), 4)
    with pytest.raises(ValueError, match="too short for windows of 4"):
        data.Windows(np.zeros(4, np.uint8), 4).draw(1, seed=0, step=0)
    with pytest.raises(TypeError, match="integers"):
        data.Windows(np.zeros(4), 4)
    with pytest.raises(ValueError, match="context"):
        data.Windows(np.zeros(4, np.uint8), 0)


def test_files(tmp_path: Path) -> None:
    one, two, empty, wrong = (tmp_path / name for name in ("one", "two", "empty", "wrong"))
    one.write_text("é1\n", encoding="utf-8")
    two.write_text("2", encoding="utf-8")
    empty.write_text(" \n")
    wrong.write_bytes(b"abc\xff")
    assert data.to_text(data.read_files([one, two])) == "é1\n2"
    with pytest.raises(ValueError, match="empty: there is no text"):
        data.read_files([one, empty])
    with pytest.raises(ValueError, match=r"wrong: not UTF-8 text \(byte 0xff at position 3\)"):
        data.read_files([wrong])
    with pytest.raises(OSError, match="nowhere"):
        data.read_files([tmp_path / "nowhere"])
    with pytest.raises(OSError, match=tmp_path.name):
        data.read_files([tmp_path])


def test_split_and_builtin_text() -> None:
    text = data.builtin_text()
    assert text == data.builtin_text()
    assert len(text) > 300_000
    tokens = data.to_tokens(text)
    train, held = data.split(tokens)
    np.testing.assert_array_equal(np.concatenate([train, held]), tokens)
    assert abs(len(held) / len(tokens) - 0.1) < 1e-3
    with pytest.raises(ValueError, match="validation"):
        data.split(tokens, validation=1.0)
