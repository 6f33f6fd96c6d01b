"""The command ``numformer``."""

from numformer.cli import text as text  # registers its commands
from numformer.cli.app import app, main

__all__ = ["app", "main"]
