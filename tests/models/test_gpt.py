"""GPT: gradients, names, files, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradient import along
from numformer import nn
from numformer.models import GPT, GPTConfig

SMALL: dict[str, Any] = {"vocab_size": 11, "context": 8, "layers": 2, "heads": 2, "width": 8}


def _batch(seed: int = 0, rows: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, 11, (rows, 8)), rng.integers(0, 11, (rows, 8))
    targets[0, 3:6] = -100
    return ids, targets


@pytest.mark.parametrize(
    "options",
    [{}, {"tie_weights": False}, {"bias": False}, {"dropout": 0.2}, {"activation": "relu", "hidden": 12}],
    ids=["gpt2", "untied", "no-bias", "dropout", "relu"],
)
def test_gradient(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    model = GPT(GPTConfig(**SMALL, dtype="float64", **options), rng=0)
    for parameter in model.parameters():
        parameter.value += 0.2 * rng.standard_normal(parameter.value.shape)
    ctx = nn.Context(seed=1, step=4)
    batch = _batch()
    loss, backward = model.loss(batch, ctx=ctx)
    assert np.isfinite(loss)
    backward()
    assert all(parameter.pending == 0 for parameter in model.parameters())
    gradients = [p.grad.copy() for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        along(lambda: model.loss(batch, ctx=ctx)[0], parameter.value, gradient, rng)
        parameter.reset()


def test_gradient_with_padding() -> None:
    rng = np.random.default_rng(1)
    model = GPT(GPTConfig(**SMALL, dtype="float64"), rng=0)
    ids, targets = _batch()
    mask = np.arange(8) >= np.array([[0], [3], [6]])
    targets[~mask] = -100
    loss, backward = model.loss((ids, mask, targets))
    backward()
    gradients = [p.grad.copy() for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        along(lambda: model.infer_loss((ids, mask, targets)), parameter.value, gradient, rng)
    ids[~mask] = 0  # what fills up does not matter
    assert model.infer_loss((ids, mask, targets)) == pytest.approx(loss)


def test_names_are_those_of_gpt2() -> None:
    names = set(GPT(GPTConfig(**SMALL)).state_dict())
    block = {
        f"transformer.h.{i}.{part}.{kind}"
        for i in range(2)
        for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    }
    ends = {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert names == block | ends
    assert set(GPT(GPTConfig(**SMALL, tie_weights=False)).state_dict()) == names | {"lm_head.weight"}


def test_initial_values() -> None:
    state = GPT(GPTConfig(vocab_size=256, context=64, layers=8, heads=4, width=64), rng=0).state_dict()
    np.testing.assert_allclose(state["transformer.wte.weight"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(state["transformer.h.3.mlp.c_fc.weight"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(state["transformer.h.3.mlp.c_proj.weight"].std(), 0.02 / 4, rtol=0.05)
    np.testing.assert_array_equal(state["transformer.h.3.ln_1.weight"], 1.0)
    np.testing.assert_array_equal(state["transformer.h.3.attn.c_attn.bias"], 0.0)


def test_infer_loss_is_the_loss_without_dropout() -> None:
    model = GPT(GPTConfig(**SMALL), rng=0)
    np.testing.assert_allclose(model.infer_loss(_batch()), model.loss(_batch())[0], rtol=1e-6)
    dropping = GPT(GPTConfig(**SMALL, dropout=0.5), rng=0)
    assert dropping.infer_loss(_batch()) == model.infer_loss(_batch())


def test_causality() -> None:
    model = GPT(GPTConfig(**SMALL), rng=0)
    ids = _batch()[0]
    changed = ids.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model.infer(ids), model.infer(changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any()


def test_mixed_precision_keeps_float32_gradients() -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    model = GPT(GPTConfig(**SMALL), rng=0)
    exact, backward = model.loss(_batch())
    backward()
    gradients = {p.name: p.grad.copy() for p in model.parameters()}
    model.zero_grad()
    loss, backward = model.loss(_batch(), ctx=nn.Context(dtype=bfloat16))
    backward()
    assert abs(loss - exact) < 0.02
    for parameter in model.parameters():
        assert parameter.grad.dtype == np.float32
        error = np.linalg.norm(parameter.grad - gradients[parameter.name])
        # bfloat16 has 8 bits: 2**-8 a rounding, through about thirty of them one after the other
        assert error <= 30 * 2**-8 * np.linalg.norm(gradients[parameter.name]), parameter.name


def test_pretrained_round_trip(tmp_path: Path) -> None:
    model = GPT(GPTConfig(**SMALL, dropout=0.1, activation="gelu", eps=1e-6, hidden=20), rng=0)
    model.save_pretrained(tmp_path / "model")
    again = GPT.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    np.testing.assert_array_equal(again.infer(_batch()[0]), model.infer(_batch()[0]))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_names_without_a_head_and_old_masks_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    model = GPT(GPTConfig(**SMALL), rng=0)
    model.save_pretrained(tmp_path)
    state = {name.removeprefix("transformer."): value for name, value in model.state_dict().items()}
    state["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    state["lm_head.weight"] = state["wte.weight"].copy()
    save_file(state, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(GPT.from_pretrained(tmp_path).infer([1, 2]), model.infer([1, 2]))
    state["lm_head.weight"] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="differs from"):
        GPT.from_pretrained(tmp_path)


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        GPT.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        GPT.from_pretrained(tmp_path)
    model = GPT(GPTConfig(**SMALL), rng=0)
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, fields = weights.read_bytes(), json.loads(config.read_text())
    for size in (0, 5, 200, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors: damaged or cut short"):
            GPT.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        GPT.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    for change, words in (
        ({"n_layer": 3}, "missing transformer.h.2"),
        ({"n_embd": 12}, "must have shape"),
        ({"model_type": "bert"}, "model_type"),
        ({"n_head": 3}, "heads must divide width"),
        ({"n_head": "2"}, "heads must be an integer"),
        ({"activation_function": "tanh"}, "activation_function"),
    ):
        config.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=words):
            GPT.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        (np.zeros((2, 9), int), ValueError, "up to"),
        (np.zeros((2, 0), int), ValueError, "not empty"),
        (np.zeros((2, 2, 2), int), ValueError, "must have shape"),
        (np.zeros((2, 4)), TypeError, "integers"),
        (np.full((2, 4), 11), ValueError, "11"),
        (np.full((2, 4), -1), ValueError, "-1"),
    ],
)
def test_bad_ids(ids: Any, error: type[Exception], words: str) -> None:
    model = GPT(GPTConfig(**SMALL), rng=0)
    with pytest.raises(error, match=words):
        model.infer(ids)
    with pytest.raises(error, match=words):
        model.loss((ids, np.zeros(ids.shape, int)))


@pytest.mark.parametrize("targets", [np.zeros((3, 7), int), np.full((3, 8), 11), np.full((3, 8), -1)])
def test_bad_targets(targets: Any) -> None:
    with pytest.raises(ValueError, match="targets"):
        GPT(GPTConfig(**SMALL), rng=0).loss((_batch()[0], targets))


@pytest.mark.parametrize(
    "change",
    [{"heads": 3}, {"layers": 0}, {"dropout": 1.0}, {"activation": "tanh"}, {"eps": float("nan")}, {"vocab_size": -1}],
)
def test_bad_config(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        GPTConfig(**(SMALL | change))
