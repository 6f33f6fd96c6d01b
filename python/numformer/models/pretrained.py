"""Folders in Hugging Face's format: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import files

Array = NDArray[Any]


def save(config: dict[str, Any], state: Mapping[str, Array], folder: Path) -> None:
    """Write a model; each file is complete or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_tensors(folder / "model.safetensors", state, {"format": "pt"})
    files.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read configuration and weights."""
    config = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not config.is_file():
        raise FileNotFoundError(f"{config}: no such file, so this is not the folder of a model")
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config}: not valid JSON ({error})") from error
    state, _ = files.read_tensors(folder / "model.safetensors")
    return fields, state


def gpt2_names(state: Mapping[str, Array], *, tied: bool) -> dict[str, Array]:
    """Bring the names that GPT-2 checkpoints come with to those of GPT2LMHeadModel.

    The bare model has no "transformer." in front, old files hold the causal masks, and some a copy of the tied output
    layer.
    """
    names: dict[str, Array] = {}
    for name, value in state.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        names[name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"] = value
    if tied and "lm_head.weight" in names:
        head = names.pop("lm_head.weight")
        if not np.array_equal(head, names.get("transformer.wte.weight", head)):
            raise ValueError("lm_head.weight differs from transformer.wte.weight, but the configuration ties them")
    return names
