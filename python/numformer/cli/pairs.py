"""``numformer train --model transformer``."""

from __future__ import annotations

import dataclasses
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import typer

from numformer import files
from numformer.cli import rehearsing, together, translation
from numformer.cli.training import check_device, compute_dtype, new_folder
from numformer.data import (
    BytePairVocabulary,
    ByteVocabulary,
    Pairs,
    ParallelText,
    Vocabulary,
    has_tokenizers,
    load_vocabulary,
    read_pairs,
    read_parallel,
)
from numformer.data.vocabulary import BOS, EOS, FILE
from numformer.models import Transformer, TransformerConfig
from numformer.nn import initial
from numformer.optim import AdamW, decay_groups, inverse_sqrt
from numformer.train import Trainer

ALONG = 200
"""Sentences that are translated at each evaluation."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where pairs come from: one file, or two side by side."""

    pairs: Path | None
    source: Path | None
    target: Path | None
    prefix: str = ""

    def given(self) -> bool:
        """Whether there is any."""
        return any((self.pairs, self.source, self.target))

    def read(self, on_bad: str, truncate: bool) -> ParallelText:
        """Read it and print the report."""
        dash = f"--{self.prefix}"
        if self.pairs is not None and self.source is None and self.target is None:
            text = read_pairs(self.pairs, on_bad=on_bad)
        elif self.pairs is None and self.source is not None and self.target is not None:
            text = read_parallel(self.source, self.target, on_bad=on_bad, truncate=truncate)
        else:
            raise ValueError(f"{dash}pairs FILE or both {dash}source A and {dash}target B must be given")
        return text

    def stem(self) -> str:
        """Name a run."""
        name = (self.pairs or self.source or Path("pairs")).name
        return name.split(".")[0] or "pairs"


def run(
    *,
    training: Sources,
    validation: Sources,
    on_bad: str,
    truncate: bool,
    vocab: int | None,
    out: Path | None,
    layers: int,
    heads: int,
    width: int,
    hidden: int | None,
    context: int | None,
    norm: str,
    dropout: float,
    label_smoothing: float,
    batch: int | None,
    micro_batch: int | None,
    steps: int | None,
    epochs: float | None,
    minutes: float | None,
    lr: float,
    warmup: int | None,
    weight_decay: float,
    beams: int,
    seed: int,
    dtype: str,
    device: str,
    threads: int | None,
    eval_every: int | None,
    watch: dict[str, Any],
    sample_every: int,
    dry_run: bool,
    resume: bool,
    quiet: bool,
) -> None:
    """Train, then print losses, BLEU, translations and where things are.

    `watch` has the options of the Trainer that say what is kept, averaged and stopped.
    """
    ranks = together.start(threads)
    if resume and out is None:
        raise ValueError("train: --resume needs --out, the folder of the run")
    if beams < 1:
        raise ValueError(f"train: beams must be at least 1, got {beams}")
    check_device(device)
    initial.seed("train", seed)
    text = training.read(on_bad, truncate)
    held = validation.read(on_bad, truncate) if validation.given() else None
    if held is None:
        text, held = _hold_out(text, seed)
    folder = Path(ranks.told(lambda: str(out or new_folder(f"transformer-{training.stem()}"))))
    vocabulary = load_vocabulary(folder) if resume else _vocabulary(text, vocab)
    ranks.alike("train", vocabulary=f"{len(vocabulary)} tokens, {zlib.crc32(vocabulary.to_json().encode()):08x}")
    context = context or (512 if isinstance(vocabulary, ByteVocabulary) else 256)
    config = TransformerConfig(
        vocab_size=len(vocabulary),
        context=context,
        encoder_layers=layers,
        decoder_layers=layers,
        heads=heads,
        width=width,
        hidden=hidden,
        dropout=dropout,
        norm=norm,
        label_smoothing=label_smoothing,
        dtype="float64" if dtype == "float64" else "float32",
    )
    pairs, held_pairs = (Pairs.from_text(t, vocabulary, context, on_bad=on_bad) for t in (text, held))
    if held.report is not text.report:
        typer.echo(text.report)
        typer.echo(held.report)
    else:
        typer.echo(f"{text.report}; {len(held_pairs):,} of them held out to validate")
    in_epoch = 1 if batch is None else pairs.batches(batch)
    steps = _steps(steps, epochs, minutes, in_epoch)
    warmup = warmup if warmup is not None else 500 if steps is None else min(1000, max(1, steps // 5))
    model = Transformer(config, rng=np.random.Generator(np.random.Philox(seed)))
    optimizer = AdamW(decay_groups(model.parameters(), weight_decay), lr=lr, betas=(0.9, 0.98), eps=1e-9, clip_norm=1.0)
    along = _some(held_pairs, ALONG)
    references = [held.targets[held_pairs.order[i]] for i in along]

    def measure() -> float:
        hypotheses = translation.translate(model, vocabulary, [held_pairs.sources[i] for i in along], beams=1)
        return translation.bleu(hypotheses, references) or 0.0

    def sample(_: int) -> str:
        some = _some(held_pairs, 3)
        hypotheses = translation.translate(model, vocabulary, [held_pairs.sources[i] for i in some], beams=1)
        sources = [held.sources[held_pairs.order[i]] for i in some]
        return "\n".join(f"{source}\n  -> {said}" for source, said in zip(sources, hypotheses, strict=True))

    def save() -> None:
        model.save_pretrained(folder)
        files.write_text(folder / FILE, vocabulary.to_json())

    measured = translation.bleu(["a"], ["a"]) is not None
    if not measured:
        typer.echo("without the package sacrebleu there is no BLEU: pip install 'numformer[text]'")
    trainer = Trainer(
        model,
        optimizer,
        pairs,
        batch_size=batch,
        micro_batch=micro_batch,
        steps=steps,
        max_seconds=None if minutes is None else 60 * minutes,
        schedule=inverse_sqrt(lr, warmup=warmup),
        validation=held_pairs,
        metrics={"bleu": measure} if measured else {},
        best="bleu" if measured else "validation_loss",
        eval_every=max(in_epoch, 100) if eval_every is None else eval_every,
        out_dir=folder,
        seed=seed,
        dtype=compute_dtype(dtype),
        device=device,
        config=config.to_json(),
        progress=not quiet,
        on_best=save,
        sample=sample,
        sample_every=sample_every,
        **watch,
    )
    if resume:
        trainer.resume()
    count = sum(p.value.size for p in model.parameters())
    typer.echo(
        f"transformer: {count:,} parameters, {len(vocabulary):,} {vocabulary.name}, {len(pairs):,} pairs to train on, "
        f"{in_epoch:,} batches an epoch"
    )
    if dry_run:
        rehearsing.run(trainer)
        return
    begin = time.monotonic()
    try:
        history = trainer.run()
    except KeyboardInterrupt:
        if ranks.first:
            typer.echo(
                f"interrupted after step {trainer.step}; the checkpoint is whole: "
                f"go on with --resume --out {folder}, or try numformer translate {folder}",
                err=True,
            )
        raise
    typer.echo(f"trained for {time.monotonic() - begin:.0f} s, {trainer.step} steps; ", nl=False)
    losses = [row["loss"] for row in history[-10:]]
    typer.echo(f"train loss {np.mean(losses):.4f} (mean of the last {len(losses)} logged)")
    if ranks.first:
        _report(folder, held, held_pairs, beams)
    ranks.wait()


def _hold_out(text: ParallelText, seed: int) -> tuple[ParallelText, ParallelText]:
    """Take a twentieth of the pairs, 1000 at most, to validate on."""
    if len(text) < 2:
        raise ValueError(f"{text.report}; at least 2 pairs are needed, one of them to validate on")
    count = min(1000, max(1, len(text) // 20))
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(text))
    return text.select(sorted(order[count:])), text.select(sorted(order[:count]))


def _vocabulary(text: ParallelText, vocab: int | None) -> Vocabulary:
    """Learn a vocabulary of both languages; bytes for 0, and where the package for it is not installed."""
    if vocab is None and not has_tokenizers():
        typer.echo("without the package tokenizers a token is a byte: pip install 'numformer[text]' for subwords")
    if vocab == 0 or (vocab is None and not has_tokenizers()):
        return ByteVocabulary()
    return BytePairVocabulary.train([*text.sources, *text.targets], 8000 if vocab is None else vocab)


def _steps(steps: int | None, epochs: float | None, minutes: float | None, in_epoch: int) -> int | None:
    """Return how many steps there are; None where only the clock ends the run."""
    if steps is not None and epochs is not None:
        raise ValueError("train: --steps or --epochs may be given, not both")
    if epochs is not None and not 0 < epochs < 1e6:
        raise ValueError(f"train: epochs must be above 0, got {epochs}")
    if epochs is not None or (steps is None and minutes is None):
        return max(1, round((10 if epochs is None else epochs) * in_epoch))
    return steps


def _some(pairs: Pairs, count: int) -> list[int]:
    """Return indices of samples of all lengths."""
    return sorted({int(i) for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs)))})


def _report(folder: Path, text: ParallelText, pairs: Pairs, beams: int) -> None:
    """Judge the best weights on all of the validation set, and show what they do."""
    model, vocabulary = translation.load(folder)
    loss = mean_loss(model, pairs)
    typer.echo(f"validation loss {loss:.4f} nats a token, perplexity {np.exp(loss):.2f}, of the best weights")
    hypotheses = translation.translate(model, vocabulary, pairs.sources, beams=beams)
    score = translation.bleu(hypotheses, [text.targets[i] for i in pairs.order])
    if score is not None:
        typer.echo(f"validation BLEU {score:.2f}, {len(pairs):,} sentences, beam search of {beams}")
    for i in _some(pairs, 4):
        source, target = (side[pairs.order[i]] for side in (text.sources, text.targets))
        typer.echo(f"\n  {source}\n  -> {hypotheses[i]}\n  =? {target}")
    typer.echo("")
    shown = int(np.argmin(np.abs(pairs.lengths[:, 1] - 13)))  # short enough for its tokens to be read
    if not draw_attention(model, vocabulary, pairs.sources[shown], folder / "attention.png"):
        typer.echo("without the package matplotlib there are no pictures: pip install 'numformer[plot]'")
    names = ("model.safetensors", "config.json", FILE, "checkpoint.safetensors", "log.csv", "loss.png", "attention.png")
    for name in names:
        if (folder / name).is_file():
            typer.echo(f"wrote {folder / name}")


def mean_loss(model: Transformer, pairs: Pairs) -> float:
    """Return the mean loss over all targets."""
    total, count = 0.0, 0
    for first in range(0, len(pairs), translation.SENTENCES):
        piece = pairs.samples(first, min(first + translation.SENTENCES, len(pairs)))
        targets = len(piece[2].values)
        total += targets * model.infer_loss(piece)
        count += targets
    return total / count


def draw_attention(model: Transformer, vocabulary: Vocabulary, source: np.ndarray[Any, Any], path: Path) -> bool:
    """Draw where each token of a translation looks, the mean over the heads of each layer; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    ours = np.append(source, EOS)
    theirs = model.generate(ours)
    weights = model.cross_attention(ours, np.append(BOS, theirs)[: len(theirs)]).mean(axis=1)
    columns, rows = ([vocabulary.decode([i]) if i != EOS else "</s>" for i in ids] for ids in (ours, theirs))
    layers = len(weights)
    figure = Figure(figsize=((1.5 + 0.25 * len(columns)) * layers, 1.5 + 0.25 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for layer in range(layers):
        axes = figure.add_subplot(1, layers, layer + 1)
        axes.imshow(weights[layer], cmap="Greys", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        axes.set_title(f"layer {layer + 1}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font without the letter shows a box
        files.replace(path, lambda beside: figure.savefig(beside, format="png", dpi=120))
    return True
