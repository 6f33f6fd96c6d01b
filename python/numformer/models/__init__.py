"""Whole models."""

from numformer.models.gpt import GPT, GPTConfig
from numformer.models.transformer import Transformer, TransformerConfig

__all__ = ["GPT", "GPTConfig", "Transformer", "TransformerConfig"]
