"""Commands about corpora and runs: ``numformer tokenize`` and ``numformer plot``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from numformer.cli.app import Threads, _run, app


class Split(StrEnum):
    """What a document is."""

    file = "file"
    line = "line"
    separator = "separator"
    jsonl = "jsonl"


class Axis(StrEnum):
    """What runs along the axis of a picture."""

    step = "step"
    tokens = "tokens"
    seconds = "seconds"


@app.command()
def tokenize(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="UTF-8 text, gzip read too, of any size.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; that of the first FILE with .tokens at its end by default.")
    ] = None,
    vocab: Annotated[
        int | None,
        typer.Option(
            help="Subwords to learn from the text, 0 for bytes.  [default: 8000, bytes without the package tokenizers]",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json instead, or the folder of a model that has one.")
    ] = None,
    documents: Annotated[
        Split,
        typer.Option(help='A document is a file, a line, what is between separators, or the "text" of a JSON line.'),
    ] = Split.file,
    separator: Annotated[str, typer.Option(help="A line that stands between documents.")] = "<|endoftext|>",
    end: Annotated[
        bool, typer.Option("--end/--no-end", help="Whether each document gets the token that ends a text.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Read token files and compare their checksums, write nothing.")
    ] = False,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Turn text into a file of tokens that numformer train reads without holding it in memory."""
    from numformer.cli.tokenizing import check as run_check
    from numformer.cli.tokenizing import run

    if check:
        _run(run_check, files=files, quiet=quiet)
        return
    _run(
        run,
        files=files,
        out=out,
        vocab=vocab,
        tokenizer=tokenizer,
        documents=documents.value,
        separator=separator,
        end=end,
        threads=threads,
        quiet=quiet,
    )


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or their log.csv.")],
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .svg or .pdf.")] = Path("runs.png"),
    x: Annotated[Axis, typer.Option(help="What runs along the axis.")] = Axis.step,
) -> None:
    """Compare runs: a table, and a picture of losses, learning rates and metrics."""
    from numformer.cli.plotting import run

    _run(run, runs=runs, out=out, x=x.value)
