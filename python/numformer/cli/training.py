"""``numformer train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import typer

from numformer.data import Streams, Windows, builtin_text, read_files, split, to_text, to_tokens
from numformer.models import GPT, GPTConfig, TransformerXL, TransformerXLConfig
from numformer.nn import initial
from numformer.optim import AdamW, cosine, decay_groups
from numformer.train import Trainer


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
    threads: int | None,
    eval_every: int,
    watch: dict[str, Any],
    resume: bool,
    quiet: bool,
) -> None:
    """Train, then print losses, a sample and where things are; check everything before the first file is written.

    `watch` has the options of the Trainer that say what is kept, averaged and stopped.
    """
    if threads is not None:
        import numformer as nf

        nf.set_num_threads(threads)
    if resume and out is None:
        raise ValueError("train: --resume needs --out, the folder of the run")
    tokens = read_files(files) if files else to_tokens(builtin_text())
    training, validation = split(tokens)
    if len(training) <= context or len(validation) < 2:
        raise ValueError(
            f"train: the text has {len(tokens)} bytes, too few for a context of {context}; "
            "add text or shorten --context"
        )
    sizes: dict[str, Any] = {
        "vocab_size": 256,
        "context": context,
        "layers": layers,
        "heads": heads,
        "width": width,
        "dropout": dropout,
        "dtype": "float64" if dtype == "float64" else "float32",
    }
    rng = np.random.Generator(np.random.Philox(initial.seed("train", seed)))
    gpt: GPT | TransformerXL
    parts: list[Windows | Streams]
    if model == "transformer-xl":
        if batch is None:
            raise ValueError("train: batch gradient descent is for --model gpt: a transformer-xl reads streams")
        gpt = TransformerXL(TransformerXLConfig(**sizes, memory=context if memory is None else memory), rng=rng)
        # Micro-batches of an evaluation are segments of the same streams, too.
        parts = [
            Streams(text, context, count) for text, count in ((training, batch), (validation, micro_batch or batch))
        ]
    else:
        gpt = GPT(GPTConfig(**sizes), rng=rng)
        parts = [Windows(text, context) for text in (training, validation)]
    optimizer = AdamW(
        decay_groups(gpt.parameters(), weight_decay), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, clip_norm=1.0
    )
    folder = out or new_folder(f"{model}-{files[0].stem if files else 'python'}")
    trainer = Trainer(
        gpt,
        optimizer,
        parts[0],
        batch_size=batch,
        micro_batch=micro_batch,
        steps=steps,
        max_seconds=None if minutes is None else 60 * minutes,
        schedule=cosine(lr, steps=steps, warmup=min(100, steps // 10), final=lr / 10),
        validation=parts[1],
        eval_every=eval_every,
        out_dir=folder,
        seed=seed,
        dtype=compute_dtype(dtype),
        config=gpt.config.to_json(),
        progress=not quiet,
        on_save=lambda: gpt.save_pretrained(folder),
        **watch,
    )
    if resume:
        trainer.resume()
    count = sum(p.value.size for p in gpt.parameters())
    source = "Python's reference manual" if not files else ", ".join(map(str, files))
    typer.echo(f"{model}: {count:,} parameters, {len(training):,} bytes to train on ({source})")
    begin = time.monotonic()
    try:
        history = trainer.run()
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted after step {trainer.step}; the checkpoint is whole: "
            f"go on with --resume --out {folder}, or try numformer generate {folder}",
            err=True,
        )
        raise
    with trainer.averaged():  # as they were evaluated and written
        _report(gpt, history, folder, validation, seed, time.monotonic() - begin)


def _report(
    gpt: GPT | TransformerXL,
    history: list[dict[str, Any]],
    folder: Path,
    validation: np.ndarray[Any, Any],
    seed: int,
    seconds: float,
) -> None:
    losses = [row["loss"] for row in history[-10:]]
    held = next((row["validation_loss"] for row in reversed(history) if row["validation_loss"] is not None), None)
    typer.echo(f"trained for {seconds:.0f} s; train loss {np.mean(losses):.4f} (mean of the last {len(losses)} logged)")
    if held is not None:
        typer.echo(f"validation loss {held:.4f} nats a byte ({held / np.log(2):.3f} bits)")
    prompt = validation[: gpt.config.context // 4 or 1]
    text = to_text(gpt.generate(prompt, 300, temperature=0.8, seed=seed))
    typer.echo(f"\nA sample, after the first {len(prompt)} bytes of the validation text:\n{text}\n")
    for name in ("model.safetensors", "config.json", "checkpoint.safetensors", "log.csv", "loss.png"):
        if (folder / name).is_file():
            typer.echo(f"wrote {folder / name}")


def compute_dtype(name: str) -> np.dtype[Any] | None:
    """Return what the Trainer computes in, None for the dtype of the parameters."""
    if name != "bfloat16":
        return None
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def new_folder(stem: str) -> Path:
    """Choose a name under runs/ that is not taken."""
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder
