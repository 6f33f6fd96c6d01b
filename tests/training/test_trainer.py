"""The Trainer: gradients of whole data sets, checkpoints, what happens when things go wrong."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numformer.data import Windows, to_tokens
from numformer.models import GPT, GPTConfig
from numformer.optim import SGD, AdamW, GradientDescent
from numformer.train import Trainer, load_checkpoint, save_checkpoint

TEXT = to_tokens("the quick brown fox jumps over the lazy dog. " * 12)[:503]


def _model(**options: Any) -> GPT:
    return GPT(GPTConfig(**({"context": 16, "layers": 1, "heads": 2, "width": 8} | options)), rng=0)


def _trainer(model: GPT, optimizer: Any = None, **options: Any) -> Trainer:
    optimizer = optimizer or AdamW(model.parameters(), lr=0.01)
    settings: dict[str, Any] = {"batch_size": 4, "steps": 3, "progress": False}
    return Trainer(model, optimizer, Windows(TEXT, 16), **(settings | options))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("micro", [1, 3, 5, 32, None])
def test_batch_gradient_descent_is_the_gradient_of_the_whole(micro: int | None, dropout: float) -> None:
    """One step of plain descent moves by the gradient; that of all samples at once is the reference."""
    from numformer.nn import Context

    model = _model(dtype="float64", dropout=dropout)
    windows = Windows(TEXT, 16)
    assert len(windows) == 32
    assert (windows.samples(31, 32)[1] == -100).any(), "the last window is partial"
    loss, backward = model.loss(windows.samples(0, 32), ctx=Context(seed=9, step=0))
    backward()
    expected = [p.value - 0.5 * p.grad for p in model.parameters()]
    model.zero_grad()
    trainer = _trainer(
        model, GradientDescent(model.parameters(), lr=0.5), batch_size=None, micro_batch=micro, steps=1, seed=9
    )
    history = trainer.run()
    np.testing.assert_allclose(history[0]["loss"], loss, rtol=1e-12)
    assert history[0]["tokens"] == 502
    for parameter, value in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.value, value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_change_nothing(micro: int) -> None:
    whole, pieces = (_model(dtype="float64", dropout=0.2) for _ in range(2))
    _trainer(whole).run()
    _trainer(pieces, micro_batch=micro).run()
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-9, atol=1e-12)


def test_checkpointed_activations_change_nothing() -> None:
    plain, recomputed = (_model(dropout=0.2) for _ in range(2))
    _trainer(plain, micro_batch=2).run()
    _trainer(recomputed, micro_batch=2, checkpoint_activations=True).run()
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


def test_memory_of_a_batch_is_that_of_a_micro_batch() -> None:
    sizes: list[int] = []
    model = _model()
    loss = model.loss

    def spy(batch: Any, **options: Any) -> Any:
        sizes.append(len(batch[0]))
        return loss(batch, **options)

    model.loss = spy  # type: ignore[method-assign]
    _trainer(model, batch_size=None, micro_batch=5, steps=1).run()
    assert sizes == [5, 5, 5, 5, 5, 5, 2]


def test_training_learns(tmp_path: Path) -> None:
    model = _model(width=16)
    trainer = _trainer(
        model, steps=80, batch_size=8, validation=Windows(TEXT, 16), eval_every=40, log_every=20, out_dir=tmp_path
    )
    before = trainer.evaluate()
    history = trainer.run()
    assert before is not None
    assert abs(before - np.log(256)) < 0.1
    assert history[-1]["validation_loss"] < before - 2.0
    assert [row["step"] for row in history] == [1, 20, 40, 60, 80]
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in history]
    assert rows[0]["validation_loss"] == ""
    assert float(rows[-1]["validation_loss"]) == history[-1]["validation_loss"]
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_evaluation_is_the_mean_over_targets() -> None:
    model = _model(dtype="float64")
    windows = Windows(TEXT, 16)
    trainer = _trainer(model, validation=windows, micro_batch=5)
    np.testing.assert_allclose(trainer.evaluate(), model.infer_loss(windows.samples(0, 32)), rtol=1e-12)


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    one = _model(dropout=0.1)
    _trainer(one, steps=6, out_dir=tmp_path / "one", log_every=1).run()
    two = _model(dropout=0.1)
    _trainer(two, steps=3, out_dir=tmp_path / "two", log_every=1).run()
    three = _model(dropout=0.1)
    for parameter in three.parameters():
        parameter.value[...] = 0
    trainer = _trainer(three, steps=6, out_dir=tmp_path / "two", log_every=1)
    assert trainer.resume() == 3
    history = trainer.run()
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(one.parameters(), three.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model = _model()
    optimizer = AdamW(model.parameters())
    save_checkpoint(path, model, optimizer, {"step": 7})
    assert load_checkpoint(path, model, optimizer)["step"] == 7
    other = _model(layers=2)
    before = other.state_dict()["transformer.wte.weight"].copy()
    with pytest.raises(ValueError, match=r"c\.safetensors.*missing transformer\.h\.1"):
        load_checkpoint(path, other, AdamW(other.parameters()))
    np.testing.assert_array_equal(other.state_dict()["transformer.wte.weight"], before)
    with pytest.raises(ValueError, match="checkpoint is of AdamW, and the optimizer is SGD"):
        load_checkpoint(path, model, SGD(model.parameters()))
    whole = path.read_bytes()
    for size in (0, 7, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged or cut short"):
            load_checkpoint(path, model, optimizer)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "model.safetensors", model, optimizer)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere", model, optimizer)


def test_failing_write_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    model = _model()
    optimizer = AdamW(model.parameters())
    save_checkpoint(path, model, optimizer, {"step": 1})
    whole = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, model, optimizer, {"step": 2})
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("clip", [None, 1.0])
def test_nan_stops_with_the_last_checkpoint_untouched(tmp_path: Path, clip: float | None) -> None:
    model = _model()
    optimizer = AdamW(model.parameters(), clip_norm=clip)
    trainer = _trainer(model, optimizer, steps=2, out_dir=tmp_path)
    trainer.run()
    whole = (tmp_path / "checkpoint.safetensors").read_bytes()
    model.tokens.weight.value[:] = np.nan
    trainer.steps = 4
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at step 3.*last checkpoint is .*checkpoint\.safetensors"
    ):
        trainer.run()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == whole


def test_nan_weights_are_not_saved(tmp_path: Path) -> None:
    model = _model()
    trainer = _trainer(model, GradientDescent(model.parameters(), lr=1e300), steps=1, out_dir=tmp_path)
    with pytest.raises(FloatingPointError, match="a weight is not a finite number"):
        trainer.run()
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("batch_size", [4, None])
def test_interrupt_ends_the_step_and_saves(tmp_path: Path, batch_size: int | None) -> None:
    model = _model()
    loss, calls = model.loss, []

    def interrupted(batch: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(batch, **options)

    model.loss = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    trainer = _trainer(model, steps=1000, batch_size=batch_size, micro_batch=4 if batch_size else 8, out_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    step = (
        9 if batch_size else 2
    )  # 32 samples in micro-batches of 8: the ninth call is the first of step 3, which is given up
    assert trainer.step == step
    again = _model()
    assert load_checkpoint(tmp_path / "checkpoint.safetensors", again, AdamW(again.parameters()))["step"] == step
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


def test_metrics_and_the_best_weights(tmp_path: Path) -> None:
    """The best evaluation is told from the others, also after a resumption; the picture has the metric too."""
    values = iter([3.0, 5.0, 4.0, 4.5, 6.0])
    best: list[int] = []

    def trainer(steps: int) -> Trainer:
        made = _trainer(
            _model(),
            steps=steps,
            eval_every=2,
            log_every=3,
            out_dir=tmp_path,
            validation=Windows(TEXT, 16),
            metrics={"bleu": lambda: next(values)},
            best="bleu",
            on_best=lambda: best.append(made.step),
        )
        return made

    first = trainer(6)
    history = first.run()
    assert [(row["step"], row.get("bleu")) for row in history] == [(1, None), (2, 3.0), (3, None), (4, 5.0), (6, 4.0)]
    assert best == [2, 4]
    second = trainer(10)
    second.resume()
    assert second.best_value == 5.0
    second.run()
    assert best == [2, 4, 10]
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["bleu"] for row in rows] == ["", "3.0", "", "5.0", "4.0", "4.5", "", "6.0"]


def test_the_best_loss_is_the_lowest(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, best = iter([3.0, 2.0, 2.5]), []
    trainer = _trainer(_model(), steps=3, eval_every=1, on_best=lambda: best.append(trainer.step))
    monkeypatch.setattr(trainer, "evaluate", lambda: next(losses))
    trainer.run()
    assert best == [1, 2]
    assert trainer.best_value == 2.0


def test_the_clock_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 7))
    monkeypatch.setattr("numformer.train.trainer.time.monotonic", lambda: float(next(now)))
    trainer = _trainer(_model(), steps=None, max_seconds=100, out_dir=tmp_path, validation=Windows(TEXT, 16))
    history = trainer.run()
    assert 2 <= trainer.step <= 15, "a few looks at the clock each step"
    assert history[-1]["step"] == trainer.step
    assert history[-1]["validation_loss"] is not None
    assert load_checkpoint(tmp_path / "checkpoint.safetensors", trainer.model, trainer.optimizer)["steps"] is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": None}, ValueError, "steps or max_seconds"),
        ({"max_seconds": 0.0}, ValueError, "max_seconds"),
        ({"best": "bleu"}, ValueError, "best"),
        ({"metrics": {"loss": lambda: 0.0}}, ValueError, "'loss'"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"micro_batch": -1}, ValueError, "micro_batch"),
        ({"eval_every": -1}, ValueError, "eval_every"),
        ({"seed": -1}, ValueError, "seed"),
        ({"steps": 1.5}, TypeError, "steps"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _trainer(_model(), **options)
