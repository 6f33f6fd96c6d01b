"""numformer embed and fill, and the tokenizers they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numformer.cli import app
from numformer.data import Tokenizer, builtin_text
from numformer.models import BERT, GPT, BERTConfig, GPTConfig, Longformer, RoBERTa, RoBERTaConfig, from_pretrained
from typer.testing import CliRunner

pytest.importorskip("tokenizers", reason="needs the extra 'text'")
RUN = CliRunner()
SMALL: dict[str, Any] = {"context": 40, "layers": 1, "heads": 2, "width": 8}


def _text() -> list[str]:
    return builtin_text()[:60_000].splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT, as it was born, with a vocabulary."""
    path = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer.train_wordpiece(_text(), 300)
    tokenizer.save(path)
    BERT(BERTConfig(vocab_size=len(tokenizer), pad_id=tokenizer.id_of("pad"), **SMALL), rng=0).save_pretrained(path)
    return path


def test_embed(folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    texts = ["A class.", "", "for each " * 100, "Zebra ünïcode 漢字"]
    lines.write_text("\n".join(texts), encoding="utf-8")
    result = RUN.invoke(app, ["embed", str(folder), "--file", str(lines)])
    assert result.exit_code == 0, result.output
    found = np.load(tmp_path / "lines.txt.npy")
    assert found.shape == (4, 8) and found.dtype == np.float32
    model, tokenizer = BERT.from_pretrained(folder), Tokenizer.from_folder(folder)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer.encode([text], context=40)[0]
        assert len(ids) <= 40
        mean = model.hidden_states(ids).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    for dtype in ("bfloat16", "int8"):
        assert RUN.invoke(app, ["embed", str(folder), "--file", str(lines), "--dtype", dtype]).exit_code == 0
        narrow = np.load(tmp_path / "lines.txt.npy")
        want = BERT.from_pretrained(folder, dtype=dtype).embed(tokenizer.encode(texts, context=40))
        np.testing.assert_array_equal(narrow, want)
        assert 0 < np.abs(narrow - found).max() < 0.05
    out = tmp_path / "long.npy"
    result = RUN.invoke(
        app, ["embed", str(folder), "--out", str(out), "--no-normalize", "--batch", "1"], input="A class.\n"
    )
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(np.load(out)[0] / np.linalg.norm(np.load(out)[0]), found[0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "content", "words"),
    [
        ([], b"", "has no lines"),
        ([], b"fine\n\xff\n", "line 2 of"),
        (["--context", "41"], b"a\n", "--context must be between 3 and the model's 40, got 41"),
        (["--batch", "0"], b"a\n", "batch_size must be at least 1"),
    ],
)
def test_bad_embed(folder: Path, tmp_path: Path, options: list[str], content: bytes, words: str) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_bytes(content)
    result = RUN.invoke(app, ["embed", str(folder), "--file", str(lines), *options])
    assert result.exit_code == 2
    assert words in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["lines.txt"]


def test_fill(folder: Path) -> None:
    text = "The class [MASK] a [MASK]."
    result = RUN.invoke(app, ["fill", str(folder), text, "--top", "3"])
    assert result.exit_code == 0, result.output
    model, tokenizer = BERT.from_pretrained(folder), Tokenizer.from_folder(folder)
    ids = tokenizer.encode([text])[0]
    logits = model.infer(ids)[np.flatnonzero(ids == tokenizer.id_of("mask"))]
    lines = [line for line in result.output.splitlines() if line.strip() and not line.startswith("mask")]
    assert len(lines) == 6
    for row, some in zip(logits, (lines[:3], lines[3:]), strict=True):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        for index, line in zip(np.argsort(-row)[:3], some, strict=True):
            assert line.split()[0] == f"{p[index]:.2%}"
            assert tokenizer.decode([index], special=True) in line
    result = RUN.invoke(app, ["fill", str(folder), "no mask here"])
    assert result.exit_code == 2 and "must have the mask [MASK]" in result.output


def test_fill_needs_the_head(tmp_path: Path, folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.save(tmp_path)
    BERT(BERTConfig(vocab_size=len(tokenizer), head=None, **SMALL)).save_pretrained(tmp_path)
    result = RUN.invoke(app, ["fill", str(tmp_path), "a [MASK]"])
    assert result.exit_code == 2 and "no head for masked words" in result.output
    BERT(BERTConfig(vocab_size=5, head=None, **SMALL)).save_pretrained(tmp_path)
    result = RUN.invoke(app, ["fill", str(tmp_path), "a [MASK]"])
    assert result.exit_code == 2 and "do not belong together" in result.output
    GPT(GPTConfig(**SMALL)).save_pretrained(tmp_path)
    result = RUN.invoke(app, ["embed", str(tmp_path), "--out", "x.npy"], input="a\n")
    assert result.exit_code == 2 and "holds a GPT, which continues text" in result.output


def test_roberta_with_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train_byte_pairs(_text(), 300)
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    text = "Ünï code\tand 漢字, exactly"
    ids = again.encode([text])[0]
    assert again.decode(ids) == text
    assert ids[0] == again.id_of("cls") == 0 and ids[-1] == again.id_of("sep") == 2
    assert (again.id_of("pad"), again.id_of("mask"), len(again)) == (1, 4, 300)
    RoBERTa(RoBERTaConfig(vocab_size=300, **SMALL), rng=0).save_pretrained(tmp_path)
    result = RUN.invoke(app, ["fill", str(tmp_path), "A<mask>."])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 5
    assert isinstance(from_pretrained(tmp_path), RoBERTa)
    # A Longformer of it has the same tokenizer; the window spans the text, so the words are the same.
    Longformer.from_roberta(from_pretrained(tmp_path), context=90, window=90).save_pretrained(tmp_path)
    assert RUN.invoke(app, ["fill", str(tmp_path), "A<mask>."]).output == result.output
    lines = tmp_path / "lines.txt"
    lines.write_text("for each class " * 40)
    result = RUN.invoke(app, ["embed", str(tmp_path), "--file", str(lines)])
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "lines.txt.npy").shape == (1, 8)


def test_tokenizer(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    ids, types = tokenizer.encode_pairs([("the class", "is a type of object " * 9)], context=20)
    assert len(ids[0]) == len(types[0]) == 20
    assert (ids[0] == tokenizer.id_of("sep")).sum() == 2
    assert types[0][0] == 0 and types[0][-1] == 1
    assert len(tokenizer.encode(["the " * 99])[0]) == 101  # nothing is cut unless one asks
    assert tokenizer.token(int(tokenizer.id_of("mask"))) == "[MASK]"
    with pytest.raises(ValueError, match="tokens are numbered below"):
        tokenizer.token(300)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match="size must be at least"):
        Tokenizer.train_byte_pairs([], 260)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "special_tokens_map.json").write_text("[]")
    with pytest.raises(ValueError, match="not a table of special tokens"):
        Tokenizer.from_folder(tmp_path)
    roles = {"mask_token": {"content": "[SEP]"}, "cls_token": "[none]"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    other = Tokenizer.from_folder(tmp_path)
    assert other.id_of("mask") == other.id_of("sep") and other.special["cls"] == "[CLS]"


def test_any_model(folder: Path, tmp_path: Path) -> None:
    assert isinstance(from_pretrained(folder), BERT)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match=r"model_type must be one of bart, bert, gpt2.*got 't5'"):
        from_pretrained(tmp_path)
