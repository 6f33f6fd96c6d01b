"""``numformer score``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer

from numformer.cli import folders
from numformer.cli.pairs import Sources, mean_loss
from numformer.data import Pairs, Windows, read_files


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
        _pairs(folder, pairs, beams, length_penalty, on_bad, truncate)
    else:
        if pairs.given() or not files:
            raise ValueError(f"{folder} holds a language model, which is scored on text: numformer score {folder} FILE")
        _text(folder, files, memory)


def _text(folder: Path, files: list[Path], memory: int | None) -> None:
    from numformer.models import GPT, TransformerXL

    remembers = folders.model_type(folder) == folders.TRANSFORMER_XL
    model = (TransformerXL if remembers else GPT).from_pretrained(folder)
    if model.config.vocab_size != 256:
        raise ValueError(
            f"{folder}: the model has {model.config.vocab_size} tokens; this command knows byte-level models, of 256"
        )
    if isinstance(model, TransformerXL):
        tokens = read_files(files)
        count = len(tokens) - 1
        reach = model.config.memory if memory is None else memory
        loss = -float(model.log_likelihood(tokens, memory=memory)) / count
        typer.echo(f"{count:,} bytes in segments of {model.config.context} with a memory of {reach}")
        _say(loss)
        return
    windows = Windows(read_files(files), model.config.context)
    total = 0.0
    for first in range(0, len(windows), 32):
        ids, targets = windows.samples(first, min(first + 32, len(windows)))
        total += int(np.count_nonzero(targets != -100)) * model.infer_loss((ids, targets))
    loss = total / windows.targets
    typer.echo(f"{windows.targets:,} bytes in windows of {model.config.context}")
    _say(loss)


def _say(loss: float) -> None:
    typer.echo(f"loss {loss:.4f} nats a byte ({loss / np.log(2):.3f} bits), perplexity {np.exp(loss):.3f}")


def _pairs(folder: Path, sources: Sources, beams: int, length_penalty: float, on_bad: str, truncate: bool) -> None:
    from numformer.cli import translation

    model, vocabulary = translation.load(folder)
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
