"""``numformer train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import typer

from numformer.cli import language, rehearsing, together
from numformer.data import Streams
from numformer.data.vocabulary import FILE
from numformer.models import GPT, GPTConfig, TransformerXL, TransformerXLConfig
from numformer.nn import initial
from numformer.nn.context import compute_dtype as known
from numformer.ops import dispatch
from numformer.optim import AdamW, cosine, decay_groups
from numformer.train import Trainer
from numformer.train.record import SAMPLES

SAMPLE = 200
"""Tokens of a sample along the way."""


def run(
    *,
    model: str,
    memory: int | None,
    files: list[Path],
    out: Path | None,
    layers: int,
    heads: int,
    width: int,
    context: int,
    batch: int | None,
    micro_batch: int | None,
    steps: int,
    minutes: float | None,
    lr: float,
    weight_decay: float,
    dropout: float,
    seed: int,
    dtype: str,
    device: str,
    threads: int | None,
    eval_every: int,
    watch: dict[str, Any],
    packing: bool | None,
    sample_every: int,
    dry_run: bool,
    resume: bool,
    quiet: bool,
) -> None:
    """Train, then print losses, a sample and where things are; check everything before the first file is written.

    `watch` has the options of the Trainer that say what is kept, averaged and stopped.
    """
    ranks = together.start(threads)
    if resume and out is None:
        raise ValueError("train: --resume needs --out, the folder of the run")
    check_device(device)
    corpus = language.corpus(files, context, packing)
    sizes: dict[str, Any] = {
        "vocab_size": corpus.vocab_size,
        "context": context,
        "layers": layers,
        "heads": heads,
        "width": width,
        "dropout": dropout,
        "dtype": "float64" if dtype == "float64" else "float32",
    }
    rng = np.random.Generator(np.random.Philox(initial.seed("train", seed)))
    gpt: GPT | TransformerXL
    training: Any = corpus.training
    validation: Any = corpus.validation
    if model == "transformer-xl":
        if batch is None or packing:
            raise ValueError(
                "train: batch gradient descent and --packing are for a gpt: a transformer-xl reads streams"
            )
        if ranks.size > 1:
            raise ValueError("train: a transformer-xl is trained by one process: its checkpoint has one memory")
        gpt = TransformerXL(TransformerXLConfig(**sizes, memory=context if memory is None else memory), rng=rng)
        # Micro-batches of an evaluation are segments of the same streams, too.
        training = Streams(training.tokens, context, batch)
        validation = Streams(validation.tokens, context, micro_batch or batch)
    else:
        gpt = GPT(GPTConfig(**sizes), rng=rng)
    optimizer = AdamW(
        decay_groups(gpt.parameters(), weight_decay), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, clip_norm=1.0
    )

    def sample(step: int) -> str:
        return corpus.decode(gpt.generate(corpus.prompt, SAMPLE, temperature=0.8, seed=(seed + step) % 2**32))

    def save() -> None:
        gpt.save_pretrained(folder)
        corpus.save(folder)

    folder = Path(ranks.told(lambda: str(out or new_folder(f"{model}-{files[0].stem if files else 'python'}"))))
    trainer = Trainer(
        gpt,
        optimizer,
        training,
        batch_size=batch,
        micro_batch=micro_batch,
        steps=steps,
        max_seconds=None if minutes is None else 60 * minutes,
        schedule=cosine(lr, steps=steps, warmup=min(100, steps // 10), final=lr / 10),
        validation=validation,
        eval_every=eval_every,
        out_dir=folder,
        seed=seed,
        dtype=compute_dtype(dtype),
        device=device,
        config=gpt.config.to_json(),
        progress=not quiet,
        on_save=save,
        sample=sample,
        sample_every=sample_every,
        **watch,
    )
    if resume:
        trainer.resume()
    count = sum(p.value.size for p in gpt.parameters())
    tokens = len(corpus.training.tokens)
    typer.echo(f"{model}: {count:,} parameters, {tokens:,} {corpus.unit}s to train on ({corpus.name})")
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
                f"go on with --resume --out {folder}, or try numformer generate {folder}",
                err=True,
            )
        raise
    if ranks.first:
        with trainer.averaged():  # as they were evaluated and written
            _report(gpt, history, folder, corpus, seed, time.monotonic() - begin)
    ranks.wait()


def _report(
    gpt: GPT | TransformerXL,
    history: list[dict[str, Any]],
    folder: Path,
    corpus: language.Corpus,
    seed: int,
    seconds: float,
) -> None:
    losses = [row["loss"] for row in history[-10:]]
    held = next((row["validation_loss"] for row in reversed(history) if row["validation_loss"] is not None), None)
    typer.echo(f"trained for {seconds:.0f} s; train loss {np.mean(losses):.4f} (mean of the last {len(losses)} logged)")
    if held is not None:
        typer.echo(f"validation loss {held:.4f} nats a {corpus.unit} ({held / np.log(2):.3f} bits)")
    prompt = corpus.prompt
    text = corpus.decode(gpt.generate(prompt, 300, temperature=0.8, seed=seed))
    typer.echo(f"\nA sample, after the first {len(prompt)} {corpus.unit}s of the validation text:\n{text}\n")
    names = ("model.safetensors", "config.json", FILE, "checkpoint.safetensors", "log.csv", SAMPLES, "loss.png")
    for name in names:
        if (folder / name).is_file():
            typer.echo(f"wrote {folder / name}")


def check_device(device: str) -> None:
    """Raise ValueError where a device cannot be used, with the reason."""
    if device == "cuda" and not (status := dispatch.cuda_status())["usable"]:
        raise ValueError(f"train: --device cuda cannot be used: {status['reason']}")


def compute_dtype(name: str) -> np.dtype[Any] | None:
    """Return what the Trainer computes in, None for the dtype of the parameters."""
    return known("train", name) if name in ("bfloat16", "float16") else None


def new_folder(stem: str) -> Path:
    """Choose a name under runs/ that is not taken."""
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder
