"""The commands and their options; what they do is loaded when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="numformer",
    help="Train and run Transformers on NumPy arrays and native kernels.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class ModelKind(StrEnum):
    """Models that can be trained."""

    gpt = "gpt"


class DType(StrEnum):
    """Compute dtypes."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"


def _run(command: Callable[..., None], **options: Any) -> None:
    """Run a command; a mistake of the user is one line and exit code 2, Ctrl-C is 130."""
    try:
        command(**options)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        typer.echo(f"numformer: {_line(error)}", err=True)
        raise typer.Exit(2) from None


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


@app.command()
def train(
    files: Annotated[
        list[Path] | None, typer.Argument(help="UTF-8 text to train on; Python's own reference manual by default.")
    ] = None,
    model: Annotated[ModelKind, typer.Option(help="What to train.")] = ModelKind.gpt,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; runs/NAME by default.")] = None,
    layers: Annotated[int, typer.Option(help="Blocks.")] = 4,
    heads: Annotated[int, typer.Option(help="Attention heads; they divide the width.")] = 4,
    width: Annotated[int, typer.Option(help="Channels.")] = 128,
    context: Annotated[int, typer.Option(help="Longest sequence, in bytes.")] = 128,
    batch: Annotated[int, typer.Option(help="Sequences a step; 0 is batch gradient descent.")] = 8,
    batch_gradient_descent: Annotated[
        bool, typer.Option("--batch-gradient-descent", help="Each step is on the whole text: the same as --batch 0.")
    ] = False,
    micro_batch: Annotated[int | None, typer.Option(help="Sequences in memory at once.")] = None,
    steps: Annotated[int, typer.Option(help="Updates.")] = 2500,
    lr: Annotated[float, typer.Option(help="Highest learning rate, after the warm-up.")] = 3e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW, on matrices.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="Probability.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of weights, batches and dropout.")] = 0,
    dtype: Annotated[DType, typer.Option(help="To compute in.")] = DType.float32,
    threads: Annotated[int | None, typer.Option(help="Processors to use; all by default.")] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations and checkpoints.")] = 250,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train a byte-level model on text and write weights, log and picture into a folder."""
    from numformer.cli.training import run

    _run(
        run,
        files=files or [],
        model=model.value,
        out=out,
        layers=layers,
        heads=heads,
        width=width,
        context=context,
        batch=None if batch_gradient_descent or batch == 0 else batch,
        micro_batch=micro_batch,
        steps=steps,
        lr=lr,
        weight_decay=weight_decay,
        dropout=dropout,
        seed=seed,
        dtype=dtype.value,
        threads=threads,
        eval_every=eval_every,
        resume=resume,
        quiet=quiet,
    )


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a trained model.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    max_new_tokens: Annotated[int, typer.Option(help="Bytes to add.")] = 300,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable byte.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most probable bytes.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the most probable bytes that reach p.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processors to use; all by default.")] = None,
) -> None:
    """Continue a text."""
    from numformer.cli.generation import run

    _run(
        run,
        folder=folder,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        threads=threads,
    )


@app.command()
def info() -> None:
    """Say what this installation runs on."""
    from numformer.cli.information import run

    _run(run)


def main() -> None:
    """Entry point."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # generated text may hold what the terminal cannot show
    app()
