"""Whole models in bfloat16, for use: read, asked, written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numformer import files, models
from numformer.models import GPT, GPTConfig
from tolerance import u

BF16 = np.dtype(ml_dtypes.bfloat16)
SMALL: dict[str, Any] = {"vocab_size": 31, "layers": 2, "heads": 2, "width": 16}


def _shaken(model: Any) -> Any:
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.value += (0.1 * rng.standard_normal(parameter.value.shape)).astype(np.float32)
    return model


def _every() -> dict[str, tuple[Any, Any]]:
    """A model, and the question to ask."""
    ids = np.random.default_rng(2).integers(3, 31, (3, 11))
    masked = SMALL | {"context": 16, "head": "masked_lm"}
    translation = models.TransformerConfig(
        vocab_size=31, context=16, encoder_layers=1, decoder_layers=1, heads=2, width=16
    )
    images = models.ViTConfig(image=8, patch=4, channels=1, labels=3, layers=2, heads=2, width=16)
    return {
        "GPT": (GPT(GPTConfig(**SMALL, context=16), rng=0), lambda m: m.infer(ids)),
        "Transformer": (models.Transformer(translation, rng=0), lambda m: m.infer(ids, ids[:, :7])),
        "BERT": (models.BERT(models.BERTConfig(**masked), rng=0), lambda m: m.infer(ids)),
        "BERT-classes": (
            models.BERT(models.BERTConfig(**masked | {"head": "sequence", "labels": 3}), rng=0),
            lambda m: m.infer(ids),
        ),
        "RoBERTa": (models.RoBERTa(models.RoBERTaConfig(**masked), rng=0), lambda m: m.infer(ids)),
        "Longformer": (
            models.Longformer(models.LongformerConfig(**masked, window=4), rng=0),
            lambda m: m.infer(ids, global_tokens=ids % 5 == 0),
        ),
        "ViT": (models.ViT(images, rng=0), lambda m: m.infer(np.ones((2, 1, 8, 8), np.float32))),
    }


@pytest.mark.parametrize("name", list(_every()))
def test_answers(name: str, tmp_path: Path) -> None:
    """Logits are float32, and as near to those of float32 as some thirty roundings of 2**-9 allow."""
    model, ask = _every()[name]
    _shaken(model).save_pretrained(tmp_path)
    narrow = models.from_pretrained(tmp_path, dtype="bfloat16")
    for parameter in narrow.parameters():
        assert parameter.value.dtype == (BF16 if parameter.value.ndim > 1 else np.float32), parameter.name
    got, want = ask(narrow), ask(model)
    assert got.dtype == np.float32
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 0 < error <= 32 * u(BF16), error


def test_generation(tmp_path: Path) -> None:
    """Greedy tokens come from the logits of a whole pass, whether keys and values are kept or not."""
    _shaken(GPT(GPTConfig(**SMALL, context=24), rng=0)).save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path, dtype=BF16)
    prompts = np.random.default_rng(3).integers(0, 31, (3, 5))
    tokens = model.generate(prompts, 15, temperature=0)
    assert tokens.shape == (3, 20)
    logits = model.infer(tokens)
    for position in range(5, 20):
        row = logits[:, position - 1]
        chosen = np.take_along_axis(row, tokens[:, position, None], axis=1)[:, 0]
        # One row at a time has sums of another order, which bfloat16 may round to the neighbour.
        assert (chosen >= row.max(axis=1) - 32 * u(BF16) * np.abs(row).max(axis=1)).all()
    assert model.infer(prompts, dtype=np.dtype(np.float32)).dtype == np.float32
    wide = GPT.from_pretrained(tmp_path)
    np.testing.assert_allclose(model.log_likelihood(tokens), wide.log_likelihood(tokens), rtol=0.02)
    assert abs(model.infer_loss((tokens, tokens)) - wide.infer_loss((tokens, tokens))) < 0.05


def test_written_and_read(tmp_path: Path) -> None:
    """A folder of bfloat16 weights: half the size, mapped where it is read as such, trained where as float32."""
    _shaken(GPT(GPTConfig(**SMALL, context=24), rng=0)).save_pretrained(tmp_path / "wide")
    narrow = GPT.from_pretrained(tmp_path / "wide", dtype="bfloat16")
    narrow.save_pretrained(tmp_path / "narrow")
    tensors, _ = files.read_tensors(tmp_path / "narrow" / "model.safetensors")
    assert tensors["transformer.wte.weight"].dtype == BF16
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "narrow" / "config.json").read_text()
    again = GPT.from_pretrained(tmp_path / "narrow", dtype="bfloat16")
    assert not again.tokens.weight.value.flags.writeable, "it is the file itself"
    ids = np.arange(20)[None]
    np.testing.assert_array_equal(again.infer(ids), narrow.infer(ids))
    trainable = GPT.from_pretrained(tmp_path / "narrow")
    assert {p.value.dtype for p in trainable.parameters()} == {np.dtype(np.float32)}
    for a, b in zip(trainable.parameters(), narrow.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value.astype(np.float32))
    assert {p.value.dtype for p in GPT.from_pretrained(tmp_path / "wide", dtype="float64").parameters()} == {
        np.dtype(np.float64)
    }


@pytest.mark.parametrize("dtype", ["float16", "int8x", np.int32])
def test_dtypes_that_weights_cannot_have(dtype: Any, tmp_path: Path) -> None:
    GPT(GPTConfig(**SMALL, context=24), rng=0).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="from_pretrained: dtype must be float32, float64"):
        GPT.from_pretrained(tmp_path, dtype=dtype)
