"""ViT: gradients, files, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradient import along
from numformer import nn
from numformer.models import ViT, ViTConfig, from_pretrained

SMALL: dict[str, Any] = {"image": 6, "patch": 3, "channels": 2, "labels": 4, "layers": 2, "heads": 2, "width": 8}


def _batch() -> tuple[Any, Any]:
    return np.random.default_rng(0).standard_normal((3, 2, 6, 6)), np.array([1, -100, 3])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradient(dropout: float) -> None:
    rng = np.random.default_rng(1)
    model = ViT(ViTConfig(**SMALL, dropout=dropout, dtype="float64"), rng=0)
    for parameter in model.parameters():
        parameter.value += 0.2 * rng.standard_normal(parameter.value.shape)
    ctx = nn.Context(seed=1, step=2)
    loss, backward = model.loss(_batch(), ctx=ctx)
    backward()
    assert all(parameter.pending == 0 for parameter in model.parameters())
    for parameter in model.parameters():
        along(lambda: model.loss(_batch(), ctx=ctx)[0], parameter.value, parameter.grad.copy(), rng)
    if dropout == 0.0:
        assert model.infer_loss(_batch()) == pytest.approx(loss, rel=1e-12)


def test_files(tmp_path: Path) -> None:
    model = ViT(ViTConfig(**SMALL, hidden=12, activation="relu"), rng=0)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config == model.config
    images = _batch()[0].astype(np.float32)
    np.testing.assert_array_equal(again.infer(images), model.infer(images))
    np.testing.assert_allclose(again.infer(images[1]), model.infer(images)[1], rtol=1e-5, atol=1e-6)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for change, words in (
        ({"qkv_bias": False}, "qkv_bias must be True"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "architectures must be one of"),
        ({"num_channels": 3}, r"projection\.weight must have shape \(8, 3, 3, 3\), got \(8, 2, 3, 3\)"),
        ({"image_size": 9}, r"position_embeddings must have shape \(1, 10, 8\), got \(1, 5, 8\)"),
        ({"image_size": [6, 6]}, "image must be an integer"),
        ({"num_hidden_layers": 3}, r"missing vit\.encoder\.layer\.2"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=words):
            ViT.from_pretrained(tmp_path)


def test_bad_input() -> None:
    model = ViT(ViTConfig(**SMALL), rng=0)
    images, labels = _batch()
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 2, 6, 6\), got \(3, 2, 6, 5\)"):
        model.infer(images[..., :5])
    with pytest.raises(TypeError, match="images must be numbers"):
        model.infer(images.astype(str))
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), got \(2,\)"):
        model.loss((images, labels[:2]))
    with pytest.raises(TypeError, match="labels must be integers"):
        model.loss((images, labels.astype(float)))
    for change in ({"patch": 4}, {"heads": 3}, {"labels": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            ViTConfig(**(SMALL | change))
