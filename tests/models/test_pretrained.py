"""Folders of weights: shards, and files that one should not trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW
from safetensors.numpy import save_file

SMALL: dict[str, Any] = {"vocab_size": 11, "context": 8, "layers": 1, "heads": 2, "width": 8}


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, GPT, dict[str, str]]:
    """A folder whose weights are in two files."""
    model = GPT(GPTConfig(**SMALL), rng=0)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for file in set(places.values()):
        save_file({name: state[name] for name, place in places.items() if place == file}, tmp_path / file)
    _index(tmp_path, places)
    return tmp_path, model, places


def _index(folder: Path, places: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards(sharded: tuple[Path, GPT, dict[str, str]]) -> None:
    folder, model, _ = sharded
    np.testing.assert_array_equal(GPT.from_pretrained(folder).infer([1, 2]), model.infer([1, 2]))


@pytest.mark.parametrize(
    "file",
    ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b.safetensors", "weights.bin", 3],
)
def test_a_shard_is_a_file_of_the_folder(sharded: tuple[Path, GPT, dict[str, str]], file: Any) -> None:
    folder, _, places = sharded
    (folder.parent / "other.safetensors").write_bytes((folder / places["transformer.wte.weight"]).read_bytes())
    _index(folder, places | {"transformer.wte.weight": file})
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight must be in a \.safetensors file of this folder"):
        GPT.from_pretrained(folder)


def test_broken_indices(sharded: tuple[Path, GPT, dict[str, str]]) -> None:
    folder, _, places = sharded
    first, second = sorted(set(places.values()))
    moved = next(name for name, place in places.items() if place == first)
    for broken, words in (
        (places | {moved: second}, f"{first}: it has {moved}"),
        (places | {"transformer.more": first}, f"{first}: it lacks transformer.more"),
        ({}, "weight_map must be an object"),
        ([1], "weight_map must be an object"),
    ):
        _index(folder, broken)
        with pytest.raises(ValueError, match=words):
            GPT.from_pretrained(folder)
    _index(folder, places | {moved: "model-00003-of-00002.safetensors"})
    with pytest.raises((FileNotFoundError, ValueError), match="model-0000"):
        GPT.from_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json: not valid JSON"):
        GPT.from_pretrained(folder)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    GPT(GPTConfig(**SMALL), rng=0).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: a pickle can run any code.*save_pretrained"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["GPT2ForSequenceClassification"]}, "architectures must be one of GPT2LMHeadModel"),
        ({"model_type": "bert"}, "model_type 'gpt2', got 'bert'"),
        ({"scale_attn_weights": False}, "scale_attn_weights must be True, got False"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
    ],
)
def test_other_models(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    GPT(GPTConfig(**SMALL), rng=0).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        GPT.from_pretrained(tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="must hold an object, got list"):
        GPT.from_pretrained(tmp_path)


def test_weights_are_floats(tmp_path: Path) -> None:
    model = GPT(GPTConfig(**SMALL), rng=0)
    model.save_pretrained(tmp_path)
    state = model.state_dict() | {"transformer.ln_f.bias": np.zeros(8, np.int32)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"transformer\.ln_f\.bias must be of floats, got int32"):
        GPT.from_pretrained(tmp_path)


def test_weights_stay_in_the_file(tmp_path: Path) -> None:
    """They are mapped and read-only; training and loading others write into arrays of their own, not into the file."""
    GPT(GPTConfig(vocab_size=20, context=8, layers=1, heads=2, width=8), rng=0).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    before = file.read_bytes()
    model, other = GPT.from_pretrained(tmp_path), GPT.from_pretrained(tmp_path)
    assert not any(parameter.value.flags.writeable for parameter in model.parameters())
    ids = np.array([[1, 2, 3]])
    logits = model.infer(ids)
    optimizer = AdamW(model.parameters(), lr=0.1)
    assert all(parameter.value.flags.writeable for parameter in model.parameters())
    np.testing.assert_array_equal(model.infer(ids), logits)
    model.loss((ids, ids))[1]()
    optimizer.step()
    assert (model.infer(ids) != logits).any()
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other.infer(ids), model.infer(ids))
    assert file.read_bytes() == before
    np.testing.assert_array_equal(GPT.from_pretrained(tmp_path).infer(ids), logits)
    # Saving over the file that is mapped gives the model's weights, and leaves it readable.
    mapped = GPT.from_pretrained(tmp_path)
    mapped.save_pretrained(tmp_path)
    np.testing.assert_array_equal(mapped.infer(ids), logits)
    np.testing.assert_array_equal(GPT.from_pretrained(tmp_path).infer(ids), logits)
