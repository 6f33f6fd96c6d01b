"""train --model transformer, translate and score, as people use them."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numformer import data
from numformer.cli import app
from numformer.cli.translation import translate
from numformer.models import GPT, GPTConfig, Transformer, TransformerConfig
from typer.testing import CliRunner

RUN = CliRunner()
TINY = ["train", "--model", "transformer", "--layers", "1", "--heads", "2", "--width", "16", "--batch", "8", "--quiet"]
needs_text = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("tokenizers", "sacrebleu")), reason="needs the extra 'text'"
)
WORDS = {"ein": "a", "Hund": "dog", "Mann": "man", "läuft": "runs", "schläft": "sleeps", "und": "and"}


def _lines(count: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(3)
    chosen = [rng.choice(list(WORDS), size=rng.integers(1, 6)) for _ in range(count)]
    return [(" ".join(words), " ".join(WORDS[w] for w in words)) for words in chosen]


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in _lines(60)) + "only one side\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of bytes, as it was born."""
    path = tmp_path / "model"
    config = TransformerConfig(
        vocab_size=259, context=40, encoder_layers=1, decoder_layers=1, heads=2, width=8, dropout=0.0
    )
    Transformer(config, rng=0).save_pretrained(path)
    (path / "tokenizer.json").write_text(data.ByteVocabulary().to_json())
    return path


def test_train_on_bytes(tmp_path: Path, tsv: Path) -> None:
    out = tmp_path / "run"
    result = RUN.invoke(
        app, [*TINY, "--pairs", str(tsv), "--vocab", "0", "--out", str(out), "--steps", "5", "--eval-every", "3"]
    )
    assert result.exit_code == 0, result.output
    for words in (
        "1 a side is missing (line 61)",
        "3 of them held out",
        "259 bytes, 57 pairs",
        "validation loss",
        "-> ",
    ):
        assert words in result.output
    for name in ("model.safetensors", "config.json", "tokenizer.json", "checkpoint.safetensors", "log.csv"):
        assert f"wrote {out / name}" in result.output
    if importlib.util.find_spec("matplotlib"):
        assert (out / "attention.png").read_bytes()[:4] == b"\x89PNG"
    assert isinstance(data.load_vocabulary(out), data.ByteVocabulary)
    more = ["--steps", "8", "--resume", "--keep", "3", "--keep-best", "--patience", "9", "--nan", "skip"]
    result = RUN.invoke(app, [*TINY, "--pairs", str(tsv), "--out", str(out), *more])
    assert result.exit_code == 0, result.output
    names = ["checkpoint-00000003.safetensors", "checkpoint-00000005.safetensors", "checkpoint.safetensors"]
    assert set(names) <= {path.name for path in out.glob("checkpoint*")}
    with (out / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "3", "5", "8"]


@needs_text
def test_two_files_subwords_and_bleu(tmp_path: Path) -> None:
    lines, held = _lines(80)[:64], _lines(80)[64:]
    for name, texts in (
        ("a.gz", [a for a, _ in lines]),
        ("b.gz", [b for _, b in lines]),
        ("c", [a for a, _ in held]),
        ("d", [b for _, b in held]),
    ):
        text = "\n".join(texts).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    out = tmp_path / "run"
    files = [f"--{option}={tmp_path / name}" for option, name in (("source", "a.gz"), ("target", "b.gz"))]
    valid = [f"--valid-source={tmp_path / 'c'}", f"--valid-target={tmp_path / 'd'}"]
    more = ["--vocab", "280", "--out", str(out), "--epochs", "20", "--dropout", "0", "--lr", "0.03", "--warmup", "20"]
    result = RUN.invoke(app, [*TINY, *files, *valid, *more, "--norm", "pre"])
    assert result.exit_code == 0, result.output
    assert "validation BLEU" in result.output
    assert "subwords, 64 pairs to train on, 8 batches an epoch" in result.output
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "160"
    assert [row["step"] for row in rows if row["bleu"]] == ["100", "160"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 1
    score = RUN.invoke(app, ["score", str(out), "--source", str(tmp_path / "c"), "--target", str(tmp_path / "d")])
    assert score.exit_code == 0, score.output
    for words in ("16 of 16 pairs", "perplexity", "BLEU = ", "chrF2 = ", "version:"):
        assert words in score.output


def test_translations_keep_the_order_of_the_lines(folder: Path, tmp_path: Path) -> None:
    """Also beside lines that cannot be translated, and whichever lines stand together in a batch."""
    model, vocabulary = Transformer.from_pretrained(folder), data.ByteVocabulary()
    texts = [text for text, _ in _lines(70)]
    alone = [translate(model, vocabulary, vocabulary.encode([text]), beams=1)[0] for text in texts]
    assert translate(model, vocabulary, vocabulary.encode(texts), beams=1) == alone
    content = [texts[0].encode(), b"", b"\xff", texts[1].encode(), b"x" * 40, texts[2].encode()]
    path = tmp_path / "text"
    path.write_bytes(b"\n".join(content))
    for arguments, options in ((["--file", str(path)], {}), ([], {"input": path.read_bytes()})):
        result = RUN.invoke(app, ["translate", str(folder), "--beams", "1", *arguments], **options)
        assert result.exit_code == 0, result.output
        said = [" ".join(text.split("\n")) for text in alone[:3]]
        assert result.stdout == f"{said[0]}\n\n\n{said[1]}\n\n{said[2]}\n"
        assert "left empty: 1 not UTF-8 (line 3)" in result.stderr
        assert "left empty: 1 longer than the model (line 5)" in result.stderr
    for dtype in ("bfloat16", "int8"):
        narrow = Transformer.from_pretrained(folder, dtype=dtype)
        want = translate(narrow, vocabulary, vocabulary.encode(texts[:1]), beams=1)
        result = RUN.invoke(app, ["translate", str(folder), "--beams", "1", "--dtype", dtype], input=texts[0])
        assert result.stdout == " ".join(want[0].split("\n")) + "\n", result.output
    result = RUN.invoke(app, ["translate", str(folder), "--file", str(path), "--on-bad", "error"])
    assert result.exit_code == 2
    assert "the text is refused" in result.stderr
    path.write_bytes(b"")
    assert RUN.invoke(app, ["translate", str(folder), "--file", str(path)]).stdout == ""


def test_score_of_a_gpt(tmp_path: Path) -> None:
    model = GPT(GPTConfig(context=8, layers=1, heads=1, width=4), rng=0)
    model.save_pretrained(tmp_path / "gpt")
    (tmp_path / "text").write_text("to be or not to be")
    result = RUN.invoke(app, ["score", str(tmp_path / "gpt"), str(tmp_path / "text")])
    assert result.exit_code == 0, result.output
    tokens = data.to_tokens("to be or not to be")
    logits = np.concatenate([model.infer(tokens[i : i + 8][None].astype(np.int64))[0] for i in (0, 8, 16)])[:17]
    logits = logits.astype(np.float64)
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(17), tokens[1:]])
    assert f"loss {expected:.3f}" in result.output
    assert "17 bytes" in result.output


def test_interrupt_leaves_a_model_that_translates(tmp_path: Path, tsv: Path) -> None:
    out = tmp_path / "run"
    arguments = [*TINY[:-1], "--pairs", str(tsv), "--vocab", "0", "--out", str(out), "--epochs", "900000"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "numformer", *arguments, "--eval-every", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "numformer translate" in errors
    assert "Traceback" not in errors
    result = RUN.invoke(app, ["translate", str(out), "--beams", "2"], input="ein Hund\n")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--pairs FILE or both --source A and --target B"),
        (["--source", "pairs.tsv"], "--pairs FILE or both"),
        (["--pairs", "pairs.tsv", "--source", "pairs.tsv"], "--pairs FILE or both"),
        (["--pairs", "pairs.tsv", "--valid-source", "pairs.tsv"], "--valid-pairs FILE or both --valid-source"),
        (["--pairs", "nowhere"], "nowhere"),
        (["--pairs", "pairs.tsv", "--on-bad", "error"], "1 a side is missing (line 61); the file is refused"),
        (["--pairs", "one.tsv"], "at least 2 pairs"),
        (["--source", "pairs.tsv", "--target", "one.tsv"], "got 61 in pairs.tsv and 1 in one.tsv"),
        (["--pairs", "pairs.tsv", "--context", "2"], "nothing to use"),
        (["--pairs", "pairs.tsv", "--heads", "3"], "heads must divide width"),
        (["--pairs", "pairs.tsv", "--steps", "3", "--epochs", "1"], "not both"),
        (["--pairs", "pairs.tsv", "--epochs", "0"], "epochs"),
        (["--pairs", "pairs.tsv", "--minutes", "-1"], "max_seconds"),
        (["--pairs", "pairs.tsv", "--warmup", "0"], "warmup"),
        (["--pairs", "pairs.tsv", "--beams", "0"], "beams"),
        (["--pairs", "pairs.tsv", "--seed", "-1"], "seed"),
        (["--pairs", "pairs.tsv", "--label-smoothing", "1"], "label_smoothing"),
        (["--pairs", "pairs.tsv", "--vocab", "100"], "at least 259"),
        (["--pairs", "pairs.tsv", "--resume", "--out", "none"], "no such file"),
        (["pairs.tsv"], "learns from --pairs"),
        (["--pairs", "pairs.tsv", "--model", "gpt"], "--pairs is for --model transformer"),
    ],
)
def test_mistakes_in_train(
    tmp_path: Path, tsv: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    if "100" in arguments:
        pytest.importorskip("tokenizers", reason="needs the extra 'text'")
    (tmp_path / "one.tsv").write_text("eins\tone\n")
    monkeypatch.chdir(tmp_path)
    before = {str(p) for p in tmp_path.rglob("*")}
    result = RUN.invoke(app, [*TINY, *([] if "100" in arguments else ["--vocab", "0"]), *arguments])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert {str(p) for p in tmp_path.rglob("*")} == before, "nothing half-written"


def test_the_wrong_folder(folder: Path, tmp_path: Path) -> None:
    GPT(GPTConfig(context=8, layers=1, heads=1, width=4), rng=0).save_pretrained(tmp_path / "gpt")
    no_vocabulary, other = tmp_path / "a", tmp_path / "b"
    Transformer.from_pretrained(folder).save_pretrained(no_vocabulary)
    config = TransformerConfig(vocab_size=260, context=9, encoder_layers=1, decoder_layers=1, heads=2, width=8)
    Transformer(config, rng=0).save_pretrained(other)
    (other / "tokenizer.json").write_text(data.ByteVocabulary().to_json())
    for arguments, words in (
        (["generate", str(folder)], "holds a transformer, which translates: numformer translate"),
        (["translate", str(tmp_path / "gpt")], "holds a GPT, which continues text: numformer generate"),
        (["translate", str(no_vocabulary)], "tokenizer.json: no such file"),
        (["translate", str(other)], "tokenizer.json has 259 tokens and the model 260"),
        (["translate", str(tmp_path)], "config.json: no such file"),
        (["translate", str(folder), "--beams", "0"], "num_beams"),
        (["score", str(folder), "text"], "is scored on --pairs"),
        (["score", str(folder)], "--pairs FILE or both"),
        (["score", str(tmp_path / "gpt")], "is scored on text"),
        (["score", str(tmp_path / "nowhere")], "no such folder"),
    ):
        result = RUN.invoke(app, arguments, input="ein Hund\n")
        assert result.exit_code == 2, (arguments, result.output)
        assert words in result.stderr
