"""The command, as people use it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numformer.cli import app
from numformer.data import to_text
from numformer.models import GPT, GPTConfig, TransformerXL, TransformerXLConfig
from numformer.optim import AdamW, Average, decay_groups
from numformer.train import load_checkpoint
from typer.testing import CliRunner

TINY = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch", "4"]
RUN = CliRunner()


def _call(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "numformer", *arguments], capture_output=True, text=True, timeout=60, **options
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 40, encoding="utf-8")
    return path


def test_help_names_the_commands() -> None:
    result = RUN.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("train", "generate", "translate", "score", "info"):
        assert command in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, numformer.cli.app\n"
        "heavy = 'rich safetensors matplotlib tokenizers sacrebleu numformer.models numformer.train'.split()\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_train_then_generate(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    result = _call("train", str(text), "--out", str(out), "--steps", "12", "--eval-every", "5", *TINY)
    assert result.returncode == 0, result.stderr
    for words in ("validation loss", "A sample", "train loss", "step 12/12"):
        assert words in result.stdout
    for name in ("model.safetensors", "config.json", "checkpoint.safetensors", "log.csv"):
        assert f"wrote {out / name}" in result.stdout
        assert (out / name).stat().st_size > 0
    texts = [
        _call("generate", str(out), "--prompt", "To be", "--max-new-tokens", "20", "--seed", seed).stdout
        for seed in ("1", "1", "2")
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("To be")


def test_default_text_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        result = RUN.invoke(app, ["train", "--steps", "1", "--quiet", *TINY[:-2], "--batch", "2", "--context", "128"])
        assert result.exit_code == 0, result.output
        assert "reference manual" in result.output
        assert (tmp_path / "runs" / f"gpt-python-{number}" / "model.safetensors").is_file()


@pytest.mark.parametrize("option", [["--batch", "0"], ["--batch-gradient-descent"]])
def test_batch_gradient_descent(tmp_path: Path, text: Path, option: list[str]) -> None:
    result = RUN.invoke(
        app, ["train", str(text), "--out", str(tmp_path / "run"), "--steps", "2", "--quiet", *TINY, *option]
    )
    assert result.exit_code == 0, result.output
    last = (tmp_path / "run" / "log.csv").read_text().splitlines()[-1].split(",")
    size = text.stat().st_size
    train = size - round(0.1 * size)
    assert int(last[5]) == 2 * (train - 1), "each step is over every target"


def test_resume(tmp_path: Path, text: Path) -> None:
    common = ["train", str(text), "--out", str(tmp_path / "run"), "--quiet", *TINY]
    assert RUN.invoke(app, [*common, "--steps", "3"]).exit_code == 0
    result = RUN.invoke(app, [*common, "--steps", "5", "--resume"])
    assert result.exit_code == 0, result.output
    steps = [line.split(",")[0] for line in (tmp_path / "run" / "log.csv").read_text().splitlines()]
    assert steps == ["step", "1", "3", "5"]
    over = RUN.invoke(app, [*common, "--steps", "5", "--resume"])
    assert over.exit_code == 2
    assert "steps must be above the 5" in over.stderr
    wrong = RUN.invoke(app, [*common, "--steps", "5", "--resume", "--width", "8"])
    assert wrong.exit_code == 2
    assert "must have shape" in wrong.stderr


def test_what_is_kept_and_averaged(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    options = ["--steps", "12", "--eval-every", "3", "--keep", "2", "--keep-best", "--ema", "0.9"]
    result = RUN.invoke(app, ["train", str(text), "--out", str(out), "--quiet", *options, *TINY])
    assert result.exit_code == 0, result.output
    names = ["checkpoint-00000009.safetensors", "checkpoint-best.safetensors", "checkpoint.safetensors"]
    assert sorted(path.name for path in out.glob("checkpoint*")) == names
    model = GPT.from_pretrained(out)
    written = {name: value.copy() for name, value in model.state_dict().items()}
    average = Average(model.parameters(), decay=0.9)
    load_checkpoint(
        out / "checkpoint.safetensors", model, AdamW(decay_groups(model.parameters(), 0.1)), average=average
    )
    assert any((written[name] != value).any() for name, value in model.state_dict().items()), "the weights trained on"
    with average.applied():
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(written[name], value)


def test_patience_ends_a_run(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    options = ["--steps", "50", "--eval-every", "1", "--patience", "2", "--lr", "1e-30"]  # nothing ever moves
    result = RUN.invoke(app, ["train", str(text), "--out", str(out), "--quiet", *options, *TINY])
    assert result.exit_code == 0, result.output
    steps = [line.split(",")[0] for line in (out / "log.csv").read_text().splitlines()]
    assert steps == ["step", "1", "2", "3"]


@pytest.mark.parametrize(
    ("nan", "words"), [("stop", "at step 2"), ("skip", "10 steps before it were skipped at step 12")]
)
def test_steps_that_are_not_finite(tmp_path: Path, text: Path, nan: str, words: str) -> None:
    options = ["--out", str(tmp_path / "run"), "--quiet", "--steps", "50", "--lr", "1e38", "--nan", nan]
    result = RUN.invoke(app, ["train", str(text), *options, *TINY])
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt(tmp_path: Path, text: Path, number: signal.Signals, code: int) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "numformer", "train", str(text), "--out", str(out), "--steps", "1000000", *TINY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "interrupted after step" in errors
    assert "Traceback" not in errors
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".png") == [
        "checkpoint.safetensors",
        "config.json",
        "log.csv",
        "model.safetensors",
    ]
    result = _call("generate", str(out), "--max-new-tokens", "3")
    assert result.returncode == 0, result.stderr


def _files(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.txt"], "nowhere.txt"),
        (["empty.txt"], "empty.txt: there is no text"),
        (["latin.txt"], "latin.txt: not UTF-8"),
        (["short.txt"], "too few for a context of"),
        (["."], "directory"),
        (["text.txt", "--heads", "3"], "heads must divide width"),
        (["text.txt", "--layers", "0"], "layers must be at least 1"),
        (["text.txt", "--steps", "0"], "steps must be at least 1"),
        (["text.txt", "--batch", "-1"], "batch_size must be at least 1"),
        (["text.txt", "--lr", "nan"], "lr must be"),
        (["text.txt", "--dropout", "1.5"], "dropout must be"),
        (["text.txt", "--seed", "-1"], "seed"),
        (["text.txt", "--threads", "0"], "threads"),
        (["text.txt", "--keep", "0"], "keep must be at least 1"),
        (["text.txt", "--patience", "0"], "patience must be at least 1"),
        (["text.txt", "--ema", "1.5"], "decay"),
        (["text.txt", "--nan", "hope"], "hope"),
        (["text.txt", "--resume"], "--resume needs --out"),
        (["text.txt", "--resume", "--out", "none"], "no such file"),
        (["text.txt", "--model", "elephant"], "elephant"),
        (["text.txt", "--dtype", "int8"], "int8"),
        (["text.txt", "--out", "short.txt/run"], "short.txt"),
    ],
)
def test_mistakes_in_train(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "short.txt").write_text("short")
    monkeypatch.chdir(tmp_path)
    before = _files(tmp_path)
    result = RUN.invoke(app, ["train", *TINY, "--steps", "1", *arguments])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert _files(tmp_path) == before, "nothing half-written"


def test_mistakes_in_generate(tmp_path: Path) -> None:
    GPT(GPTConfig(context=8, layers=1, heads=1, width=4), rng=0).save_pretrained(tmp_path / "bytes")
    GPT(GPTConfig(vocab_size=9, context=8, layers=1, heads=1, width=4), rng=0).save_pretrained(tmp_path / "other")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((tmp_path / "bytes" / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes((tmp_path / "bytes" / "model.safetensors").read_bytes()[:-3])
    for arguments, words in (
        (["nowhere"], "no such folder"),
        ([str(tmp_path)], "config.json"),
        ([str(broken)], "cut short"),
        ([str(tmp_path / "other")], "byte-level"),
        ([str(tmp_path / "bytes"), "--temperature", "-1"], "temperature"),
        ([str(tmp_path / "bytes"), "--top-k", "0"], "top_k"),
        ([str(tmp_path / "bytes"), "--prompt", ""], "prompt"),
        ([str(tmp_path / "bytes"), "--max-new-tokens", "-2"], "max_new_tokens"),
    ):
        result = RUN.invoke(app, ["generate", *arguments])
        assert result.exit_code == 2, arguments
        assert words in result.stderr


@pytest.mark.parametrize("model", ["gpt", "transformer-xl"])
def test_weights_in_fewer_bits(tmp_path: Path, text: Path, model: str) -> None:
    """The commands answer with the model that from_pretrained reads in that dtype, which is not that of the file."""
    sizes: dict[str, Any] = {"context": 16, "layers": 1, "heads": 2, "width": 16}
    made = GPT(GPTConfig(**sizes), rng=0) if model == "gpt" else TransformerXL(TransformerXLConfig(**sizes), rng=0)
    for parameter in made.parameters():
        parameter.value = parameter.value * np.float32(5)  # so that tokens differ in probability
    made.save_pretrained(tmp_path)
    losses = {}
    for dtype in ("float32", "float64", "bfloat16", "int8"):
        options = ["--dtype", dtype]
        result = RUN.invoke(app, ["generate", str(tmp_path), "--temperature", "0", "--max-new-tokens", "9", *options])
        assert result.exit_code == 0, result.output
        want = type(made).from_pretrained(tmp_path, dtype=dtype).generate(np.array([10]), 9, temperature=0)
        assert result.stdout == to_text(want) + "\n"
        result = RUN.invoke(app, ["score", str(tmp_path), str(text), *options])
        assert result.exit_code == 0, result.output
        losses[dtype] = float(result.output.split("loss ")[1].split()[0])
    plain = RUN.invoke(app, ["score", str(tmp_path), str(text)]).output
    assert float(plain.split("loss ")[1].split()[0]) == losses["float32"] == pytest.approx(losses["float64"], abs=2e-4)
    for dtype in ("bfloat16", "int8"):
        assert 0 < abs(losses[dtype] - losses["float32"]) < 0.05 * losses["float32"], losses
    result = RUN.invoke(app, ["generate", str(tmp_path), "--dtype", "float16"])
    assert result.exit_code == 2 and "--dtype" in result.output


def test_info() -> None:
    result = RUN.invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    import numformer as nf

    assert str(nf.info()["isa"]) in result.output


def test_transformer_xl(tmp_path: Path, text: Path) -> None:
    """Trained, resumed to the same bits, continued and scored with any memory."""
    common = ["--model", "transformer-xl", "--memory", "24", "--eval-every", "4", "--quiet", *TINY]
    run = ["train", str(text), "--steps", "12", *common]
    result = RUN.invoke(app, [*run, "--out", str(tmp_path / "one")])
    assert result.exit_code == 0, result.output
    assert "transformer-xl: " in result.output
    assert RUN.invoke(app, ["generate", str(tmp_path / "one"), "--max-new-tokens", "40"]).exit_code == 0
    again = tmp_path / "again"
    for more in (["--minutes", "0.00001"], ["--resume"]):  # it stops after one step
        result = RUN.invoke(app, [*run, "--out", str(again), *more])
        assert result.exit_code == 0, result.output
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "one" / "model.safetensors").read_bytes()
    said = {
        memory: RUN.invoke(app, ["score", str(again), str(text), *memory]).output
        for memory in ((), ("--memory", "24"), ("--memory", "0"))
    }
    assert said[()] == said["--memory", "24"] != said["--memory", "0"]
    assert "perplexity" in said["--memory", "0"]
    assert "segments of 16 with a memory of 24" in said[()]


def test_memory_is_for_transformer_xl(tmp_path: Path, text: Path) -> None:
    result = RUN.invoke(app, ["train", str(text), "--memory", "8", *TINY])
    assert result.exit_code == 2
    assert "--memory is for --model transformer-xl" in result.output
    GPT(GPTConfig(context=16, layers=1, heads=2, width=8)).save_pretrained(tmp_path / "gpt")
    result = RUN.invoke(app, ["score", str(tmp_path / "gpt"), str(text), "--memory", "8"])
    assert result.exit_code == 2
    assert "--memory is for a transformer-xl" in result.output
    result = RUN.invoke(app, ["train", str(text), "--model", "transformer-xl", *TINY[:-1], "0"])
    assert result.exit_code == 2
    assert "batch gradient descent" in result.output
