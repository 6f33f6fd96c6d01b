"""Whole models."""

from numformer.models.gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
