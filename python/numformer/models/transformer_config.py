"""What an encoder-decoder Transformer is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from numformer.models import marian_bart
from numformer.models.config import check_blocks

_MODEL_TYPE = "numformer_transformer"
_LATER = ("style", "scale_embedding", "forced_eos")
"""Fields that older folders lack."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a :class:`Transformer`.

    Parameters
    ----------
    vocab_size : int
        Number of tokens, of both languages.
    context : int
        The longest source or target, in tokens.
    encoder_layers, decoder_layers, heads, width : int
        Blocks, attention heads a block, channels; `heads` divides `width`.
    hidden : int, optional
        Inner size of the feed-forward networks, 4 * width by default.
    dropout : float
        On the sums of embeddings and positions, and on the output of each sub-layer.
    norm : {"post", "pre"}
        The norm comes after the residual, as in the paper, or before each sub-layer and once more at the end of both
        stacks.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}
        Of the feed-forward networks.
    tie_weights : bool
        Source, target and output layer share one table.
    label_smoothing : float
        Share of the uniform distribution in the target of the training loss.
    pad_id, bos_id, eos_id : int
        Tokens that fill a row, begin a target and end a sentence. `pad_id` differs from the two others.
    eps : float
        Of the norms.
    dtype : str
        Of the parameters: "float32" or "float64".
    style : {"paper", "marian", "bart"}
        Where published models differ from the paper, and in whose names folders are written. Marian: all sines come
        before all cosines, and a bias that is not trained is added to the logits. BART: that bias, learned positions of
        source and target, and a norm of the sum of embeddings and positions. Both are post-norm with tied weights.
    scale_embedding : bool
        Embeddings are multiplied by the square root of the width.
    forced_eos : bool
        A sentence that reaches its limit ends with `eos_id` there.
    """

    vocab_size: int = 8000
    context: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 6
    heads: int = 8
    width: int = 512
    hidden: int | None = None
    dropout: float = 0.1
    norm: str = "post"
    activation: str = "relu"
    tie_weights: bool = True
    label_smoothing: float = 0.1
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    eps: float = 1e-5
    dtype: str = "float32"
    style: str = "paper"
    scale_embedding: bool = True
    forced_eos: bool = False

    def __post_init__(self) -> None:
        owner = "TransformerConfig"
        sizes = {"vocab_size": self.vocab_size, "context": self.context, "encoder_layers": self.encoder_layers}
        check_blocks(self, **sizes, decoder_layers=self.decoder_layers, heads=self.heads, width=self.width)
        if self.norm not in ("post", "pre"):
            raise ValueError(f"{owner}: norm must be 'post' or 'pre', got {self.norm!r}")
        if not isinstance(self.tie_weights, bool):
            raise TypeError(f"{owner}: tie_weights must be True or False, got {self.tie_weights!r}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"{owner}: label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        for name in ("pad_id", "bos_id", "eos_id"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
            if not 0 <= value < self.vocab_size:
                raise ValueError(f"{owner}: {name} must be at least 0 and below vocab_size, got {value}")
        if self.style not in ("paper", *marian_bart.CLASSES):
            raise ValueError(
                f"{owner}: style must be one of paper, {', '.join(marian_bart.CLASSES)}, got {self.style!r}"
            )
        if self.style != "paper" and (self.norm, self.tie_weights, self.eps) != ("post", True, 1e-5):
            raise ValueError(
                f"{owner}: style {self.style!r} has norm 'post', tie_weights True and eps 1e-5, "
                f"got {self.norm!r}, {self.tie_weights} and {self.eps}"
            )
        # Marian's targets begin with the padding.
        if self.pad_id == self.eos_id or (self.pad_id == self.bos_id and self.style == "paper"):
            raise ValueError(f"{owner}: pad_id must differ from bos_id and eos_id, got {self.pad_id}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields of config.json: those of Hugging Face where the style is Marian's or BART's."""
        if self.style != "paper":
            return marian_bart.to_json(self)
        return {"architectures": ["Transformer"], "model_type": _MODEL_TYPE, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TransformerConfig:
        """Read the fields of config.json; ValueError where any is missing or unknown."""
        kind = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        if kind in marian_bart.CLASSES:
            return cls(**marian_bart.options(values))
        if kind != _MODEL_TYPE:
            raise ValueError(f"the configuration must have model_type {_MODEL_TYPE!r}, got {kind!r}")
        names = [field.name for field in fields(cls)]
        wrong = [f"lacks {name}" for name in names if name not in values and name not in _LATER]
        wrong += [f"has an unknown {name}" for name in values if name not in (*names, "architectures", "model_type")]
        if wrong:
            raise ValueError(f"the configuration {'; '.join(wrong)}")
        return cls(**{name: values[name] for name in names if name in values})
