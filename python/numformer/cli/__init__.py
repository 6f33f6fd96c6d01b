"""The command ``numformer``."""

from numformer.cli.app import app, main

__all__ = ["app", "main"]
