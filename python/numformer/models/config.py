"""What a GPT is made of, and how a Hugging Face config.json says it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from numformer.models import pretrained
from numformer.nn import initial

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
_NAMES = {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu", **_ACTIVATIONS}
ACTIVATIONS = tuple(_ACTIVATIONS.values())


def activation_to_json(activation: str) -> str:
    """Return what Hugging Face calls an activation."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)


def activation_from_json(field: str, activation: Any) -> str:
    """Return what we call an activation; ValueError for one that there is not."""
    if not isinstance(activation, str) or activation not in _NAMES:
        raise ValueError(f"{field} must be one of {', '.join(_NAMES)}, got {activation!r}")
    return _NAMES[activation]


def check_blocks(config: Any, **sizes: int) -> None:
    """Check the fields that the configurations share, and that `sizes` are at least 1; the dtype becomes its name."""
    owner = type(config).__name__
    initial.size(owner, **sizes)
    if config.hidden is not None:
        initial.size(owner, hidden=config.hidden)
    if config.width % config.heads:
        raise ValueError(f"{owner}: heads must divide width {config.width}, got {config.heads}")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"{owner}: dropout must be at least 0 and below 1, got {config.dropout}")
    if config.activation not in ACTIVATIONS:
        raise ValueError(f"{owner}: activation must be one of {', '.join(ACTIVATIONS)}, got {config.activation!r}")
    if not (math.isfinite(config.eps) and config.eps > 0):
        raise ValueError(f"{owner}: eps must be above 0, got {config.eps}")
    object.__setattr__(config, "dtype", initial.parameter_dtype(np.dtype(config.dtype)).name)


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and options of a :class:`GPT`.

    Parameters
    ----------
    vocab_size : int
        Number of tokens.
    context : int
        The longest sequence.
    layers, heads, width : int
        Blocks, attention heads a block, channels; `heads` divides `width`.
    hidden : int, optional
        Inner size of the feed-forward networks, 4 * width by default.
    dropout : float
        On the embeddings and on both residual branches.
    bias : bool
        Whether maps and norms have one.
    tie_weights : bool
        The output layer is the table of token embeddings.
    activation : {"gelu_tanh", "gelu", "relu", "silu"}
        Of the feed-forward networks.
    eps : float
        Of the norms.
    dtype : str
        Of the parameters: "float32" or "float64".
    """

    vocab_size: int = 256
    context: int = 128
    layers: int = 4
    heads: int = 4
    width: int = 128
    hidden: int | None = None
    dropout: float = 0.0
    bias: bool = True
    tie_weights: bool = True
    activation: str = "gelu_tanh"
    eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = {"vocab_size": self.vocab_size, "context": self.context, "layers": self.layers}
        check_blocks(self, **sizes, heads=self.heads, width=self.width)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a Hugging Face GPT-2 configuration."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.context,
            "n_ctx": self.context,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_inner": self.hidden,
            "activation_function": activation_to_json(self.activation),
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": 0.0,
            "layer_norm_epsilon": self.eps,
            "initializer_range": 0.02,
            "tie_word_embeddings": self.tie_weights,
            "bos_token_id": None,
            "eos_token_id": None,
            "torch_dtype": self.dtype,
            "bias": self.bias,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> GPTConfig:
        """Read the fields of a Hugging Face GPT-2 configuration; ValueError where they describe something else."""
        pretrained.check_type(fields, "gpt2", ("GPT2LMHeadModel", "GPT2Model"))
        pretrained.check_plain(
            fields,
            {
                "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,),
                "add_cross_attention": (False,),
            },
        )
        return cls(
            vocab_size=pretrained.field(fields, "vocab_size"),
            context=pretrained.field(fields, "n_positions"),
            layers=pretrained.field(fields, "n_layer"),
            heads=pretrained.field(fields, "n_head"),
            width=pretrained.field(fields, "n_embd"),
            hidden=fields.get("n_inner"),
            dropout=fields.get("resid_pdrop", 0.1),
            bias=fields.get("bias", True),
            tie_weights=fields.get("tie_word_embeddings", True),
            activation=activation_from_json("activation_function", fields.get("activation_function", "gelu_new")),
            eps=fields.get("layer_norm_epsilon", 1e-5),
            dtype=pretrained.parameter_dtype(fields),
        )
