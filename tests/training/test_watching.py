"""What a run shows and keeps of itself: bars, speeds, samples, TensorBoard, pictures of runs, rehearsals."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numformer as nf
import numpy as np
import pytest
from numformer.cli import app
from numformer.data import Windows, to_tokens
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW
from numformer.profiling import ceilings
from numformer.train import Trainer, plot, record, speed
from numformer.train.progress import Bar, Lines, Silent
from typer.testing import CliRunner

TEXT = to_tokens("the quick brown fox jumps over the lazy dog. " * 12)[:503]
TINY = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch", "4"]
RUN = CliRunner()


def _trainer(**options: Any) -> Trainer:
    model = GPT(GPTConfig(context=16, layers=1, heads=2, width=8), rng=0)
    settings: dict[str, Any] = {"batch_size": 4, "steps": 6, "progress": False, "log_every": 1}
    return Trainer(model, AdamW(model.parameters(), lr=0.01), Windows(TEXT, 16), **(settings | options))


class Heard(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.said: list[tuple[int, str]] = []

    def step(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def say(self, step: int, text: str) -> None:
        self.said.append((step, text))


def test_progress_is_told_speed_and_share() -> None:
    heard = Heard()
    _trainer(progress=heard).run()
    assert [row["step"] for row in heard.rows] == [1, 2, 3, 4, 5, 6]
    assert heard.rows[0]["share"] is None, "the second step is counted"
    for row in heard.rows[1:]:
        assert 0 < row["share"] < 1 and row["tokens_per_second"] > 0 and row["lr"] == 0.01
    assert heard.rows[-1]["seconds_left"] == 0


def test_share_is_that_of_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of a known size on a machine of a known speed."""
    monkeypatch.setattr(ceilings, "arithmetic", lambda dtype: {"float32": 1e9, "float64": 2e9}[dtype])
    a = np.ones((64, 64), np.float32)
    result, least = speed.counted(lambda: (nf.matmul(a, a), nf.matmul(a.astype(np.float64), a.astype(np.float64))))
    np.testing.assert_array_equal(result[0], 64)
    np.testing.assert_allclose(least, 2 * 64**3 * (1e-9 + 0.5e-9))
    with nf.profile() as p:
        assert speed.counted(lambda: 5) == (5, None), "a profile that is on is left alone"
        nf.matmul(a, a)
    assert len(p.records()) == 1
    with pytest.raises(ZeroDivisionError):
        speed.counted(lambda: 1 // 0)
    with nf.profile():
        pass


def test_a_step_that_is_counted_is_the_same_step() -> None:
    runs = [_trainer(progress=progress) for progress in (False, Heard())]
    for trainer in runs:
        trainer.run()
    for a, b in zip(*(trainer.model.parameters() for trainer in runs), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


def test_lines_and_bar_say_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    row = {"step": 3, "loss": 1.5, "lr": 0.00123, "tokens_per_second": 12345.6, "share": 0.56, "seconds_left": 75.0}
    for shown in (Lines(), Bar()):
        shown.begin(5, 0)
        shown.step(row | {"validation_loss": 1.25})
        shown.say(3, "[bold]a fox\n :smile:")
        shown.step(row | {"step": 5, "share": None})
        shown.end()
        said = capsys.readouterr().out
        for words in (
            "loss 1.5000",
            "lr 1.23e-03",
            "12,346 tokens/s",
            "1:15 left",
            "validation 1.2500",
            "sample after step 3",
        ):
            assert words in said, (shown, words)
        assert "[bold]a fox" in said and ":smile:" in said
        assert "56% of peak" in said or isinstance(shown, Bar), "a bar is drawn twice a second at most"


def test_samples_along_the_way(tmp_path: Path) -> None:
    heard = Heard()
    sample = lambda step: f"é {step}\nx"
    _trainer(steps=5, sample=sample, sample_every=2, out_dir=tmp_path, progress=heard).run()
    path = tmp_path / record.SAMPLES
    assert heard.said == [(2, "é 2\nx"), (4, "é 4\nx")]
    assert record.read_samples(path) == [{"step": s, "text": t} for s, t in heard.said]
    with path.open("a") as file:
        file.write('{"step": 6, "text": "of a run that was killed"}\n{"step": 8, "te')
    again = _trainer(steps=7, sample=sample, sample_every=2, out_dir=tmp_path)
    again.resume()
    again.run()
    assert [one["step"] for one in record.read_samples(path)] == [2, 4, 6]
    assert record.read_samples(path)[2]["text"] == "é 6\nx"
    _trainer(steps=1, out_dir=tmp_path).run()
    assert record.read_samples(path) == [], "another run"
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"samples\.jsonl: not the samples"):
        record.read_samples(path)
    for options, words in [({"sample_every": -1}, "sample_every must be"), ({"sample_every": 1}, "needs sample")]:
        with pytest.raises(ValueError, match=words):
            _trainer(**options)


def test_tensorboard_reads_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def found() -> Any:
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return events

    options: dict[str, Any] = {
        "out_dir": tmp_path,
        "tensorboard": True,
        "validation": Windows(TEXT, 16),
        "eval_every": 2,
    }
    options |= {"sample": lambda step: f"text {step}", "sample_every": 3}
    history = _trainer(**options, steps=4).run()
    events = found()
    assert {"loss", "validation_loss", "lr", "tokens", "seconds"} <= set(events.Tags()["scalars"])
    for name in ("loss", "validation_loss", "lr"):
        rows = [(row["step"], row[name]) for row in history if row[name] is not None]
        assert [one.step for one in events.Scalars(name)] == [step for step, _ in rows]
        np.testing.assert_allclose([one.value for one in events.Scalars(name)], [v for _, v in rows], rtol=1e-6)
    (text,) = events.Tensors("sample/text_summary")
    assert text.step == 3 and text.tensor_proto.string_val[0] == b"text 3"
    # A run that is resumed at an earlier step takes the place of what was written after it.
    (tmp_path / "checkpoint.safetensors").unlink()
    (tmp_path / "checkpoint-00000002.safetensors").rename(tmp_path / "checkpoint.safetensors")
    again = _trainer(**options)
    assert again.resume() == 2
    history = again.run()
    assert [one.step for one in found().Scalars("loss")] == [1, 2, 3, 4, 5, 6] == [row["step"] for row in history]
    with pytest.raises(ValueError, match="tensorboard needs out_dir"):
        _trainer(tensorboard=True)


def test_without_tensorboard_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'numformer\[tensorboard\]'"):
        _trainer(tensorboard=True, out_dir=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        held = {"validation": Windows(TEXT, 16), "metrics": {"size": lambda: 2.0}} if seed else {}
        _trainer(out_dir=folder, seed=seed, eval_every=2, **held).run()
    return folders


def test_runs_are_compared(runs: list[Path], tmp_path: Path) -> None:
    logs = {folder.name: plot.read_run(folder) for folder in runs}
    lines = plot.table(logs)
    assert [line.split()[0] for line in lines] == ["run", "one", "two"]
    assert lines[1].split()[3:6] == ["-", "-", "-"]
    held = [row["validation_loss"] for row in logs["two"] if row["validation_loss"] is not None]
    assert lines[2].split()[3:5] == [f"{held[-1]:.4f}", f"{min(held):.4f}"]
    pytest.importorskip("matplotlib")
    for name, magic in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a", b"\x89PNG")):
        plot.draw(logs, tmp_path / name, x="tokens")
        assert (tmp_path / name).read_bytes().startswith(magic)
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count("<!-- size -->") == 1, "a panel for the metric"
    with pytest.raises(ValueError, match="x must be step, tokens, seconds"):
        plot.draw(logs, tmp_path / "b.png", x="hours")
    with pytest.raises(ValueError, match=r"b\.txt must end like a picture"):
        plot.draw(logs, tmp_path / "b.txt")
    assert plot.names([Path("a/x"), Path("b/x"), Path("c/y")])[2] == "c"  # no folder: a file in one


def test_plot_command(runs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "both.png"
    result = RUN.invoke(app, ["plot", *map(str, runs), "--out", str(out), "--x", "seconds"])
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output and out.stat().st_size > 1000
    assert re.search(r"^two +6 ", result.output, re.MULTILINE)
    for arguments, words in [
        ([str(tmp_path)], "log.csv: no such file"),
        ([str(out)], "not the log of a training run"),
        ([str(runs[0]), str(runs[0])], "a run is named twice"),
    ]:
        result = RUN.invoke(app, ["plot", *arguments, "--out", str(out)])
        assert result.exit_code == 2 and words in result.stderr, result.output


def test_a_rehearsal_says_memory_and_time() -> None:
    trainer = _trainer(steps=100, eval_every=10, validation=Windows(TEXT, 16), ema=0.9)
    found = trainer.dry_run()
    weights = sum(p.value.nbytes for p in trainer.model.parameters())
    assert found.parameters == weights // 4
    assert found.tokens == 64 and found.steps == 100 and found.evaluations == 10
    assert found.seconds > 0 and found.evaluation_seconds > 0
    np.testing.assert_allclose(found.total_seconds, 100 * found.seconds + 10 * found.evaluation_seconds)
    assert found.resident_bytes > 1 << 20
    assert 4 * weights <= found.checkpoint_bytes <= 4 * weights + 1000, "weights, two moments, average"
    assert 0 < found.share < 1  # type: ignore[operator]
    assert math.isinf(_trainer(steps=None, max_seconds=1e9).dry_run().total_seconds) is False
    assert _trainer(steps=1).dry_run().evaluations == 1
    assert _trainer(steps=5, batch_size=None).dry_run().tokens == 502


def test_dry_run_leaves_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 40)
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-m", "numformer", "train", str(text), "--dry-run", "--steps", "1000", *TINY]
    env = {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(nf.__file__).parents[1]),
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    for words in (
        "a step: ",
        "tokens/s",
        "% of this machine's peak",
        "memory: ",
        "of the whole process",
        "an evaluation: ",
    ):
        assert words in done.stdout
    assert re.search(r"in all: about .* for 1,000 steps; nothing was written", done.stdout)
    assert sorted(tmp_path.rglob("*")) == before


def test_options_of_the_command(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 40)
    out = tmp_path / "run"
    arguments = ["--steps", "4", "--sample-every", "2", "--tensorboard", "--out", str(out), *TINY]
    result = RUN.invoke(app, ["train", str(text), *arguments])
    assert result.exit_code == 0, result.output
    assert "-- sample after step 2" in result.output
    assert [json.loads(line)["step"] for line in (out / "samples.jsonl").read_text().splitlines()] == [2, 4]
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_a_transformer_shows_translations(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"a {i}\tb {i}\n" for i in range(40)))
    out = tmp_path / "run"
    tiny = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "32", "--batch", "8", "--vocab", "0"]
    common = ["train", "--model", "transformer", "--pairs", str(pairs), "--out", str(out), *tiny, "--steps", "2"]
    result = RUN.invoke(app, [*common, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "nothing was written" in result.output and not out.exists()
    result = RUN.invoke(app, [*common, "--sample-every", "2", "--quiet"])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "samples.jsonl").read_text())["text"].count("  -> ") == 2
