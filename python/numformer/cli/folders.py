"""What the folder of a model holds."""

from __future__ import annotations

import json
from pathlib import Path

GPT, TRANSFORMER, TRANSFORMER_XL = "gpt2", "numformer_transformer", "transfo-xl"
_ADVICE = {
    "bert": "a BERT, which understands text: numformer embed {} or numformer fill {}",
    "roberta": "a RoBERTa, which understands text: numformer embed {} or numformer fill {}",
    "longformer": "a Longformer, which understands long text: numformer embed {} or numformer fill {}",
    GPT: "a GPT, which continues text: numformer generate {}",
    TRANSFORMER_XL: "a Transformer-XL, which continues text: numformer generate {}",
    TRANSFORMER: "a transformer, which translates: numformer translate {}",
}


def model_type(folder: Path) -> str:
    """Return the model_type that config.json names."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so this is not the folder of a model")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not the configuration of a model ({error})") from error


def require(folder: Path, *kinds: str) -> None:
    """Raise ValueError for the folder of another model, and say what it is for."""
    found = model_type(folder)
    if found not in kinds and found in _ADVICE:
        raise ValueError(f"{folder} holds {_ADVICE[found].format(folder, folder)}")
