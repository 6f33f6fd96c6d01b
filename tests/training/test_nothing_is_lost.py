"""Runs that are killed, disks that are full, files that are damaged: what was saved stays, and a resumed run is the one
that was never stopped, to the bit.

NUMFORMER_KILLS=100 kills as often as that; a few times are enough for every day.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numformer import files, optim
from numformer.data import Windows, to_tokens
from numformer.models import GPT, GPTConfig
from numformer.optim import SGD, AdamW, GradientDescent
from numformer.train import Terminated, Trainer, load_checkpoint, save_checkpoint

KILLS = int(os.environ.get("NUMFORMER_KILLS", "5"))
TEXT = to_tokens("the quick brown fox jumps over the lazy dog. " * 12)[:503]

# A translation model with all that a run can have: epochs, dropout, an average of the weights, metrics, best weights.
RUN = """
    import sys
    import numpy as np
    import numformer as nf
    from numformer.data import Pairs
    from numformer.models import Transformer, TransformerConfig
    from numformer.optim import AdamW, decay_groups, inverse_sqrt
    from numformer.train import Trainer

    sys.modules["matplotlib"] = None  # a picture takes longer than the run
    out, threads = sys.argv[1], int(sys.argv[2])
    nf.set_num_threads(threads)
    rng = np.random.default_rng(0)
    pairs = Pairs(*([rng.integers(3, 40, rng.integers(1, 12)) for _ in range(50)] for _ in range(2)), pool=2)
    model = Transformer(TransformerConfig(vocab_size=40, context=16, encoder_layers=1, decoder_layers=1, heads=2, width=16, dropout=0.2), rng=1)
    trainer = Trainer(
        model,
        AdamW(decay_groups(model.parameters(), 0.1), clip_norm=1.0),
        pairs, batch_size=7, micro_batch=4, steps=60, schedule=inverse_sqrt(0.01, warmup=7), validation=pairs, eval_every=3, log_every=2,
        metrics={"size": lambda: float(np.abs(model.parameters()[0].value).sum())}, best="size",
        out_dir=out, seed=5, progress=False, keep=3, keep_best=True, ema=0.9, nan="skip", on_best=lambda: model.save_pretrained(out),
    )
    print("go", flush=True)
    if trainer.checkpoint.is_file():
        try:
            trainer.resume()
        except ValueError as error:
            sys.exit(0 if "steps must be above the 60" in str(error) else str(error))
    try:
        trainer.run()
    except KeyboardInterrupt as error:
        sys.exit(7)
"""  # noqa: E501


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tested elsewhere, and take longer than the runs here."""
    monkeypatch.setattr("numformer.train.log.draw", lambda *_: False)


def _start(out: Path, threads: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(out), str(threads)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _state(out: Path) -> dict[str, Any]:
    """All that a run leaves, but for the clock."""
    found: dict[str, Any] = {}
    for name in ("checkpoint.safetensors", "checkpoint-best.safetensors", "model.safetensors"):
        tensors, metadata = files.read_tensors(out / name)
        found |= {f"{name}/{key}": value.tobytes() for key, value in tensors.items()}
        if "numformer" in metadata:
            notes = json.loads(metadata["numformer"])
            del notes["progress"]["seconds"]
            found[f"{name}/notes"] = notes
    with (out / "log.csv").open(newline="") as file:
        found["log"] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return found


def test_killed_again_and_again(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = tmp_path / "whole"
    process = _start(whole, 1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    expected = _state(whole)
    assert len(expected["log"]) > 30
    seconds = float((whole / "log.csv").read_text().splitlines()[-1].split(",")[6])
    kills = tries = ends = 0
    while kills < KILLS or ends == 0:
        out, over = tmp_path / f"killed-{ends}", False
        while not over:
            # Ctrl-C and SIGTERM now and then.
            number = (signal.SIGTERM, signal.SIGINT)[tries % 2] if tries % 4 == 2 else signal.SIGKILL
            process = _start(out, int(rng.integers(1, 3)))
            try:
                assert process.stdout is not None
                process.stdout.readline()
                if kills < KILLS:
                    try:
                        process.wait(timeout=seconds * float(rng.uniform(0.0, 2.5)) / min(KILLS, 6))
                    except subprocess.TimeoutExpired:
                        process.send_signal(number)
                        kills += number == signal.SIGKILL
                        tries += 1
                _, errors = process.communicate(timeout=120)
            finally:
                process.kill()
            over = process.returncode == 0
            assert over or process.returncode in (-number, 7), errors
        ends += 1
        found = _state(out)
        for name, value in expected.items():
            assert found[name] == value, f"{name} after {kills} kills"
        assert found.keys() == expected.keys()
        left = {path.name for path in out.iterdir()}
        assert left >= {"checkpoint.safetensors", "log.csv"}
    print(f"{kills} kills, {ends} runs came to their end")


def _model(**options: Any) -> GPT:
    return GPT(GPTConfig(**({"context": 16, "layers": 1, "heads": 2, "width": 8} | options)), rng=0)


def _trainer(model: GPT, out: Path, optimizer: Any = None, **options: Any) -> Trainer:
    settings: dict[str, Any] = {"batch_size": 4, "steps": 6, "eval_every": 2, "progress": False, "log_every": 1}
    optimizer = optimizer or AdamW(model.parameters(), lr=0.01)
    return Trainer(model, optimizer, Windows(TEXT, 16), out_dir=out, **(settings | options))


def _equal(one: GPT, two: GPT) -> None:
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    model, calls = _model(), []
    loss = model.loss

    def interrupted(batch: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), number)
        return loss(batch, **options)

    model.loss = interrupted  # type: ignore[method-assign]
    outside = signal.signal(number, signal.default_int_handler)  # one that is ignored, as under nohup, stays so
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            _trainer(model, tmp_path, steps=1000, eval_every=0).run()
        assert isinstance(caught.value, Terminated) == (number != signal.SIGINT)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outside)
    again = _model()
    assert load_checkpoint(tmp_path / "checkpoint.safetensors", again, AdamW(again.parameters()))["step"] == 5
    _equal(model, again)


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    names = lambda: sorted(path.name for path in tmp_path.glob("checkpoint*"))
    _trainer(_model(), tmp_path, keep=3, steps=9).run()
    assert names() == ["checkpoint-00000006.safetensors", "checkpoint-00000008.safetensors", "checkpoint.safetensors"]
    model = _model()
    optimizer = AdamW(model.parameters())
    steps = [load_checkpoint(tmp_path / name, model, optimizer)["step"] for name in names()]
    assert steps == [6, 8, 9]
    _trainer(_model(), tmp_path, keep=3, steps=2).run()
    assert names() == ["checkpoint.safetensors"], "those of a run that was begun anew"
    _trainer(_model(), tmp_path, keep=1, steps=6).run()
    assert names() == ["checkpoint.safetensors"]


def test_the_best_one_is_kept(tmp_path: Path) -> None:
    values = iter([1.0, 3.0, 2.0])
    model = _model()
    _trainer(model, tmp_path, keep_best=True, metrics={"m": lambda: next(values)}, best="m").run()
    assert load_checkpoint(tmp_path / "checkpoint-best.safetensors", model, AdamW(model.parameters()))["step"] == 4


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    whole = _model(dropout=0.1)
    _trainer(whole, tmp_path / "whole", steps=10).run()
    _trainer(_model(dropout=0.1), tmp_path / "run").run()
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    again = _model(dropout=0.1)
    trainer = _trainer(again, tmp_path / "run", steps=10)
    with pytest.warns(UserWarning, match=r"checkpoint\.safetensors: damaged or cut short.*the checkpoint before it"):
        assert trainer.resume() == 4
    trainer.run()
    _equal(whole, again)
    for old in (tmp_path / "run").glob("checkpoint*"):
        old.write_bytes(b"\0" * 100)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match=r"checkpoint-00000008.*damaged"):
        _trainer(again, tmp_path / "run", steps=12).resume()


def test_every_altered_byte_is_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "c.safetensors"
    model = _model(width=2)
    optimizer = SGD(model.parameters())
    save_checkpoint(path, model, optimizer, {"step": 7})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = {*range(0, header, 13), *rng.integers(header, len(whole), 60).tolist(), len(whole) - 1}
    for place in sorted(places):
        altered = bytearray(whole)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"c\.safetensors: damaged"):
            load_checkpoint(path, model, optimizer)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path, model, optimizer)


def _full(_: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _read_only(_: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize(("flush", "words"), [(_full, "No space left"), (_read_only, "Read-only file system")])
def test_a_disk_that_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush: Any, words: str) -> None:
    _trainer(_model(), tmp_path, steps=4).run()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    trainer = _trainer(_model(), tmp_path, steps=8)
    trainer.resume()
    monkeypatch.setattr(trainer, "on_save", lambda: monkeypatch.setattr(files, "_flush", flush))
    with pytest.raises(OSError, match=rf"{words}.*checkpoint\.safetensors") as caught:
        trainer.run()
    assert str(tmp_path) in str(caught.value.filename)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before
    monkeypatch.undo()
    again = _trainer(_model(), tmp_path, steps=8)
    assert again.resume() == 4
    again.run()


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """What a quota does, without a disk to fill: the kernel itself refuses to write on."""
    path = tmp_path / "c.safetensors"
    model = _model(width=32)
    optimizer = SGD(model.parameters())
    save_checkpoint(path, model, optimizer, {"step": 1})
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*c\.safetensors"):
            save_checkpoint(path, model, optimizer, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=r"log\.csv"):
            _trainer(_model(), tmp_path).run()
    finally:
        tmp_path.chmod(0o700)


def test_a_row_that_was_cut_is_written_again(tmp_path: Path) -> None:
    _trainer(_model(), tmp_path, steps=4).run()
    log = tmp_path / "log.csv"
    for cut in (3, 11):
        text = log.read_bytes()
        log.write_bytes(text + b"5,1.2345,,0.01,1.2,3"[:cut])
        trainer = _trainer(_model(), tmp_path, steps=6)
        trainer.resume()
        assert [row["step"] for row in trainer.run()] == [1, 2, 3, 4, 5, 6]
        assert [line.split(",")[0] for line in log.read_text().splitlines()] == ["step", *"123456"]
        _trainer(_model(), tmp_path, steps=4).run()
    log.write_text("a,b\n1,2\n")
    trainer = _trainer(_model(), tmp_path, steps=6)
    trainer.resume()
    with pytest.raises(ValueError, match=r"log\.csv: not the log"):
        trainer.run()


def test_leftovers_of_the_killed_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.safetensors.12345.tmp").write_bytes(b"half")
    _trainer(_model(), tmp_path, steps=1).run()
    assert not list(tmp_path.glob(".*"))


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    _trainer(_model(), tmp_path, seed=1).run()
    with pytest.raises(ValueError, match=r"seed must be 1, that of .*checkpoint\.safetensors, got 2"):
        _trainer(_model(), tmp_path, seed=2, steps=8).resume()


SCHEDULES = {
    "constant": optim.constant(0.01, warmup=3),
    "linear": optim.linear(0.01, steps=8, warmup=3),
    "cosine": optim.cosine(0.01, steps=8, warmup=2, final=0.001),
    "restarts": optim.cosine_restarts(0.01, period=2, factor=2),
    "inverse_sqrt": optim.inverse_sqrt(0.01, warmup=3),
    "warm": optim.warm(lambda step: 0.01 * 0.9**step, 4),
}
OPTIMIZERS = {
    "GradientDescent": lambda p: optim.GradientDescent(p, lr=0.1),
    "SGD": lambda p: optim.SGD(p, momentum=0.9, nesterov=True),
    "Adam": optim.Adam,
    "AdamW": lambda p: optim.AdamW(optim.decay_groups(p, 0.1), clip_norm=0.5),
    "Adagrad": optim.Adagrad,
    "Lion": optim.Lion,
    "Adafactor": optim.Adafactor,
    "RMSprop": lambda p: optim.RMSprop(p, momentum=0.5, centered=True),
}


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [(name, "AdamW") for name in SCHEDULES] + [("cosine", name) for name in OPTIMIZERS if name != "AdamW"],
)
def test_schedules_and_optimizers_go_on(tmp_path: Path, schedule: str, optimizer: str) -> None:
    """Stopped in the middle of a warm-up, too: the same rates, losses and weights as without a stop."""

    def trainer(folder: str, steps: int) -> Trainer:
        model = _model(dropout=0.1)
        made = OPTIMIZERS[optimizer](model.parameters())
        return _trainer(model, tmp_path / folder, made, steps=steps, eval_every=0, schedule=SCHEDULES[schedule])

    whole = trainer("whole", 8)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.run()]
    for stop in (2, 5):
        trainer("run", stop).run() if stop == 2 else None
        again = trainer("run", 8 if stop == 5 else 5)
        again.resume()
        found = again.run()
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in found] == rows
    _equal(whole.model, again.model)  # type: ignore[arg-type]


def _broken_at(model: GPT, *calls: int) -> None:
    """Make the loss NaN at some calls."""
    loss, count = model.loss, iter(range(1, 1000))

    def broken(batch: Any, **options: Any) -> Any:
        value, backward = loss(batch, **options)
        return (float("nan") if next(count) in calls else value), backward

    model.loss = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_with_nan_is_skipped(tmp_path: Path, clip: float | None) -> None:
    """The weights are those of a run that has the other steps only."""
    model = _model()
    _broken_at(model, 2)
    trainer = _trainer(model, tmp_path, AdamW(model.parameters(), lr=0.01, clip_norm=clip), steps=3, nan="skip")
    history = trainer.run()
    assert np.isnan(history[1]["loss"]) and trainer.skipped == 1
    again = _model()
    optimizer = AdamW(again.parameters(), lr=0.01, clip_norm=clip)
    for step in (0, 2):
        _, backward = again.loss(Windows(TEXT, 16).draw(4, seed=0, step=step))
        backward()
        optimizer.step()
    _equal(model, again)
    resumed = _trainer(model, tmp_path, AdamW(model.parameters(), lr=0.01, clip_norm=clip), steps=5, nan="skip")
    resumed.resume()
    assert resumed.skipped == 1
    assert len(resumed.run()) == 5


def test_a_gradient_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    model = _model()
    loss = model.loss

    def spoiled(batch: Any, **options: Any) -> Any:
        value, backward = loss(batch, **options)

        def spoil(share: float) -> None:
            backward(share)
            model.parameters()[0].grad[0, 0] = np.inf

        return value, spoil

    model.loss = spoiled  # type: ignore[method-assign]
    trainer = _trainer(model, tmp_path, GradientDescent(model.parameters(), lr=0.1), nan="skip", steps=2)
    trainer.run()
    assert trainer.skipped == 2
    _equal(model, _model())


def test_steps_are_not_skipped_for_ever(tmp_path: Path) -> None:
    model = _model()
    _broken_at(model, *range(4, 100))
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is nan, and 10 steps before it were skipped at step 14.*last checkpoint is .*safetensors",
    ):
        _trainer(model, tmp_path, steps=100, nan="skip").run()
    again = _model()
    assert load_checkpoint(tmp_path / "checkpoint.safetensors", again, AdamW(again.parameters()))["step"] == 12


def test_patience_ends_a_run(tmp_path: Path) -> None:
    def run(steps: int, values: list[float], resume: bool = False) -> Trainer:
        measured = iter(values)
        trainer = _trainer(
            _model(), tmp_path, steps=steps, metrics={"m": lambda: next(measured)}, best="m", patience=3, eval_every=1
        )
        if resume:
            trainer.resume()
        trainer.run()
        return trainer

    assert run(50, [1.0, 3.0, 2.0, 2.0, 3.0]).step == 5
    assert run(4, [1.0, 3.0, 2.0, 2.0]).step == 4
    assert run(50, [1.0], resume=True).step == 5, "two were waited for before"
    with pytest.raises(ValueError, match="patience needs validation"):
        _trainer(_model(), tmp_path, patience=2)


def test_the_average_is_what_is_evaluated(tmp_path: Path) -> None:
    """It is evaluated and written, trained are the weights; both go on after a stop."""
    windows = Windows(TEXT, 16)
    model, plain = _model(), _model()
    trainer = _trainer(
        model, tmp_path, ema=0.6, validation=windows, on_save=lambda: model.save_pretrained(tmp_path), steps=4
    )
    trainer.run()
    values: list[list[Any]] = []
    _trainer(
        plain,
        tmp_path / "plain",
        eval_every=1,
        steps=4,
        on_save=lambda: values.append([p.value.copy() for p in plain.parameters()]),
    ).run()
    _equal(model, plain)
    averages = values[0]
    for later in values[1:]:
        averages = [0.6 * a + 0.4 * v for a, v in zip(averages, later, strict=True)]
    saved = GPT.from_pretrained(tmp_path)
    for a, b in zip(saved.parameters(), averages, strict=True):
        np.testing.assert_allclose(a.value, b, rtol=1e-5, atol=1e-7)
    assert trainer.history[-1]["validation_loss"] == _trainer(saved, tmp_path, validation=windows).evaluate()
    with pytest.raises(ValueError, match="the checkpoint has an average of the weights, and none is asked for"):
        _trainer(_model(), tmp_path, steps=8).resume()
    with pytest.raises(ValueError, match="the checkpoint has no average of the weights, and one is asked for"):
        _trainer(_model(), tmp_path / "plain", steps=8, ema=0.6).resume()


def test_tensors_of_every_dtype(tmp_path: Path) -> None:
    """What is written is read, also by the package safetensors, which looks at the file with eyes of its own."""
    import ml_dtypes
    from safetensors.numpy import load_file

    dtypes = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint64, np.bool_]
    tensors = {np.dtype(t).name: np.arange(6).reshape(2, 3).astype(t) for t in dtypes}
    tensors |= {
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3.5),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    path = tmp_path / "t.safetensors"
    files.write_tensors(path, tensors | {"b": np.ones(3, ml_dtypes.bfloat16)}, {"note": "é"})
    found, metadata = files.read_tensors(path)
    assert metadata == {"note": "é"}
    np.testing.assert_array_equal(found.pop("b").astype(np.float32), 1.0)
    files.write_tensors(path, tensors, {})
    for state in (found, load_file(path)):
        assert state.keys() == tensors.keys()
        for name, value in tensors.items():
            assert state[name].dtype == value.dtype
            np.testing.assert_array_equal(state[name], value)
    with pytest.raises(TypeError, match="w must have a dtype of safetensors, got complex"):
        files.write_tensors(path, {"w": np.ones(2, complex)}, {})
