"""The command ``numformer``."""

from numformer.cli import corpora as corpora  # these register their commands
from numformer.cli import text as text
from numformer.cli.app import app, main

__all__ = ["app", "main"]
