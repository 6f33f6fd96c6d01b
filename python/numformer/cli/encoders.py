"""What ``numformer embed`` and ``numformer fill`` do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import typer

from numformer import files, ops
from numformer.cli import folders
from numformer.data import Tokenizer, read_lines, split_lines
from numformer.models import BERT, Longformer, RoBERTa

_MODELS: dict[str, type[BERT]] = {"bert": BERT, "roberta": RoBERTa, "longformer": Longformer}


def load(folder: Path, dtype: str | None = None) -> tuple[BERT, Tokenizer]:
    """Read an encoder, with weights of a dtype, and its tokenizer."""
    kind = folders.model_type(folder)
    if kind not in _MODELS:
        folders.require(folder, "bert")
        raise ValueError(f"{folder} holds a model of type {kind!r}; this command knows {', '.join(_MODELS)}")
    tokenizer = Tokenizer.from_folder(folder)
    model = _MODELS[kind].from_pretrained(folder, dtype=dtype)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{folder}: tokenizer.json has {len(tokenizer)} tokens and the model {model.config.vocab_size}; "
            "they do not belong together"
        )
    return model, tokenizer


def embed(
    *,
    folder: Path,
    file: Path | None,
    out: Path | None,
    batch: int,
    context: int | None,
    normalize: bool,
    dtype: str | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Embed the lines of a file and write an array."""
    _threads(threads)
    if out is None:
        if file is None:
            raise ValueError("embed: texts from stdin need --out, the file to write")
        out = file.with_name(file.name + ".npy")
    model, tokenizer = load(folder, dtype)
    limit = model.config.context if context is None else context
    if not 3 <= limit <= model.config.context:
        raise ValueError(f"embed: --context must be between 3 and the model's {model.config.context}, got {limit}")
    name = "stdin" if file is None else str(file)
    lines = split_lines(sys.stdin.buffer.read(), name) if file is None else read_lines(file)
    if not lines:
        raise ValueError(f"embed: {name} has no lines")
    ids = tokenizer.encode(_texts(lines, name), context=limit)
    with _progress(len(ids), quiet) as progress:
        vectors = model.embed(ids, normalize=normalize, batch_size=batch, progress=progress)

    def write(beside: Path) -> None:
        with beside.open("wb") as handle:
            np.save(handle, vectors)

    files.replace(out, write)
    typer.echo(f"{out}: {vectors.dtype} {vectors.shape}")


def fill(*, folder: Path, text: str, top: int, dtype: str | None, threads: int | None) -> None:
    """Print the most probable words at each mask of a text."""
    _threads(threads)
    if top < 1:
        raise ValueError(f"fill: --top must be at least 1, got {top}")
    model, tokenizer = load(folder, dtype)
    if model.config.head not in ("masked_lm", "pretraining"):
        raise ValueError(f"{folder}: the model has no head for masked words (its head is {model.config.head})")
    ids = tokenizer.encode([text])[0]
    masks = np.flatnonzero(ids == tokenizer.id_of("mask"))
    if not masks.size:
        raise ValueError(f"fill: the text must have the mask {tokenizer.special['mask']}, got {text!r}")
    answer = model.infer(ids)
    logits = (answer[0] if isinstance(answer, tuple) else answer)[masks]
    probabilities = ops.softmax(logits)
    for number, (place, row) in enumerate(zip(masks, probabilities, strict=True), 1):
        if len(masks) > 1:
            typer.echo(f"mask {number}:")
        for index in np.argsort(-row, kind="stable")[:top]:
            filled = ids.copy()
            filled[place] = index
            word = tokenizer.decode([index], special=True).strip() or tokenizer.token(index)
            typer.echo(f"{row[index]:7.2%}  {word:<20}  {tokenizer.decode(filled)}")


def _threads(threads: int | None) -> None:
    if threads is not None:
        import numformer as nf

        nf.set_num_threads(threads)


def _texts(lines: list[bytes], name: str) -> list[str]:
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"embed: line {number} of {name} is not UTF-8") from None
    return texts


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """Give what shows how far one is: a bar on a terminal, nothing elsewhere; on stderr."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embedding", total=total)
        yield lambda done: bar.update(task, completed=done)
