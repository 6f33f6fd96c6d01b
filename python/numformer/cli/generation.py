"""``numformer generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(*, folder: Path, prompt: str, dtype: str | None, threads: int | None, **options: Any) -> None:
    """Load a model and print a continuation of the prompt."""
    import typer

    from numformer.cli import language

    if not prompt:
        raise ValueError("generate: --prompt must not be empty")
    if threads is not None:
        import numformer as nf

        nf.set_num_threads(threads)
    model, vocabulary, end = language.load(folder, dtype)
    ids = vocabulary.encode([prompt])[0]
    if not len(ids):
        raise ValueError(f"generate: --prompt has no token in {folder}, got {prompt!r}")
    typer.echo(vocabulary.decode(model.generate(ids, stop=() if end is None else end, **options)))
