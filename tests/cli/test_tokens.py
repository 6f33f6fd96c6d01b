"""``numformer tokenize``, and training, generating and scoring by its tokens."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numformer.cli import app
from numformer.data import BytePairVocabulary, TokenFile, parse_vocabulary, to_tokens, write_tokens
from numformer.models import GPT
from typer.testing import CliRunner

TINY = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch", "4"]
LINES = ["To be, or not to be, that is the question.", "Whether 'tis nobler in the mind to suffer", "the slings"]
RUN = CliRunner()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES * 30), encoding="utf-8")
    return path


def _said(file: TokenFile) -> list[str]:
    assert file.tokenizer is not None
    vocabulary, end = parse_vocabulary(file.tokenizer, "a test")
    assert end == file.end
    return [vocabulary.decode(file[i].tolist()) for i in range(len(file))]


def test_bytes(tmp_path: Path, text: Path) -> None:
    result = RUN.invoke(app, ["tokenize", str(text), "--vocab", "0", "--documents", "line"])
    assert result.exit_code == 0, result.output
    file = TokenFile(tmp_path / "text.tokens")
    assert file.tokens.dtype == np.uint16 and file.vocab_size == 259 and file.end == 2
    assert _said(file) == LINES * 30
    assert "90 documents" in result.output
    result = RUN.invoke(app, ["tokenize", "--check", str(file.path)])
    assert result.exit_code == 0 and "whole; 90 documents" in result.output


def test_subwords_and_a_tokenizer(tmp_path: Path, text: Path) -> None:
    pytest.importorskip("tokenizers")
    packed = tmp_path / "more.txt.gz"
    packed.write_bytes(gzip.compress("été".encode()))
    one, two = tmp_path / "one.tokens", tmp_path / "two.tokens"
    result = RUN.invoke(app, ["tokenize", str(text), str(packed), "--out", str(one), "--vocab", "300"])
    assert result.exit_code == 0, result.output
    file = TokenFile(one)
    assert _said(file) == ["\n".join(LINES * 30), "été"]
    assert 259 < file.vocab_size <= 300
    assert len(file.tokens) < text.stat().st_size // 2
    BytePairVocabulary.train(LINES, 300).tokenizer.save(str(tmp_path / "tokenizer.json"))
    for given in (tmp_path, tmp_path / "tokenizer.json"):
        result = RUN.invoke(app, ["tokenize", str(text), "--out", str(two), "--tokenizer", str(given), "--no-end"])
        assert result.exit_code == 0, result.output
        assert TokenFile(two).end is None
        assert _said_without_end(TokenFile(two)) == ["\n".join(LINES * 30)]


def _said_without_end(file: TokenFile) -> list[str]:
    assert file.tokenizer is not None
    vocabulary, _ = parse_vocabulary(file.tokenizer, "a test")
    return [vocabulary.decode(file[i].tolist()) for i in range(len(file))]


def test_other_tokenizers_end_texts_their_way(tmp_path: Path, text: Path) -> None:
    library = pytest.importorskip("tokenizers")
    level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = level, library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        initial_alphabet=sorted(level.alphabet()), special_tokens=["<stop>", "<|endoftext|>"]
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    out = tmp_path / "a.tokens"
    for config, end in (('{"eos_token": {"content": "<stop>"}}', 0), ("{}", 1), ("[1]", 1), ("not JSON", 1)):
        (tmp_path / "tokenizer_config.json").write_text(config)
        text.write_text("a <stop> b\n" + "<|endoftext|>")
        result = RUN.invoke(app, ["tokenize", str(text), "--out", str(out), "--tokenizer", str(tmp_path)])
        assert result.exit_code == 0, result.output
        file = TokenFile(out)
        assert file.end == end
        assert (file[0][:-1] > 1).all(), "what a text says is text"
        assert file[0][-1] == end


def test_what_is_refused(tmp_path: Path, text: Path) -> None:
    empty, wrong = tmp_path / "empty.txt", tmp_path / "wrong.txt"
    empty.write_text(" \n\n")
    wrong.write_bytes(b"abc\xff")
    for arguments, words in [
        ([str(empty), "--vocab", "0"], "there is no text in"),
        ([str(wrong), "--vocab", "0"], "not UTF-8 text (byte 0xff at position 3)"),
        ([str(tmp_path / "nowhere"), "--vocab", "0"], "nowhere: No such file"),
        ([str(text), "--vocab", "0", "--out", str(tmp_path / "a.bin")], "--out must end in .tokens"),
        ([str(text), "--vocab", "0", "--tokenizer", str(tmp_path)], "--vocab or --tokenizer may be given, not both"),
        ([str(text), "--tokenizer", str(tmp_path)], "tokenizer.json: no such file"),
        (["--check", str(text)], "text.txt: damaged"),
    ]:
        result = RUN.invoke(app, ["tokenize", *arguments])
        assert result.exit_code == 2 and words in result.stderr, result.output
    assert not list(tmp_path.glob("*.tokens")) and not list(tmp_path.glob(".*"))


def test_train_generate_score(tmp_path: Path, text: Path) -> None:
    tokens, out = tmp_path / "a.tokens", tmp_path / "run"
    RUN.invoke(app, ["tokenize", str(text), "--vocab", "0", "--documents", "line", "--out", str(tokens)])
    common = ["train", str(tokens), "--out", str(out), *TINY]
    result = RUN.invoke(app, [*common, "--steps", "6", "--sample-every", "3"])
    assert result.exit_code == 0, result.output
    for words in ("90 documents that do not see each other", "nats a token", f"wrote {out / 'tokenizer.json'}"):
        assert words in result.output
    assert GPT.from_pretrained(out).config.vocab_size == 259
    result = RUN.invoke(app, ["generate", str(out), "--prompt", "To be", "--max-new-tokens", "5", "--seed", "1"])
    assert result.exit_code == 0 and result.output.startswith("To be")
    result = RUN.invoke(app, ["score", str(out), str(text)])
    assert result.exit_code == 0 and "bits a byte, 1.0" in result.output, result.output
    result = RUN.invoke(app, ["score", str(out), str(tokens)])
    assert result.exit_code == 0 and "nats a token" in result.output, result.output
    (out / "tokenizer.json").unlink()
    result = RUN.invoke(app, ["generate", str(out)])
    assert result.exit_code == 2 and "knows byte-level models, of 256" in result.stderr
    result = RUN.invoke(
        app, ["train", str(tokens), "--no-packing", "--steps", "1", "--quiet", "--out", str(out), *TINY]
    )
    assert result.exit_code == 0 and "see each other" not in result.output


def test_refusals_of_training(tmp_path: Path, text: Path) -> None:
    tokens, short = tmp_path / "a.tokens", tmp_path / "short.tokens"
    write_tokens(tokens, [to_tokens("abc" * 100)], vocab_size=256)
    write_tokens(short, [to_tokens("abc")], vocab_size=256)
    cut = tmp_path / "cut.tokens"
    cut.write_bytes(tokens.read_bytes()[:-3])
    altered = tmp_path / "altered.tokens"
    content = tokens.read_bytes()
    altered.write_bytes(content.replace(b'vocab_size\\":256', b'vocab_size\\":255'))
    assert altered.read_bytes() != content
    for arguments, words in [
        ([str(tokens), str(text)], "a token file must be the only one"),
        ([str(short)], "too few for a context of 16"),
        ([str(cut)], "cut.tokens: damaged or cut short"),
        ([str(altered)], "altered.tokens: damaged"),
        ([str(text), "--packing"], "--packing is for a token file"),
        ([str(tmp_path / "no.tokens")], "no.tokens: no such file"),
        (["--model", "transformer", "--packing"], "--packing is for a gpt"),
    ]:
        result = RUN.invoke(app, ["train", *arguments, "--out", str(tmp_path / "run"), *TINY])
        assert result.exit_code == 2 and words in result.stderr, (arguments, result.output)
    assert not (tmp_path / "run").exists()
    result = RUN.invoke(app, ["train", str(tokens), "--steps", "1", "--out", str(tmp_path / "run"), *TINY])
    assert result.exit_code == 0, "without a vocabulary samples are numbers"
    assert "97 98 99" in result.output.replace("\n", " ")


def test_memory_is_constant(tmp_path: Path) -> None:
    """A text of 3 MB and one of 24 MB: the same memory, to a few megabytes."""
    peaks = []
    for copies in (1, 8):
        path = tmp_path / f"{copies}.txt"
        path.write_text("To be, or not to be, that is the question. " * 70_000 * copies)
        code = (
            "from numformer.cli import app; from numformer.profiling.memory import resident_peak\n"
            f"app(['tokenize', {str(path)!r}, '--vocab', '0', '--quiet'], standalone_mode=False)\n"
            "print(resident_peak())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 8_000_000
