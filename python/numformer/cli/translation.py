"""``numformer translate``, and what training and scoring share with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from numformer.cli import folders
from numformer.data import Vocabulary, load_vocabulary, pad_sources, read_lines, split_lines
from numformer.models import Transformer

SENTENCES = 64
"""Translated at once."""


def load(folder: Path, dtype: str | None = None) -> tuple[Transformer, Vocabulary]:
    """Read a model, with weights of a dtype, and its vocabulary."""
    folders.require(folder, folders.TRANSFORMER)
    vocabulary = load_vocabulary(folder)
    model = Transformer.from_pretrained(folder, dtype=dtype)
    if model.config.vocab_size != len(vocabulary):
        raise ValueError(
            f"{folder}: tokenizer.json has {len(vocabulary)} tokens and the model {model.config.vocab_size}; "
            "they do not belong together"
        )
    return model, vocabulary


def translate(
    model: Transformer,
    vocabulary: Vocabulary,
    sources: Sequence[np.ndarray[Any, Any]],
    *,
    beams: int,
    length_penalty: float = 0.6,
) -> list[str]:
    """Translate token sequences, those of like length together; the order of the result is that of the sources."""
    result = [""] * len(sources)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for first in range(0, len(order), SENTENCES):
        some = order[first : first + SENTENCES]
        rows = model.generate(pad_sources([sources[i] for i in some]), num_beams=beams, length_penalty=length_penalty)
        for i, row in zip(some, rows, strict=True):
            result[i] = vocabulary.decode(row)
    return result


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float | None:
    """Return the BLEU of a whole set, None where sacrebleu is not installed."""
    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        return None
    return float(corpus_bleu(list(hypotheses), [list(references)]).score)


def run(
    *,
    folder: Path,
    file: Path | None,
    beams: int,
    length_penalty: float,
    on_bad: str,
    dtype: str | None,
    threads: int | None,
) -> None:
    """Translate each line; a line that cannot be translated stays an empty one, so that none is shifted."""
    if threads is not None:
        import numformer as nf

        nf.set_num_threads(threads)
    model, vocabulary = load(folder, dtype)
    lines = split_lines(sys.stdin.buffer.read(), "stdin") if file is None else read_lines(file)
    problems: dict[str, list[int]] = {}
    numbers, texts = [], []
    for number, line in enumerate(lines):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            problems.setdefault("not UTF-8", []).append(number + 1)
            continue
        if text:
            numbers.append(number)
            texts.append(text)
    kept = []
    for number, ids in zip(numbers, vocabulary.encode(texts), strict=True):
        if len(ids) < model.config.context:
            kept.append((number, ids))
        else:
            problems.setdefault("longer than the model", []).append(number + 1)
    for reason, where in problems.items():
        shown = ", ".join(map(str, where[:10])) + (", ..." if len(where) > 10 else "")
        said = f"{len(where)} {reason} (line{'s' if len(where) > 1 else ''} {shown})"
        if on_bad == "error":
            raise ValueError(f"translate: {said}; the text is refused")
        typer.echo(f"numformer: left empty: {said}", err=True)
    result = [""] * len(lines)
    sources = [ids for _, ids in kept]
    translations = translate(model, vocabulary, sources, beams=beams, length_penalty=length_penalty)
    for (number, _), text in zip(kept, translations, strict=True):
        result[number] = " ".join(text.split("\n"))  # a line stays a line
    for text in result:
        typer.echo(text)
