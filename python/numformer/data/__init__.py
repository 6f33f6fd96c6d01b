"""Byte-level text and the batches that are drawn from it."""

from numformer.data.text import builtin_text, read_files, split, to_text, to_tokens
from numformer.data.windows import Windows

__all__ = ["Windows", "builtin_text", "read_files", "split", "to_text", "to_tokens"]
