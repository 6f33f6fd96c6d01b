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
            firsts = [sentence[0] for sentence in source]
            assert firsts == [sentence[0] for sentence in targets]
            seen += firsts
        assert sorted(seen) == list(range(3, 303))
        epochs.append(seen)
    assert epochs[0] != epochs[1]
    again, other = _pairs(pool=3), _pairs(pool=3)
    for step in (steps + 1, 0):  # any step, in any order
        for a, b in zip(pairs.draw(count, seed=5, step=step), again.draw(count, seed=5, step=step), strict=True):
            np.testing.assert_array_equal(a.values, b.values)
            np.testing.assert_array_equal(a.cu_seqlens, b.cu_seqlens)
    assert count == 1000 or any(
        other.draw(count, seed=6, step=s)[0].values.tolist() != pairs.draw(count, seed=5, step=s)[0].values.tolist()
        for s in range(steps)
    )


def test_batches_are_packed() -> None:
    pairs = data.Pairs([np.array([7, 8]), np.array([9])], [np.array([5]), np.array([4, 3, 6])])
    source, target, targets = pairs.samples(0, 2)
    assert pairs.order.tolist() == [1, 0]
    assert [s.tolist() for s in source] == [[9, 2], [7, 8, 2]]
    assert [s.tolist() for s in target] == [[1, 4, 3, 6], [1, 5]]
    assert [s.tolist() for s in targets] == [[4, 3, 6, 2], [5, 2]]
    assert [s.tolist() for s in pairs.sources] == [[9], [7, 8]]
    assert [s.tolist() for s in pairs.targets] == [[4, 3, 6], [5]]
    np.testing.assert_array_equal(pairs.lengths, [[4, 2], [2, 3]])
    assert all(part.values.dtype == np.int32 for part in (source, target, targets))
    np.testing.assert_array_equal(data.pad_sources([np.array([7, 8]), np.array([9])]), [[7, 8, 2], [9, 2, 0]])


def test_lengths_in_a_batch_are_alike() -> None:
    def spread(pairs: data.Pairs) -> float:
        """The share that padding would have."""
        full = used = 0
        for step in range(pairs.batches(32)):
            source, target, _ = pairs.draw(32, seed=0, step=step)
            full += source.padded(0).size + target.padded(0).size
            used += source.values.size + target.values.size
        return 1 - used / full

    assert spread(_pairs(3000)) < 0.08
    assert spread(_pairs(3000, pool=1)) > 0.3, "what there would be without pools"


def test_packed(rng: np.random.Generator) -> None:
    sequences = [rng.integers(1, 9, (n, 2)) for n in (3, 0, 1, 5)]
    packed = data.Packed.of(sequences)
    assert len(packed) == 4
    assert packed.lengths.tolist() == [3, 0, 1, 5]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    for a, b in zip(packed, sequences, strict=True):
        np.testing.assert_array_equal(a, b)
    assert packed[1:].values.base is packed.values, "a slice copies nothing"
    for index in (slice(1, 3), slice(None), slice(-1, None), slice(3, 1), slice(9), slice(None, None, 2), slice(0, 0)):
        part = packed[index]
        assert [x.tolist() for x in part] == [x.tolist() for x in sequences[index]], index
    np.testing.assert_array_equal(packed[-1], sequences[-1])
    taken = packed.take(np.array([3, 3, 0]))
    assert [x.tolist() for x in taken] == [sequences[i].tolist() for i in (3, 3, 0)]
    rows = packed.padded(-1)
    assert rows.shape == (4, 5, 2)
    assert (rows[1] == -1).all() and (rows[0, 3:] == -1).all()
    again = data.Packed.cut(rows, packed.lengths)
    np.testing.assert_array_equal(again.values, packed.values)
    np.testing.assert_array_equal(again.cu_seqlens, packed.cu_seqlens)
    assert repr(packed) == "Packed(int64, lengths [3, 0, 1, 5])"
    with pytest.raises(IndexError):
        packed[4]
    values = np.arange(4)
    for starts, error, words in (
        (np.array([0.0, 4.0]), TypeError, "cu_seqlens must be integers, got float64"),
        (np.array([], int), ValueError, r"shape \(sequences \+ 1,\), got \(0,\)"),
        (np.array([[0, 4]]), ValueError, r"got \(1, 2\)"),
        (np.array([1, 4]), ValueError, "from 0 to the rows of values 4"),
        (np.array([0, 5]), ValueError, "from 0 to the rows of values 4"),
        (np.array([0, 3, 2, 4]), ValueError, "not decreasing"),
    ):
        with pytest.raises(error, match=words):
            data.Packed(values, starts)
    with pytest.raises(ValueError, match="values must have shape"):
        data.Packed(np.array(3), np.array([0]))


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
