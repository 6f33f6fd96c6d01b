"""The model that a folder holds, whichever it is."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from numformer.models import pretrained

_KINDS = {
    "bart": ("transformer", "Transformer"),
    "bert": ("bert", "BERT"),
    "gpt2": ("gpt", "GPT"),
    "longformer": ("longformer", "Longformer"),
    "marian": ("transformer", "Transformer"),
    "numformer_transformer": ("transformer", "Transformer"),
    "roberta": ("roberta", "RoBERTa"),
    "transfo-xl": ("transformer_xl", "TransformerXL"),
    "vit": ("vit", "ViT"),
}


def from_pretrained(path: str | Path, *, dtype: DTypeLike | None = None) -> Any:
    """Read a folder with the model that its config.json names; see ``PretrainedModel.from_pretrained``."""
    folder = Path(path)
    kind = pretrained.read_config(folder).get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"{folder / 'config.json'}: model_type must be one of {', '.join(_KINDS)}, got {kind!r}")
    module, name = _KINDS[kind]
    return getattr(importlib.import_module(f"numformer.models.{module}"), name).from_pretrained(folder, dtype=dtype)
