"""Files of tokens: written as they come, read where they are; hostile ones; orders by chance; packed documents."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numformer import data, files
from numformer.data import Permutation, TokenFile, Windows, write_tokens
from numformer.data.documents import cut, encode_documents, joins, read_documents
from numformer.models import GPT, GPTConfig
from numformer.nn import Context
from numformer.optim import AdamW
from numformer.train import Trainer


def _documents(rng: np.random.Generator, count: int, vocab_size: int = 300, longest: int = 30) -> list[np.ndarray]:
    return [rng.integers(0, vocab_size, rng.integers(1, longest)) for _ in range(count)]


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_what_is_written_is_read(tmp_path: Path, rng: np.random.Generator, size: int, dtype: str) -> None:
    path = tmp_path / "a.tokens"
    documents = [rng.integers(0, size, n) for n in (3, 1, 0, 17)]
    assert write_tokens(path, documents, vocab_size=size, end=size - 1, tokenizer="{}é") == (3, 24)
    found = TokenFile(path)
    assert found.tokens.dtype == dtype and not found.tokens.flags.writeable
    assert (found.vocab_size, found.end, found.tokenizer, len(found)) == (size, size - 1, "{}é", 3)
    for ours, theirs in zip((found[i] for i in range(3)), (d for d in documents if len(d)), strict=True):
        np.testing.assert_array_equal(ours, [*theirs, size - 1])
    found.verify()
    from safetensors.numpy import load_file  # which knows nothing of us

    np.testing.assert_array_equal(load_file(path)["tokens"], found.tokens)
    np.testing.assert_array_equal(load_file(path)["documents"], found.documents)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tokens"]


def test_pieces_are_joined(tmp_path: Path, rng: np.random.Generator) -> None:
    documents = _documents(rng, 40)
    pieces = [(p, i == 2) for d in documents for i, p in enumerate(np.array_split(d, 3))]
    write_tokens(tmp_path / "whole.tokens", documents, vocab_size=300)
    write_tokens(tmp_path / "pieces.tokens", iter(pieces), vocab_size=300)
    assert (tmp_path / "whole.tokens").read_bytes() == (tmp_path / "pieces.tokens").read_bytes()


def test_many_documents_are_spilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numformer.data.token_file._BLOCK", 64)  # eight places are kept at a time
    write_tokens(tmp_path / "a.tokens", (np.array([i % 7]) for i in range(300)), vocab_size=7)
    found = TokenFile(tmp_path / "a.tokens")
    np.testing.assert_array_equal(found.documents, np.arange(301))
    found.verify()


def test_bad_tokens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tokens"
    for bad, error, words in [
        (np.array([1.5]), TypeError, "documents must hold integers, got float64"),
        (np.array([[1]]), ValueError, r"shape \(tokens,\), got \(1, 1\)"),
        (np.array([5, 7]), ValueError, r"tokens must be in \[0, 7\), got 5 to 7 in document 1"),
        (np.array([-1]), ValueError, r"got -1 to -1"),
    ]:
        with pytest.raises(error, match=words):
            write_tokens(path, [np.array([1]), bad], vocab_size=7)
    for options, words in [({"vocab_size": 0}, "vocab_size"), ({"vocab_size": 5, "end": 5}, "end must be in")]:
        with pytest.raises(ValueError, match=words):
            write_tokens(path, [], **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="nowhere"):
        write_tokens(tmp_path / "nowhere" / "a.tokens", [], vocab_size=5)


def _header(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _file(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_hostile_files(tmp_path: Path, rng: np.random.Generator) -> None:
    """None of them is believed, and none asks for memory: cut, altered, and with lengths near 2**63 and 2**64."""
    path = tmp_path / "a.tokens"
    write_tokens(path, _documents(rng, 50), vocab_size=300, end=2, tokenizer="x" * 50)
    whole = path.read_bytes()
    header, body = _header(whole)
    TokenFile(path)
    hostile: list[bytes] = [whole[:n] for n in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1)]
    hostile += [whole + b"\0", b"\0" * 1000, b"{" * 1000]
    for length in (2**63 - 1, 2**63, 2**64 - 1, 2**62, len(whole), 10**9):
        hostile.append(length.to_bytes(8, "little") + whole[8:])
    big = (2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**100, -1, 2**32, 1.5, "3", None)
    for name in ("tokens", "documents"):
        for value in big:
            for field, new in (("shape", [value]), ("data_offsets", [0, value]), ("data_offsets", [value, value])):
                other = json.loads(json.dumps(header))
                other[name][field] = new
                hostile.append(_file(other, body))
        for dtype in ("F32", "I64", "U8", "U32", "BF16", "C64", "?"):
            if dtype != header[name]["dtype"]:
                hostile.append(_file({**header, name: {**header[name], "dtype": dtype}}, body))
        hostile.append(_file({key: value for key, value in header.items() if key != name}, body))
    notes = json.loads(header["__metadata__"]["numformer"])
    for field, values in {
        "vocab_size": (0, -1, 2**32 + 1, 2**63, "300", None, True, 200, 70000),
        "end": (-1, 300, 2**63, "2", 1.0),
        "tokenizer": (1, [], {}),
        "crc32": (None, {}, {"tokens": "x", "documents": 1}),
        "kind": ("numformer tokens 2", 1, None),
    }.items():
        for value in values:
            text = json.dumps({**notes, field: value})
            hostile.append(_file({**header, "__metadata__": {**header["__metadata__"], "numformer": text}}, body))
            sealed = data.token_file._seal(
                text, "uint16", tuple(header["tokens"]["shape"]), tuple(header["documents"]["shape"])
            )
            metadata = {"numformer": text, "seal": sealed}  # by somebody who knows how
            hostile.append(_file({**header, "__metadata__": metadata}, body))
    for metadata in (
        {},
        {"numformer": "[]", "seal": ""},
        {"numformer": "{", "seal": ""},
        {"numformer": "[" * 10**5, "seal": ""},
    ):
        hostile.append(_file({**header, "__metadata__": metadata}, body))
    begin = header["documents"]["data_offsets"][0]
    for number, value in ((0, 1), (3, 2**63), (3, 2**64 - 1), (50, 1), (20, 0)):
        altered = bytearray(body)
        altered[begin + 8 * number : begin + 8 * number + 8] = value.to_bytes(8, "little")
        hostile.append(_file(header, bytes(altered)))
    for number, content in enumerate(hostile):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tokens: "):  # noqa: PT012
            TokenFile(path)
            print(number, content[:300])


def test_every_altered_byte_of_the_header_is_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.tokens"
    write_tokens(path, _documents(rng, 5), vocab_size=300)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    text = length - (len(whole[:length]) - len(whole[:length].rstrip(b" ")))
    for place in range(text):
        altered = bytearray(whole)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        try:
            found = TokenFile(path)
        except ValueError:
            continue
        # Only the name of what fills up may change, and that is nobody's.
        assert json.loads(altered[8:length])["tokens"] == json.loads(whole[8:length])["tokens"]
        assert found.vocab_size == 300 and found.end is None


def test_altered_tokens_are_found(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.tokens"
    write_tokens(path, _documents(rng, 50, vocab_size=60000), vocab_size=60000)
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for place in (begin, begin + 501, len(whole) - 9):
        altered = bytearray(whole)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"a\.tokens: damaged"):
            TokenFile(path).verify()
    altered = bytearray(whole)
    altered[begin : begin + 400] = b"\xff" * 400
    path.write_bytes(altered)
    found = TokenFile(path)
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 60000\), got 65535"):
        Windows(found.tokens, 16, limit=found.vocab_size).samples(0, 3)


def test_other_files_are_no_token_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TokenFile(tmp_path / "nowhere")
    path = tmp_path / "t"
    files.write_tensors(path, {"tokens": np.zeros(3, np.uint16)}, {})
    assert data.is_token_file(path)
    with pytest.raises(ValueError, match="no file of tokens"):
        TokenFile(path)
    path.write_text("text {")
    assert not data.is_token_file(path)
    assert data.is_token_file(tmp_path / "x.tokens")


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """100 MB are written, opened and drawn from in less than 30 MB beyond an empty process."""
    code = f"""
        import numpy as np
        from numformer.data import TokenFile, Windows, write_tokens
        from numformer.profiling.memory import resident_peak
        base = resident_peak()
        piece = np.arange(1 << 16) % 50000
        write_tokens("{tmp_path}/a.tokens", (piece for _ in range(800)), vocab_size=50000)
        written = resident_peak() - base
        found = TokenFile("{tmp_path}/a.tokens")
        windows = Windows(found.tokens, 128, documents=found.documents, epochs=True, limit=50000)
        for step in range(20):
            windows.draw(8, seed=0, step=step)
        print(found.tokens.nbytes, written, resident_peak() - base)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    size, written, drawn = map(int, done.stdout.split())
    assert size > 100_000_000
    assert written < 30_000_000 and drawn < 60_000_000, "pages that are read around each window count, too"


def test_the_system_is_told_what_comes_next(tmp_path: Path, rng: np.random.Generator) -> None:
    """The pages of the next batch, and none outside of the file."""
    write_tokens(tmp_path / "a.tokens", _documents(rng, 3000), vocab_size=300)
    file = TokenFile(tmp_path / "a.tokens")
    assert file._mapping is not None
    assert file._mapping[file._offset : file._offset + file.tokens.nbytes] == file.tokens.tobytes()
    file.advise(0, len(file.tokens))
    file.advise(len(file.tokens) - 1, len(file.tokens) + 10**6)
    told: list[tuple[int, int]] = []
    windows = Windows(file.tokens, 16, epochs=True, advise=lambda start, stop: told.append((start, stop)))
    model = _model(vocab_size=300)
    Trainer(model, AdamW(model.parameters()), windows, batch_size=3, steps=2, progress=False).run()
    ids = np.concatenate([windows.draw(3, seed=0, step=step)[0] for step in (1, 2)])
    assert [stop - start for start, stop in told] == [17] * 6
    np.testing.assert_array_equal(ids, [file.tokens[start : start + 16] for start, _ in told])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 16, 17, 100, 1023, 1024, 1025, 70_001])
def test_a_permutation_has_each_place_once(count: int, rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**63))
    order = Permutation(count, seed=seed, epoch=3)(np.arange(count))
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    some = rng.integers(0, count, 20)
    np.testing.assert_array_equal(Permutation(count, seed=seed, epoch=3)(some), order[some])
    if count > 20:
        for other in (Permutation(count, seed=seed, epoch=4), Permutation(count, seed=seed + 1, epoch=3)):
            assert (other(np.arange(count)) != order).any()


def test_permutations_are_even(rng: np.random.Generator) -> None:
    """Each place goes everywhere, and so do pairs of neighbours: chi-squared, at less than one in a million."""
    for count in (5, 12, 33):
        first = int(rng.integers(2**40))
        orders = np.array([Permutation(count, seed=first + i)(np.arange(count)) for i in range(400)])
        expected = 400 / count
        for place in range(count):
            found = np.bincount(orders[:, place], minlength=count)
            chi = float(((found - expected) ** 2 / expected).sum())
            assert chi < count - 1 + 8 * np.sqrt(2 * (count - 1)), (count, place)
        steps = (orders[:, 1:] - orders[:, :-1]) % count
        found = np.bincount(steps.ravel(), minlength=count)[1:]
        expected = steps.size / (count - 1)
        assert float(((found - expected) ** 2 / expected).sum()) < count + 8 * np.sqrt(2 * count)


def test_a_permutation_may_be_huge() -> None:
    order = Permutation(2**62, seed=0)
    places = np.array([0, 1, 2**62 - 1])
    assert len(np.unique(order(places))) == 3
    assert (order(places) >= 0).all() and (order(places) < 2**62).all()
    for places in ([2**62], [-1]):
        with pytest.raises(ValueError, match="places must be in"):
            order(np.array(places))
    for count in (0, 2**62 + 1):
        with pytest.raises(ValueError, match="count must be between"):
            Permutation(count, seed=0)


@pytest.mark.parametrize(("total", "context"), [(18, 17), (34, 17), (99, 17), (500, 17), (2500, 1)])
def test_epochs_have_each_window_once(total: int, context: int, rng: np.random.Generator) -> None:
    tokens = np.arange(total)
    windows = Windows(tokens, context, epochs=True)
    in_epoch = windows.windows_an_epoch()
    assert in_epoch >= max(1, total // context - 2)
    seed = int(rng.integers(2**32))
    every = [windows.draw(3, seed=seed, step=step) for step in range(2 * in_epoch)]
    ids = np.concatenate([batch[0] for batch in every])
    for epoch in range(6):
        rows = ids[epoch * in_epoch : (epoch + 1) * in_epoch]
        starts = np.sort(rows[:, 0])
        assert (np.diff(starts) == context).all(), "side by side, none twice"
        np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(context))
    again = windows.draw(2, seed=seed, step=2)[0]
    np.testing.assert_array_equal(again, ids[4:6], "a function of the place in the epochs")
    if total == 500:
        shifts = {int(ids[e * in_epoch : (e + 1) * in_epoch, 0].min()) for e in range(6)}
        assert len(shifts) > 1, "the first window moves"


def _plain(windows: Windows, starts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and targets of windows, by a loop over every token."""
    tokens, documents, context = windows.tokens, windows.documents, windows.context
    assert documents is not None
    begins = set(documents.tolist())
    positions, targets = np.zeros((2, len(starts), context), int)
    for row, start in enumerate(starts):
        for column in range(context):
            place = start + column
            new = column == 0 or place in begins
            positions[row, column] = 0 if new else positions[row, column - 1] + 1
            last = place + 1 >= len(tokens) or place + 1 in begins
            targets[row, column] = -100 if last else tokens[place + 1]
    return positions, targets


def test_packed_windows_keep_documents_apart(rng: np.random.Generator) -> None:
    lengths = [*rng.integers(0, 12, 60).tolist(), 1, 0, 90, 16, 16, 3]
    documents = np.cumsum([0, *lengths])
    tokens = rng.integers(0, 1000, documents[-1])
    windows = Windows(tokens, 16, documents=documents, epochs=True)
    ids, positions, targets = windows.samples(0, len(windows))
    plain = _plain(windows, [16 * i for i in range(len(windows))])
    inside = (np.arange(len(windows) * 16) < len(tokens) - 1).reshape(-1, 16)
    np.testing.assert_array_equal(positions[inside], plain[0][inside])
    np.testing.assert_array_equal(targets, plain[1])
    np.testing.assert_array_equal(ids[inside], tokens[:-1])
    places = {tuple(tokens[i : i + 16]): i for i in range(len(tokens) - 16)}
    for step in range(9):
        ids, positions, targets = windows.draw(7, seed=1, step=step)
        plain = _plain(windows, [places[tuple(row)] for row in ids.tolist()])
        np.testing.assert_array_equal(positions, plain[0])
        np.testing.assert_array_equal(targets, plain[1])


def test_bad_documents_are_refused() -> None:
    tokens = np.arange(20)
    for documents, error in [
        ([0.0, 20.0], TypeError),
        ([[0, 20]], TypeError),
        ([], TypeError),
        ([1, 20], ValueError),
        ([0, 19], ValueError),
    ]:
        with pytest.raises(error, match="Windows: documents must"):
            Windows(tokens, 4, documents=np.array(documents))


def _model(**options: Any) -> GPT:
    return GPT(GPTConfig(**({"vocab_size": 60, "context": 16, "layers": 2, "heads": 2, "width": 8} | options)), rng=0)


def test_packed_documents_are_as_if_alone(rng: np.random.Generator) -> None:
    """Loss and gradients of rows that hold several documents are those of each document by itself."""
    model = _model(dtype="float64")
    lengths = [[5, 1, 10], [16], [3, 13], [1] * 16]
    ids = rng.integers(0, 60, (4, 16))
    positions = np.array([[i for n in row for i in range(n)] for row in lengths])
    targets = np.where(rng.random((4, 16)) < 0.2, -100, rng.integers(0, 60, (4, 16)))
    loss, backward = model.loss((ids, positions, targets))
    backward()
    packed = [p.grad.copy() for p in model.parameters()]
    np.testing.assert_allclose(model.infer_loss((ids, positions, targets)), loss, rtol=1e-12)
    model.zero_grad()
    count, total = np.count_nonzero(targets != -100), 0.0
    for row, sizes in enumerate(lengths):
        for begin, end in pairwise(np.cumsum([0, *sizes])):
            piece = targets[row : row + 1, begin:end]
            share = np.count_nonzero(piece != -100) / count
            if share:
                value, backward = model.loss((ids[row : row + 1, begin:end], piece))
                backward(share)
                total += share * value
    np.testing.assert_allclose(loss, total, rtol=1e-12)
    for ours, parameter in zip(packed, model.parameters(), strict=True):
        np.testing.assert_allclose(ours, parameter.grad, rtol=1e-9, atol=1e-14)


def test_rows_of_one_document_are_what_they_were(rng: np.random.Generator) -> None:
    model = _model(dropout=0.3)
    ids, targets = rng.integers(0, 60, (2, 3, 16))
    positions = np.tile(np.arange(16), (3, 1))
    for recompute in (False, True):
        ctx = Context(seed=4, step=2, recompute=recompute)
        losses = [model.loss(batch, ctx=ctx)[0] for batch in ((ids, targets), (ids, positions, targets))]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_of_packed_rows_change_nothing(rng: np.random.Generator, micro: int) -> None:
    documents = np.cumsum([0, *rng.integers(1, 12, 60)])
    tokens = rng.integers(0, 60, documents[-1])
    whole, pieces = (_model(dtype="float64", dropout=0.2) for _ in range(2))
    for model, size in ((whole, None), (pieces, micro)):
        windows = Windows(tokens, 16, documents=documents, epochs=True)
        Trainer(
            model, AdamW(model.parameters()), windows, batch_size=3, steps=3, micro_batch=size, progress=False
        ).run()
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-9, atol=1e-12)


def test_resumed_from_a_file_is_uninterrupted(tmp_path: Path, rng: np.random.Generator, threads: Any) -> None:
    """Stopped in the middle of an epoch and behind several, with another number of threads: the same bits."""
    write_tokens(tmp_path / "a.tokens", _documents(rng, 30, vocab_size=60), vocab_size=60)

    def trainer(folder: str, steps: int) -> Trainer:
        file, model = TokenFile(tmp_path / "a.tokens"), _model(dropout=0.2)
        windows = Windows(file.tokens, 16, documents=file.documents, epochs=True, limit=60)
        assert windows.windows_an_epoch() < 40
        options: dict[str, Any] = {"steps": steps, "out_dir": tmp_path / folder, "seed": 3, "micro_batch": 2}
        return Trainer(model, AdamW(model.parameters()), windows, batch_size=7, progress=False, **options)

    whole = trainer("whole", 21)
    whole.run()
    for number, stop in enumerate((2, 13, 21)):
        threads(1 + number % 2)
        again = trainer("run", stop)
        if number:
            again.resume()
        again.run()
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


def test_bad_positions_are_refused(rng: np.random.Generator) -> None:
    model = _model()
    ids = rng.integers(0, 60, (2, 6))
    good = np.array([[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 2, 3]])
    model.loss((ids, good, ids))
    for row, column, value in ((0, 0, 1), (1, 5, 5), (0, 3, -1), (0, 1, 2)):
        bad = good.copy()
        bad[row, column] = value
        with pytest.raises(ValueError, match="positions must count up from 0 in each row"):
            model.loss((ids, bad, ids))
    with pytest.raises(ValueError, match=r"positions must have the shape of ids \(2, 6\), got \(2, 5\)"):
        model.loss((ids, good[:, :5], ids))
    with pytest.raises(TypeError, match="mask must be boolean"):
        model.loss((ids, good.astype(float), ids))


TEXTS = {
    "file": ("one two\n\nthree\n", ["one two\n\nthree"]),
    "line": ("one two\n\nthree\r\n  \nfour", ["one two", "three", "four"]),
    "separator": ("--\none\ntwo\n\n--\n--\n\nthree--\n--\r\nfour", ["one\ntwo", "three--", "four"]),
    "jsonl": ('{"text": "one\\ntwo\\n"}\n\n{"text": " "}\n{"id": 1, "text": "é"}', ["one\ntwo", "é"]),
}


def _joined(pieces: Any) -> list[str]:
    found, text = [], ""
    for piece, over in pieces:
        text += piece
        if over:
            found.append(text)
            text = ""
    assert text == ""
    return found


@pytest.mark.parametrize("split", TEXTS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, chunk: int, packed: bool) -> None:
    text, expected = TEXTS[split]
    monkeypatch.setattr("numformer.data.documents._CHUNK", chunk)
    for name in ("a", "b"):
        raw = b"\xef\xbb\xbf" + text.encode()
        (tmp_path / name).write_bytes(gzip.compress(raw) if packed else raw)
    done: list[int] = []
    paths = [tmp_path / "a", tmp_path / "b"]
    assert _joined(read_documents(paths, split=split, separator="--", progress=done.append)) == expected * 2
    assert sum(done) == sum(path.stat().st_size for path in paths)


def test_bad_documents(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    for content, split, words in [
        (b"abc\xff", "file", r"bad: not UTF-8 text \(byte 0xff at position 3\)"),
        (b"abc\n\xc3", "line", r"bad: not UTF-8 text \(byte 0xc3 at position 4\)"),
        (b'{"text": "a"}\n{"text": 1}', "jsonl", 'bad: line 2 is no object with a string "text"'),
        (b"\n[1]", "jsonl", "bad: line 2 is no object"),
        (b"{", "jsonl", "bad: line 1 is not JSON"),
        (b"[" * 100_000, "jsonl", "bad: line 1 is not JSON"),
        (gzip.compress(b"abc" * 100)[:-9], "file", "bad: a damaged gzip file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            list(read_documents([path], split=split))
    with pytest.raises(OSError, match="nowhere"):
        list(read_documents([tmp_path / "nowhere"]))
    with pytest.raises(ValueError, match="split must be file, line"):
        list(read_documents([path], split="word"))


def test_cuts_change_no_token(rng: np.random.Generator) -> None:
    """Byte pairs learned from a text, with the rules of GPT-2 and of later models for where words end."""
    tokenizers = pytest.importorskip("tokenizers")
    words = [
        "a",
        "of",
        "is",
        "it's",
        "über",
        "naïve",
        "12",
        "3456",
        "x=1;",
        "...",
        "\n\n",
        "  ",
        "\t",
        "e\u0301",
        "中文",
    ]
    text = "".join(rng.choice([*words, *[" " + w for w in words]], 4000))
    gpt2 = data.BytePairVocabulary.train([text], 400)
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    pattern += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    other = tokenizers.Tokenizer.from_str(gpt2.to_json())
    pre = tokenizers.pre_tokenizers
    other.pre_tokenizer = pre.Sequence(
        [pre.Split(tokenizers.Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    for vocabulary in (gpt2, data.JsonVocabulary(other), data.ByteVocabulary()):
        assert joins(vocabulary.encode)
        whole = vocabulary.encode([text])[0]
        for size in (1, 5, 60):
            parts = list(cut([(text[:1000], False), (text[1000:], True)], size=size))
            assert "".join(part for part, _ in parts) == text
            assert [over for _, over in parts] == [False] * (len(parts) - 1) + [True]
            if size > 1:
                assert max(len(part) for part, _ in parts) <= 16 * size + 1000
        parts = list(cut([(text, True)], size=60))
        np.testing.assert_array_equal(np.concatenate(vocabulary.encode([p for p, _ in parts])), whole)
        assert len(parts) > 50
    long = "中" * 5000
    assert "".join(p for p, _ in cut([(long, True)], size=10)) == long


def test_encoders_that_begin_each_text_get_whole_documents(rng: np.random.Generator) -> None:
    def begun(texts: Any) -> list[np.ndarray]:
        return [np.array([0, *map(len, text.split())]) for text in texts]

    assert not joins(begun)
    pieces = [("one ", False), ("two three", True), ("four", True)]
    found = list(encode_documents(iter(pieces), begun))
    assert [(ids.tolist(), over) for ids, over in found] == [([0, 3, 3, 5], True), ([0, 4], True)]
