"""Commands about texts and the encoders that read them: ``numformer embed`` and ``numformer fill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from numformer.cli.app import Folder, Threads, WeightsType, _or_none, _run, app


@app.command()
def embed(
    folder: Folder,
    file: Annotated[Path | None, typer.Option(help="Texts, one a line, gzip read too; stdin by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to; FILE with .npy at its end by default.")] = None,
    batch: Annotated[int, typer.Option(help="Texts that are read at once.")] = 32,
    context: Annotated[
        int | None, typer.Option(help="Longest text, in tokens; the model's own by default. Longer ones are cut.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Whether vectors have length 1.")
    ] = True,
    dtype: WeightsType = None,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Write a vector for each line of a text, to be compared by products: an array (lines, width)."""
    from numformer.cli.encoders import embed as run

    _run(
        run,
        folder=folder,
        file=file,
        out=out,
        batch=batch,
        context=context,
        normalize=normalize,
        dtype=_or_none(dtype),
        threads=threads,
        quiet=quiet,
    )


@app.command()
def fill(
    folder: Folder,
    text: Annotated[str, typer.Argument(help="With the model's mask where a word is missing: [MASK] or <mask>.")],
    top: Annotated[int, typer.Option(help="How many answers for each mask.")] = 5,
    dtype: WeightsType = None,
    threads: Threads = None,
) -> None:
    """Say which words a masked-language model puts where a text has a mask, and how probable they are."""
    from numformer.cli.encoders import fill as run

    _run(run, folder=folder, text=text, top=top, dtype=_or_none(dtype), threads=threads)
