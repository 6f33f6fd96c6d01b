"""Training in 16 bits: copies of weights, the scale of the loss, checkpoints, every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numformer import files, models, nn, optim
from numformer.data import Windows, to_tokens
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW
from numformer.train import LossScale, Trainer

BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
NARROW = [BF16, F16]
TEXT = to_tokens("the quick brown fox jumps over the lazy dog. " * 12)[:503]
narrow = pytest.mark.parametrize("dtype", NARROW, ids=str)


def _model(**options: Any) -> GPT:
    return GPT(GPTConfig(**({"context": 16, "layers": 1, "heads": 2, "width": 8} | options)), rng=0)


def _trainer(model: GPT, optimizer: Any = None, **options: Any) -> Trainer:
    optimizer = optimizer or AdamW(model.parameters(), lr=0.01, clip_norm=1.0)
    settings: dict[str, Any] = {"batch_size": 4, "steps": 3, "progress": False, "log_every": 1}
    return Trainer(model, optimizer, Windows(TEXT, 16), **(settings | options))


def _weights(model: Any) -> list[np.ndarray[Any, Any]]:
    return [p.value.copy() for p in model.parameters()]


RULES: dict[str, Any] = {
    "GradientDescent": {"lr": 0.1},
    "SGD": {"lr": 0.1, "nesterov": True},
    "Adam": {},
    "AdamW": {},
    "Adagrad": {},
    "RMSprop": {},
    "Lion": {},
    "Adafactor": {},
}


@narrow
@pytest.mark.parametrize("rule", RULES)
def test_copies_change_nothing(rule: str, dtype: Any) -> None:
    """With copies that the update writes, and rounding at each use instead: the same bits."""
    plain, kept = _model(), _model()
    optimizers = [getattr(optim, rule)(m.parameters(), **RULES[rule]) for m in (plain, kept)]
    for parameter in kept.parameters():
        parameter.keep(dtype)
    windows = Windows(TEXT, 16)
    for step in range(4):
        for model, optimizer in zip((plain, kept), optimizers, strict=True):
            _, backward = model.loss(windows.draw(4, seed=1, step=step), ctx=nn.Context(dtype=dtype))
            backward()
            optimizer.step()
    for parameter in kept.parameters():
        if parameter.copy is not None:
            rounded = parameter.value.astype(dtype)
            np.testing.assert_array_equal(parameter.copy.view(np.uint16), rounded.view(np.uint16))
    assert sum(p.copy is not None for p in kept.parameters()) >= 5, "the products read copies"
    for a, b in zip(_weights(plain), _weights(kept), strict=True):
        np.testing.assert_array_equal(a, b)


@narrow
def test_weights_that_were_loaded_are_the_ones_that_are_read(dtype: Any) -> None:
    model = _model()
    other = GPT(model.config, rng=5)
    for parameter in model.parameters():
        parameter.keep(dtype)
    ctx, batch = nn.Context(dtype=dtype), Windows(TEXT, 16).samples(0, 3)
    before = model.infer_loss(batch, ctx=ctx)
    model.load_state_dict(other.state_dict())
    assert model.infer_loss(batch, ctx=ctx) == other.infer_loss(batch, ctx=ctx) != before


@narrow
@pytest.mark.parametrize("options", [{}, {"micro_batch": 3, "checkpoint_activations": True}, {"ema": 0.9}], ids=str)
def test_resumed_is_uninterrupted(tmp_path: Path, dtype: Any, options: dict[str, Any]) -> None:
    """The checkpoint has float32 weights, and the scale of the loss with what it counts."""
    options = options | {"dtype": dtype, "eval_every": 3, "validation": Windows(TEXT, 16)}
    if dtype == F16:  # grows after step 2 and 4, and overflows somewhere
        options["loss_scale"] = LossScale(2.0**22, interval=2)
    scales = [options["loss_scale"].state_dict()] if dtype == F16 else []
    one = _model(dropout=0.1, layers=2)
    whole = _trainer(one, steps=6, out_dir=tmp_path / "one", **options)
    history = whole.run()
    if dtype == F16:
        options["loss_scale"] = LossScale(2.0**22, interval=2)
    _trainer(_model(dropout=0.1, layers=2), steps=3, out_dir=tmp_path / "two", **options).run()
    if dtype == F16:
        options["loss_scale"] = LossScale(interval=2)
    again = _model(dropout=0.1, layers=2)
    trainer = _trainer(again, steps=6, out_dir=tmp_path / "two", **options)
    assert trainer.resume() == 3
    rows = trainer.run()
    for a, b in zip(_weights(one), _weights(again), strict=True):
        np.testing.assert_array_equal(a, b)
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows] == timeless
    if dtype == F16:
        assert trainer.loss_scale is not None and whole.loss_scale is not None
        assert trainer.loss_scale.state_dict() == whole.loss_scale.state_dict() != scales[0]
    tensors, _ = files.read_tensors(tmp_path / "one" / "checkpoint.safetensors")
    assert {t.dtype for name, t in tensors.items() if name.startswith(("model/", "optimizer/m"))} == {
        np.dtype(np.float32)
    }


def test_loss_scale() -> None:
    scale = LossScale(8.0, growth=4.0, interval=3)
    assert [scale.update(True) for _ in range(3)] == [True] * 3 and (scale.value, scale.good) == (32.0, 0)
    scale.update(True)
    assert scale.update(False) and (scale.value, scale.good, scale.overflows) == (16.0, 0, 1)
    again = LossScale(interval=3)
    again.load_state_dict(scale.state_dict())
    assert again.state_dict() == scale.state_dict()
    for _ in range(4):
        assert scale.update(False)
    assert scale.value == 1.0 and not scale.update(False), "a smaller one would not help"
    most = LossScale(2.0**24, interval=1)
    most.update(True)
    assert most.value == 2.0**24


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"initial": 0.5}, "initial must be between 1 and"),
        ({"growth": 1.0}, "growth must be above 1, got 1"),
        ({"backoff": 1.0}, "backoff must be between 0 and 1, got 1"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
    ],
)
def test_loss_scales_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"LossScale: {says}"):
        LossScale(**options)
    with pytest.raises(ValueError, match="state must have value, good and overflows"):
        LossScale().load_state_dict({"value": 1.0})


def test_a_step_that_overflows_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    """A gradient too large for float16 at the first scales; the run goes on, also with nan="stop"."""
    model = _model()
    windows = Windows(TEXT[:40], 16)
    for clip in (None, 1.0):
        optimizer = AdamW(model.parameters(), lr=0.01, clip_norm=clip)
        before, steps = _weights(model), optimizer.steps
        head = model.head.weight
        scale = float(np.abs(head.value).max())
        head.value *= 50 / scale  # so that dx is large
        model.parameters()
        before = _weights(model)
        trainer = Trainer(
            model,
            optimizer,
            windows,
            batch_size=1,
            steps=1,
            progress=False,
            dtype="float16",
            loss_scale=LossScale(2.0**24),
            out_dir=tmp_path / f"{clip}",
        )
        history = trainer.run()
        assert trainer.loss_scale is not None
        assert trainer.loss_scale.value == 2.0**23 and trainer.skipped == 1 == trainer.loss_scale.overflows
        assert history[0]["loss_scale"] == 2.0**24 and history[0]["skipped"] == 1 and history[0]["grad_norm"] is None
        for a, b in zip(before, _weights(model), strict=True):
            np.testing.assert_array_equal(a, b)
        assert optimizer.steps == steps
        head.value *= scale / 50
        trainer = _trainer(model, AdamW(model.parameters(), clip_norm=clip), dtype="float16", steps=12)
        assert np.isfinite([row["loss"] for row in trainer.run()]).all()
        assert trainer.skipped <= 3


def test_a_weight_that_is_not_a_number_is_no_overflow() -> None:
    model = _model()
    model.norm.weight.value[3] = np.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        _trainer(model, dtype="float16").run()


def test_the_log_has_the_scale(tmp_path: Path) -> None:
    trainer = _trainer(_model(), dtype="float16", loss_scale=LossScale(2.0**10, interval=2), steps=5, out_dir=tmp_path)
    history = trainer.run()
    assert [row["loss_scale"] for row in history] == [2.0**10, 2.0**10, 2.0**11, 2.0**11, 2.0**12]
    assert [row["skipped"] for row in history] == [0] * 5
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0].endswith("seconds,loss_scale,skipped") and lines[-1].endswith(",4096.0,0")


def test_bad_dtypes() -> None:
    for dtype in ("int8", "float8", np.complex64, "bf16"):
        with pytest.raises(TypeError, match="Trainer: dtype must be float32, float64, float16 or bfloat16, got"):
            _trainer(_model(), dtype=dtype)
    with pytest.raises(ValueError, match="loss_scale is for dtype float16, got bfloat16"):
        _trainer(_model(), dtype="bfloat16", loss_scale=LossScale())
    model = _model()
    model.head.weight.value = model.head.weight.value.astype(BF16)
    with pytest.raises(
        TypeError, match=r"AdamW: parameters must be float32 or float64, got bfloat16 for transformer\."
    ):
        AdamW(model.parameters())


def _sentences(rng: Any) -> tuple[Any, ...]:
    ids = rng.integers(4, 29, (6, 12))
    targets = np.where(rng.random(ids.shape) < 0.4, ids, -100)
    return np.where(targets >= 0, 3, ids), np.ones(ids.shape, bool), np.zeros_like(ids), targets


def _every_model() -> dict[str, Any]:
    rng = np.random.default_rng(4)
    small: dict[str, Any] = {"vocab_size": 29, "layers": 2, "heads": 2, "width": 16}
    masked = small | {"context": 16, "head": "masked_lm", "dropout": 0.1}
    ids, mask, types, targets = _sentences(rng)
    seen = np.zeros(ids.shape, bool)
    seen[:, [0, 7]] = True
    translation = models.TransformerConfig(
        vocab_size=29, context=16, encoder_layers=1, decoder_layers=1, heads=2, width=16, dropout=0.1
    )
    source = rng.integers(3, 29, (6, 9))
    target = np.concatenate([np.ones((6, 1), np.int64), source[:, :-1]], axis=1)
    images = models.ViTConfig(image=8, patch=4, channels=1, labels=3, layers=2, heads=2, width=16)
    labels = np.arange(6) % 3
    pictures = rng.standard_normal((6, 1, 8, 8)) + labels[:, None, None, None]
    return {
        "GPT": (GPT(GPTConfig(**small, context=16, dropout=0.1), rng=0), (ids, ids)),
        "Transformer": (models.Transformer(translation, rng=0), (source, target, source)),
        "BERT": (models.BERT(models.BERTConfig(**masked), rng=0), (ids, mask, types, targets)),
        "RoBERTa": (models.RoBERTa(models.RoBERTaConfig(**masked), rng=0), (ids, mask, types, targets)),
        "Longformer": (
            models.Longformer(models.LongformerConfig(**masked, window=4), rng=0),
            (ids, mask, types, seen, targets),
        ),
        "ViT": (models.ViT(images, rng=0), (pictures.astype(np.float32), labels)),
    }


class _Same:
    """One batch again and again."""

    def __init__(self, batch: tuple[Any, ...]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch[0])

    def samples(self, start: int, stop: int) -> tuple[Any, ...]:
        return tuple(part[start:stop] for part in self.batch)

    def draw(self, count: int, *, seed: int, step: int) -> tuple[Any, ...]:
        return self.batch


@narrow
@pytest.mark.parametrize("name", list(_every_model()))
def test_every_model_learns(name: str, dtype: Any) -> None:
    """Twelve steps, dropout included: the loss falls, and stays beside that of float32."""
    curves = []
    for kind in (None, dtype):
        model, batch = _every_model()[name]
        optimizer = AdamW(model.parameters(), lr=3e-3, clip_norm=1.0)
        trainer = Trainer(
            model, optimizer, _Same(batch), batch_size=6, steps=12, log_every=1, dtype=kind, seed=7, progress=False
        )
        curves.append(np.array([row["loss"] for row in trainer.run()]))
        assert trainer.skipped == 0
        for parameter in model.parameters():
            assert parameter.value.dtype == np.float32 and parameter.copy is None
            assert parameter.grad is None or parameter.grad.dtype == np.float32
    exact, mixed = curves
    assert mixed[-1] < mixed[0] - 0.1
    assert np.abs(mixed - exact).max() <= 0.05 * (exact[0] - exact[-1]) + 0.01, (exact, mixed)
