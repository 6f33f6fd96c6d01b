"""``numformer score``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import typer

from numformer.cli import folders, language
from numformer.cli.pairs import Sources, mean_loss
from numformer.data import Pairs, TokenFile, Windows, encode_documents, is_token_file, read_documents, read_files
from numformer.data.language import LanguageVocabulary
from numformer.models import GPT


def run(
    *,
    folder: Path,
    files: list[Path],
    pairs: Sources,
    beams: int,
    length_penalty: float,
    on_bad: str,
    truncate: bool,
    memory: int | None,
    dtype: str | None,
    threads: int | None,
) -> None:
    """Print how well a model says a text, or translates pairs."""
    if threads is not None:
        import numformer as nf

        nf.set_num_threads(threads)
    kind = folders.model_type(folder)
    if memory is not None and kind != folders.TRANSFORMER_XL:
        raise ValueError(f"score: --memory is for a transformer-xl, and {folder} holds another model")
    if kind == folders.TRANSFORMER:
        if files:
            raise ValueError(f"{folder} holds a transformer, which is scored on --pairs or --source and --target")
        _pairs(folder, dtype, pairs, beams, length_penalty, on_bad, truncate)
    else:
        if pairs.given() or not files:
            raise ValueError(f"{folder} holds a language model, which is scored on text: numformer score {folder} FILE")
        _text(folder, dtype, files, memory)


def _text(folder: Path, dtype: str | None, files: list[Path], memory: int | None) -> None:
    model, vocabulary, _ = language.load(folder, dtype)
    context, size = model.config.context, model.config.vocab_size
    tokens, bytes = _tokens(files, vocabulary)
    unit = "byte" if isinstance(vocabulary, language.Bytes) else "token"
    if isinstance(model, GPT):
        windows = Windows(tokens, context, limit=size)
        count, where = windows.targets, f"windows of {context}"
        total = _nats(model, windows)
    else:
        count, reach = len(tokens) - 1, model.config.memory if memory is None else memory
        where = f"segments of {context} with a memory of {reach}"
        total = -float(model.log_likelihood(tokens, memory=memory))
    loss = total / count
    typer.echo(f"{count:,} {unit}s in {where}")
    typer.echo(f"loss {loss:.4f} nats a {unit} ({loss / np.log(2):.3f} bits), perplexity {np.exp(loss):.3f}")
    if bytes is not None and unit != "byte":
        typer.echo(f"{total / np.log(2) / bytes:.3f} bits a byte, {bytes / len(tokens):.2f} bytes a token")


def _nats(model: GPT, windows: Windows) -> float:
    total = 0.0
    for first in range(0, len(windows), 32):
        ids, targets = windows.samples(first, min(first + 32, len(windows)))
        total += int(np.count_nonzero(targets != -100)) * model.infer_loss((ids, targets))
    return total


def _tokens(files: list[Path], vocabulary: LanguageVocabulary) -> tuple[np.ndarray[Any, Any], int | None]:
    """Return the tokens of text and its bytes, or those of a token file."""
    if is_token_file(files[0]):
        if len(files) > 1:
            raise ValueError(f"score: a token file must be the only one, got {files[1]} too")
        return TokenFile(files[0]).tokens, None
    text = read_files(files)
    if isinstance(vocabulary, language.Bytes):
        return text, len(text)
    pieces = encode_documents(read_documents(files), vocabulary.encode)
    return np.concatenate([ids for ids, _ in pieces]), len(text)


def _pairs(
    folder: Path, dtype: str | None, sources: Sources, beams: int, length_penalty: float, on_bad: str, truncate: bool
) -> None:
    from numformer.cli import translation

    model, vocabulary = translation.load(folder, dtype)
    text = sources.read(on_bad, truncate)
    pairs = Pairs.from_text(text, vocabulary, model.config.context, on_bad=on_bad)
    typer.echo(text.report)
    loss = mean_loss(model, pairs)
    typer.echo(f"loss {loss:.4f} nats a token, perplexity {np.exp(loss):.3f}")
    try:
        from sacrebleu import BLEU, CHRF
    except ImportError:
        typer.echo("without the package sacrebleu there is no BLEU: pip install 'numformer[text]'")
        return
    hypotheses = translation.translate(model, vocabulary, pairs.sources, beams=beams, length_penalty=length_penalty)
    references = [[text.targets[i] for i in pairs.order]]
    for metric in (BLEU(), CHRF()):
        typer.echo(f"{metric.corpus_score(hypotheses, references)} ({metric.get_signature()})")
