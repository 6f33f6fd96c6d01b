"""Folders of Marian and BART: how their configuration and weights say what a Transformer is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.models import pretrained
from numformer.models.config import activation_from_json, activation_to_json

Array = NDArray[Any]

CLASSES = {"marian": "MarianMTModel", "bart": "BartForConditionalGeneration"}
BIAS = "final_logits_bias"
SPLITS: Mapping[str, tuple[str, ...]] = {
    "self_attn.qkv.": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "encoder_attn.kv.": ("encoder_attn.k_proj.", "encoder_attn.v_proj."),
}

_TABLE = "model.shared.weight"
_COPIES = {name: _TABLE for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")}
_TIED = {**_COPIES, "lm_head.weight": _TABLE}
_SIDES = {"positions": "encoder", "target_positions": "decoder"}
_NORMS = {
    "encoder": {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"},
    "decoder": {"norm1": "self_attn_layer_norm", "norm2": "encoder_attn_layer_norm", "norm3": "final_layer_norm"},
}
_PARTS = {
    "attention": "self_attn",
    "cross_attention": "encoder_attn",
    "mlp.inner": "fc1",
    "mlp.outer": "fc2",
    "query": "q_proj",
    "output": "out_proj",
    "table": "embed_positions",
    "norm": "layernorm_embedding",
}


def rename(path: str) -> str:
    """Return what their files call a parameter; queries, keys and values are split later."""
    if path == "tokens.weight":
        return _TABLE
    place, *parts, kind = path.replace("mlp.inner", "fc1").replace("mlp.outer", "fc2").split(".")
    if place in _SIDES:
        return ".".join(["model", _SIDES[place], _PARTS[parts[0]], kind])
    names = _NORMS[place] | _PARTS
    return ".".join(["model", place, "layers", *(names.get(part, part) for part in parts), kind])


def options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read config.json: the fields of a TransformerConfig; ValueError where it describes something else."""
    kind = str(fields.get("model_type"))
    pretrained.check_type(fields, kind, (CLASSES[kind],))
    vocab_size, eos_id = pretrained.field(fields, "vocab_size"), pretrained.field(fields, "eos_token_id")
    pretrained.check_plain(
        fields,
        {
            "tie_word_embeddings": (True,),
            "share_encoder_decoder_embeddings": (True,),
            "decoder_vocab_size": (None, vocab_size),
            "normalize_before": (False,),
            "add_final_layer_norm": (False,),
            "normalize_embedding": (kind == "bart",),
            "static_position_embeddings": (kind == "marian",),
            "decoder_attention_heads": (pretrained.field(fields, "encoder_attention_heads"),),
            "decoder_ffn_dim": (pretrained.field(fields, "encoder_ffn_dim"),),
            "forced_bos_token_id": (None,),
            "forced_eos_token_id": (None, eos_id),
        },
    )
    return {
        "style": kind,
        "vocab_size": vocab_size,
        "context": pretrained.field(fields, "max_position_embeddings"),
        "encoder_layers": pretrained.field(fields, "encoder_layers"),
        "decoder_layers": pretrained.field(fields, "decoder_layers"),
        "heads": fields["encoder_attention_heads"],
        "width": pretrained.field(fields, "d_model"),
        "hidden": fields["encoder_ffn_dim"],
        "dropout": fields.get("dropout", 0.1),
        "activation": activation_from_json("activation_function", fields.get("activation_function", "gelu")),
        "scale_embedding": fields.get("scale_embedding", False),
        "label_smoothing": 0.0,
        "pad_id": pretrained.field(fields, "pad_token_id"),
        "bos_id": pretrained.field(fields, "decoder_start_token_id"),
        "eos_id": eos_id,
        "forced_eos": fields.get("forced_eos_token_id", eos_id) is not None,
        "dtype": pretrained.parameter_dtype(fields),
    }


def to_json(c: Any) -> dict[str, Any]:
    """Return the fields of their config.json for a TransformerConfig."""
    fields: dict[str, Any] = {
        "architectures": [CLASSES[c.style]],
        "model_type": c.style,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context,
        "d_model": c.width,
        "dropout": c.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "activation_function": activation_to_json(c.activation),
        "scale_embedding": c.scale_embedding,
        "pad_token_id": c.pad_id,
        "bos_token_id": 0 if c.style == "bart" else None,
        "eos_token_id": c.eos_id,
        "decoder_start_token_id": c.bos_id,
        "forced_eos_token_id": c.eos_id if c.forced_eos else None,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "torch_dtype": c.dtype,
    }
    for side in ("encoder", "decoder"):
        fields[f"{side}_layers"] = getattr(c, f"{side}_layers")
        fields[f"{side}_attention_heads"] = c.heads
        fields[f"{side}_ffn_dim"] = 4 * c.width if c.hidden is None else c.hidden
    if c.style == "marian":
        fields |= {"decoder_vocab_size": c.vocab_size, "share_encoder_decoder_embeddings": True}
    return fields


def adapt(c: Any, state: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
    """Return the trained weights of a file, and the bias of its logits, which is not trained."""
    found = pretrained.untied(dict(state), _TIED)
    bias = found.pop(BIAS, np.zeros((1, c.vocab_size), c.dtype))
    if bias.shape != (1, c.vocab_size):
        raise ValueError(f"{BIAS} must have shape {(1, c.vocab_size)}, got {bias.shape}")
    if c.style == "marian":  # sines, which some files hold
        found = {name: value for name, value in found.items() if not name.endswith("embed_positions.weight")}
    return found, bias


def stored(state: dict[str, Array], bias: Array) -> dict[str, Array]:
    """Return what a file holds: the trained weights and the bias of the logits."""
    return state | {BIAS: bias.reshape(1, -1)}
