"""Pairs of sentences: files with mistakes in them, vocabularies, batches."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from numformer import data

WORDS = ["der", "Hund", "läuft", "die", "Katze", "schläft", "ein", "Mann", "sieht", "den", "Vogel", "im", "Garten", "!"]


def _sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 12))) for _ in range(count)]


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    lines = [
        b"\xef\xbb\xbfeins\tone",
        b"",
        b"zwei\ttwo\r",
        b"drei",
        b"\tfour",
        b"f\xfcnf\tfive",
        b"sechs\tsix\tseven",
        "acht\u2028neun\x0bzehn\teight nine ten".encode(),
        b" \t ",
        b"elf\televen",
    ]
    path.write_bytes(b"\n".join(lines))
    return path


def test_lines_that_are_no_pairs_are_counted_and_numbered(tsv: Path) -> None:
    text = data.read_pairs(tsv)
    assert text.sources == ["eins", "zwei", "acht\u2028neun\x0bzehn", "elf"], "only a line feed ends a line"
    assert text.targets == ["one", "two", "eight nine ten", "eleven"]
    assert text.lines == [1, 3, 8, 10]
    assert text.report.used == 4
    assert text.report.lines == 10
    assert text.report.problems == {
        "empty lines": [2, 9],
        "a side is missing": [4, 5],
        "not UTF-8": [6],
        "more than two columns": [7],
    }
    assert "4 of 10 pairs used; left out: 2 empty lines (lines 2, 9)" in str(text.report)
    with pytest.raises(ValueError, match=r"pairs\.tsv: 4 of 10.*1 not UTF-8 \(line 6\).*refused"):
        data.read_pairs(tsv, on_bad="error")
    with pytest.raises(ValueError, match="on_bad must be 'skip' or 'error', got 'no'"):
        data.read_pairs(tsv, on_bad="no")


def test_gzip_is_known_by_its_bytes(tsv: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(tsv.read_bytes()))
    assert data.read_pairs(packed).sources == data.read_pairs(tsv).sources
    whole = packed.read_bytes()
    for broken in (whole[:-9], whole[:30] + b"xx" + whole[32:], whole[:5]):
        packed.write_bytes(broken)
        with pytest.raises(ValueError, match="packed: a damaged gzip file"):
            data.read_pairs(packed)


def test_two_files(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    a.write_bytes(b"1\n\n3\n4\n")
    b.write_bytes(b"one\ntwo\nthree\n\xff")
    c.write_bytes(b"one\n\n3")
    text = data.read_parallel(a, b)
    assert (text.sources, text.targets, text.lines) == (["1", "3"], ["one", "three"], [1, 3])
    assert text.report.problems == {"a side is missing": [2], "not UTF-8": [4]}
    with pytest.raises(ValueError, match=r"4 in .*a and 3 in .*c"):
        data.read_parallel(a, c)
    text = data.read_parallel(a, c, truncate=True)
    assert text.lines == [1, 3]
    assert text.report.problems == {"empty lines": [2], "lines that the other file lacks": [4]}
    with pytest.raises(ValueError, match="refused"):
        data.read_parallel(a, c, truncate=True, on_bad="error")
    with pytest.raises(OSError, match="nowhere"):
        data.read_parallel(a, tmp_path / "nowhere")


def test_nothing_to_use(tmp_path: Path) -> None:
    for content in (b"", b"\n\n", b"no tab"):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ValueError, match="nothing to use"):
            data.read_pairs(tmp_path / "f")


def test_sentences_longer_than_the_model(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("abc\tx\n\nabcd\tx\nx\tabcde\nx\tabc\n")
    text = data.read_pairs(path)
    pairs = data.Pairs.from_text(text, data.ByteVocabulary(), context=4)
    assert len(pairs) == 2, "three bytes and the end"
    assert sorted(pairs.order) == [0, 3]
    assert text.report.problems == {"empty lines": [2], "longer than the model": [3, 4]}
    with pytest.raises(ValueError, match=r"longer than the model \(lines 3, 4\).*refused"):
        data.Pairs.from_text(data.read_pairs(path), data.ByteVocabulary(), context=4, on_bad="error")
    with pytest.raises(ValueError, match="nothing to use"):
        data.Pairs.from_text(data.read_pairs(path), data.ByteVocabulary(), context=2)


def _pairs(count: int = 300, **options: int) -> data.Pairs:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 40, count)
    # the number of a pair stands in both of its sides
    sources = [np.full(n, 3 + i) for i, n in enumerate(lengths)]
    targets = [np.full(max(1, n + d), 3 + i) for i, (n, d) in enumerate(zip(lengths, rng.integers(-3, 4, count)))]  # noqa: B905
    return data.Pairs(sources, targets, **options)


@pytest.mark.parametrize("count", [1, 7, 32, 300, 1000])
def test_an_epoch_has_every_pair_once(count: int) -> None:
    pairs = _pairs(pool=3)
    steps = pairs.batches(count)
    epochs = []
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            source, target, targets = pairs.draw(count, seed=5, step=step)
            assert len(source) == len(target) == len(targets) <= count
            np.testing.assert_array_equal(source[:, 0], targets[:, 0])
            seen += list(source[:, 0])
        assert sorted(seen) == list(range(3, 303))
        epochs.append(seen)
    assert epochs[0] != epochs[1]
    again, other = _pairs(pool=3), _pairs(pool=3)
    for step in (steps + 1, 0):  # any step, in any order
        for a, b in zip(pairs.draw(count, seed=5, step=step), again.draw(count, seed=5, step=step), strict=True):
            np.testing.assert_array_equal(a, b)
    assert count == 1000 or any(
        other.draw(count, seed=6, step=s)[0].tolist() != pairs.draw(count, seed=5, step=s)[0].tolist()
        for s in range(steps)
    )


def test_batches_are_padded_as_the_model_expects() -> None:
    pairs = data.Pairs([np.array([7, 8]), np.array([9])], [np.array([5]), np.array([4, 3, 6])])
    source, target, targets = pairs.samples(0, 2)
    assert pairs.order.tolist() == [1, 0]
    np.testing.assert_array_equal(source, [[9, 2, 0], [7, 8, 2]])
    np.testing.assert_array_equal(target, [[1, 4, 3, 6], [1, 5, 0, 0]])
    np.testing.assert_array_equal(targets, [[4, 3, 6, 2], [5, 2, -100, -100]])
    np.testing.assert_array_equal(data.pad_sources([np.array([7, 8]), np.array([9])]), [[7, 8, 2], [9, 2, 0]])


def test_padding_is_little() -> None:
    pairs = _pairs(3000)
    share = pairs.padding(32)
    full = used = 0
    for step in range(pairs.batches(32)):
        source, target, targets = pairs.draw(32, seed=0, step=step)
        full += source.size + target.size
        used += np.count_nonzero(source) + np.count_nonzero(targets != -100)
    np.testing.assert_allclose(share, 1 - used / full, rtol=1e-12)
    assert share < 0.08
    assert _pairs(3000, pool=1).padding(32) > 0.3, "what there would be without pools"


def test_pairs_that_are_none() -> None:
    one = [np.array([3])]
    for sources, targets, error, words in (
        (one, [], ValueError, "1 sources and 0 targets"),
        ([], [], ValueError, "at least one pair"),
        (one, [np.array([], int)], ValueError, "targets must not be empty"),
        ([np.array([0.5])], one, TypeError, "sources must be lists of integers"),
    ):
        with pytest.raises(error, match=words):
            data.Pairs(sources, targets)
    with pytest.raises(ValueError, match="pool"):
        data.Pairs(one, one, pool=0)
    with pytest.raises(ValueError, match="samples"):
        data.Pairs(one, one).samples(0, 2)
    with pytest.raises(ValueError, match="count"):
        data.Pairs(one, one).draw(0, seed=0, step=0)


TEXTS = ["", "a", " leading", "Grüße, 世界!\n\ttabs\u2028", "</s> <pad> is text", "\x00\x7f"]


def test_bytes() -> None:
    vocabulary = data.ByteVocabulary()
    assert len(vocabulary) == 259
    for text, ids in zip(TEXTS, vocabulary.encode(TEXTS), strict=True):
        assert ids.min(initial=3) >= 3
        assert vocabulary.decode([1, *ids, 2, 77, 0, 0]) == text
    assert vocabulary.decode([3 + 0xFF, 3 + 65]) == "\ufffdA"
    for wrong in (259, -1):
        with pytest.raises(ValueError, match=rf"\[0, 259\), got {wrong}"):
            vocabulary.decode([wrong])


def test_byte_pairs(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra 'text'")
    sentences = _sentences(200)
    vocabulary = data.BytePairVocabulary.train(sentences, 300)
    assert len(vocabulary) == 300
    assert vocabulary.to_json() == data.BytePairVocabulary.train(sentences, 300).to_json(), "deterministic"
    (tmp_path / "tokenizer.json").write_text(vocabulary.to_json(), encoding="utf-8")
    again = data.load_vocabulary(tmp_path)
    for v in (vocabulary, again):
        for text, ids in zip(TEXTS, v.encode(TEXTS), strict=True):
            assert ids.dtype == np.int32
            assert ids.min(initial=3) >= 3, "no special token is ever said by a text"
            assert v.decode([1, *ids, 2, 77, 0, 0]) == text
    assert sum(map(len, again.encode(sentences))) < 0.6 * sum(len(s.encode()) for s in sentences)
    with pytest.raises(ValueError, match="at least 259"):
        data.BytePairVocabulary.train(sentences, 258)
    fields = json.loads(vocabulary.to_json())
    fields["added_tokens"] = []
    fields["model"]["vocab"]["<s>"], fields["model"]["vocab"]["</s>"] = 2, 1
    for wrong in ("{}", "[]", json.dumps(fields), vocabulary.to_json()[:-30]):
        (tmp_path / "tokenizer.json").write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"tokenizer\.json: not"):
            data.load_vocabulary(tmp_path)


def test_saved_bytes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        data.load_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text(data.ByteVocabulary().to_json())
    assert isinstance(data.load_vocabulary(tmp_path), data.ByteVocabulary)
    (tmp_path / "tokenizer.json").write_text('{"type": "bytes"}')
    with pytest.raises(ValueError, match="special"):
        data.load_vocabulary(tmp_path)


def test_without_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"numformer\[text\]"):
        data.BytePairVocabulary.train(["a"], 300)
