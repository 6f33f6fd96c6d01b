"""Whole models, each loaded when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numformer.models.auto import from_pretrained as from_pretrained
    from numformer.models.bert import BERT as BERT
    from numformer.models.bert_config import BERTConfig as BERTConfig
    from numformer.models.bert_config import RoBERTaConfig as RoBERTaConfig
    from numformer.models.config import GPTConfig as GPTConfig
    from numformer.models.gpt import GPT as GPT
    from numformer.models.longformer import Longformer as Longformer
    from numformer.models.longformer import LongformerConfig as LongformerConfig
    from numformer.models.roberta import RoBERTa as RoBERTa
    from numformer.models.transformer import Transformer as Transformer
    from numformer.models.transformer_config import TransformerConfig as TransformerConfig
    from numformer.models.transformer_xl import TransformerXL as TransformerXL
    from numformer.models.transformer_xl_config import TransformerXLConfig as TransformerXLConfig
    from numformer.models.vit import ViT as ViT
    from numformer.models.vit import ViTConfig as ViTConfig

_PLACES = {
    "BERT": "bert",
    "BERTConfig": "bert_config",
    "GPT": "gpt",
    "GPTConfig": "config",
    "Longformer": "longformer",
    "LongformerConfig": "longformer",
    "RoBERTa": "roberta",
    "RoBERTaConfig": "bert_config",
    "Transformer": "transformer",
    "TransformerConfig": "transformer_config",
    "TransformerXL": "transformer_xl",
    "TransformerXLConfig": "transformer_xl_config",
    "ViT": "vit",
    "ViTConfig": "vit",
    "from_pretrained": "auto",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"numformer.models.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'numformer.models' has no attribute {name!r}")
