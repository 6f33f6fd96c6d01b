"""ViT beside Hugging Face's ViTForImageClassification."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import judge  # noqa: E402
from numformer.models import ViT  # noqa: E402

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {
        "hidden_size": 15,
        "num_attention_heads": 3,
        "intermediate_size": 22,
        "image_size": 15,
        "patch_size": 5,
        "num_channels": 1,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-3,
    },
}
# Their module's names of today against those of their files.
FILES = {
    "vit.encoder.layer.": "vit.layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def _theirs(variant: str, dtype: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"image_size": 12, "patch_size": 4, "num_channels": 3, "num_labels": 5} | VARIANTS[variant]
    return judge.peer(transformers.ViTForImageClassification, transformers.ViTConfig(**sizes), dtype)


def _images(theirs: Any) -> Any:
    c = theirs.config
    return np.random.default_rng(0).standard_normal((3, c.num_channels, c.image_size, c.image_size))


class Renamed:
    """Our model with the names of their module."""

    def __init__(self, model: ViT) -> None:
        self.model = model

    def gradients(self) -> dict[str, Any]:
        found = {}
        for name, gradient in self.model.gradients().items():
            for file, module in FILES.items():
                name = name.replace(file, module)
            found[name] = gradient
        return found


@pytest.mark.parametrize("dtype", judge.DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything(variant: str, dtype: str, tmp_path: Path) -> None:
    theirs = _theirs(variant, dtype)
    ours = judge.read(ViT, theirs, tmp_path)
    images, labels = _images(theirs).astype(dtype), np.array([4, 0, 2])
    result = theirs(judge.tensors(images), labels=judge.tensors(labels), output_hidden_states=True)
    hidden: list[Any] = []
    judge.close(ours.infer(images, hidden=hidden), result.logits, dtype, "logits")
    for index, (state, other) in enumerate(zip(hidden, result.hidden_states, strict=True)):
        judge.close(state, other, dtype, f"hidden {index}")
    result.loss.backward()
    loss, backward = ours.loss((images, labels))
    backward()
    judge.close(loss, result.loss, dtype, "loss")
    judge.close(ours.infer_loss((images, labels)), result.loss, dtype, "loss")
    judge.gradients(Renamed(ours), theirs, dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_read_what_we_write(variant: str, tmp_path: Path) -> None:
    theirs = _theirs(variant, "float32")
    judge.read(ViT, theirs, tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    inputs = {"pixel_values": judge.tensors(_images(theirs).astype(np.float32))}
    judge.same_weights(tmp_path / "ours", theirs, transformers.ViTForImageClassification, inputs)
