"""``numformer generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(*, folder: Path, prompt: str, threads: int | None, **options: Any) -> None:
    """Load a model and print a continuation of the prompt."""
    import typer

    from numformer.cli import folders
    from numformer.data import to_text, to_tokens
    from numformer.models import from_pretrained

    if not prompt:
        raise ValueError("generate: --prompt must not be empty")
    if threads is not None:
        import numformer as nf

        nf.set_num_threads(threads)
    folders.require(folder, folders.GPT, folders.TRANSFORMER_XL)
    model = from_pretrained(folder)
    if model.config.vocab_size != 256:
        raise ValueError(
            f"{folder}: the model has {model.config.vocab_size} tokens; this command knows byte-level models, of 256"
        )
    typer.echo(to_text(model.generate(to_tokens(prompt), **options)))
