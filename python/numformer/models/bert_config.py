"""What a BERT or a RoBERTa is made of, and how a Hugging Face config.json says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from numformer.models import pretrained
from numformer.models.config import activation_from_json, activation_to_json, check_blocks

HEADS = {
    None: "Model",
    "pretraining": "ForPreTraining",
    "masked_lm": "ForMaskedLM",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "question": "ForQuestionAnswering",
}


@dataclass(frozen=True)
class BERTConfig:
    """Sizes and options of a :class:`BERT`.

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
    types : int
        Number of token types: a first and a second sentence.
    head : {None, "pretraining", "masked_lm", "sequence", "token", "question"}
        What is computed of the hidden states: nothing; masked tokens and whether the second sentence follows; masked
        tokens; a class for each sequence; a class for each token; where an answer begins and ends.
    labels : int
        Number of classes of the heads "sequence" and "token".
    dropout : float
        On the embeddings, on both residual branches and before a classifier.
    activation : {"gelu", "gelu_tanh", "relu", "silu"}
        Of the feed-forward networks.
    tie_weights : bool
        The output layer of masked tokens is the table of token embeddings.
    eps : float
        Of the norms.
    pad_id : int
        The token that fills up.
    dtype : str
        Of the parameters: "float32" or "float64".
    """

    model_type: ClassVar[str] = "bert"
    class_name: ClassVar[str] = "Bert"
    allowed: ClassVar[tuple[str | None, ...]] = tuple(HEADS)

    vocab_size: int = 30522
    context: int = 512
    layers: int = 12
    heads: int = 12
    width: int = 768
    hidden: int | None = None
    types: int = 2
    head: str | None = "masked_lm"
    labels: int = 2
    dropout: float = 0.1
    activation: str = "gelu"
    tie_weights: bool = True
    eps: float = 1e-12
    pad_id: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        owner = type(self).__name__
        sizes = {"vocab_size": self.vocab_size, "context": self.context, "layers": self.layers, "heads": self.heads}
        check_blocks(self, **sizes, width=self.width, types=self.types, labels=self.labels)
        if self.head not in self.allowed:
            raise ValueError(f"{owner}: head must be one of {', '.join(map(str, self.allowed))}, got {self.head!r}")
        if not isinstance(self.pad_id, (int, np.integer)) or not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"{owner}: pad_id must be at least 0 and below vocab_size, got {self.pad_id!r}")

    @property
    def table(self) -> int:
        """Rows of the table of positions."""
        return self.context

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a Hugging Face configuration."""
        fields = {
            "architectures": [self.class_name + HEADS[self.head]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.table,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * self.width if self.hidden is None else self.hidden,
            "type_vocab_size": self.types,
            "hidden_act": activation_to_json(self.activation),
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": self.eps,
            "initializer_range": 0.02,
            "pad_token_id": self.pad_id,
            "tie_word_embeddings": self.tie_weights,
            "torch_dtype": self.dtype,
        }
        if self.head in ("sequence", "token"):
            fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(self.labels)}
            fields["label2id"] = {f"LABEL_{i}": i for i in range(self.labels)}
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BERTConfig:
        """Read the fields of a Hugging Face configuration; ValueError where they describe something else."""
        named = pretrained.check_type(
            fields, cls.model_type, tuple(cls.class_name + HEADS[head] for head in cls.allowed)
        )
        pretrained.check_plain(
            fields,
            {
                "position_embedding_type": ("absolute",),
                "is_decoder": (False,),
                "add_cross_attention": (False,),
                "problem_type": (None, "single_label_classification"),
            },
        )
        labels = fields.get("id2label")
        width, hidden = pretrained.field(fields, "hidden_size"), pretrained.field(fields, "intermediate_size")
        return cls(
            vocab_size=pretrained.field(fields, "vocab_size"),
            context=cls.context_of(fields),
            layers=pretrained.field(fields, "num_hidden_layers"),
            heads=pretrained.field(fields, "num_attention_heads"),
            width=width,
            hidden=None if hidden == 4 * width else hidden,
            types=fields.get("type_vocab_size", 2),
            head=next(head for head in cls.allowed if cls.class_name + HEADS[head] == named),
            labels=len(labels) if isinstance(labels, dict) and labels else fields.get("num_labels", 2),
            dropout=fields.get("hidden_dropout_prob", 0.1),
            activation=activation_from_json("hidden_act", fields.get("hidden_act", "gelu")),
            tie_weights=fields.get("tie_word_embeddings", True),
            eps=fields.get("layer_norm_eps", cls.eps),
            pad_id=fields.get("pad_token_id", cls.pad_id),
            dtype=pretrained.parameter_dtype(fields),
            **cls.options_of(fields),
        )

    @classmethod
    def options_of(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the options that only this configuration has."""
        return {}

    @classmethod
    def context_of(cls, fields: dict[str, Any]) -> int:
        """Return the longest sequence that a configuration's table of positions has room for."""
        return _rows(fields)


@dataclass(frozen=True)
class RoBERTaConfig(BERTConfig):
    """Sizes and options of a :class:`RoBERTa`; the parameters are those of :class:`BERTConfig`.

    The table of positions has `pad_id` + 1 rows more than the longest sequence has tokens.
    """

    model_type: ClassVar[str] = "roberta"
    class_name: ClassVar[str] = "Roberta"
    allowed: ClassVar[tuple[str | None, ...]] = tuple(head for head in HEADS if head != "pretraining")

    vocab_size: int = 50265
    types: int = 1
    eps: float = 1e-5
    pad_id: int = 1

    @property
    def table(self) -> int:
        """Rows of the table of positions."""
        return self.context + self.pad_id + 1

    @classmethod
    def context_of(cls, fields: dict[str, Any]) -> int:
        """Return the longest sequence that a configuration's table of positions has room for."""
        pad_id = fields.get("pad_token_id", 1)
        if not isinstance(pad_id, int):
            raise TypeError(f"pad_token_id must be an integer, got {pad_id!r}")
        return _rows(fields) - pad_id - 1


def _rows(fields: dict[str, Any]) -> int:
    rows = pretrained.field(fields, "max_position_embeddings")
    if not isinstance(rows, int):
        raise TypeError(f"max_position_embeddings must be an integer, got {rows!r}")
    return rows
