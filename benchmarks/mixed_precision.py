"""Loss curves of 16 bits beside float32 on real text: nanoGPT's CPU setting (4 layers, 4 heads, 128 wide, context 64,
batch 12), on bytes of English.

Runs in bfloat16 and float16 begin with the weights and see the batches of a run in float32. A second run in float32, of
another seed, says what noise is: how far apart two runs are that differ by chance only. The text is that of `nanogpt`.
The first model is then written, read in bfloat16 and in int8, and asked beside itself in float32.
"""

import json
import pathlib
import tempfile

import numpy as np
from numformer.data import Windows, split
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW, cosine, decay_groups
from numformer.train import Trainer

from benchmarks import common
from benchmarks.nanogpt import text

CONFIG = GPTConfig(vocab_size=256, context=64, layers=4, heads=4, width=128)
BATCH, STEPS, LR = 12, 1000, 1e-3
WINDOW = 100  # steps whose mean is a point of a curve
RUNS = (("float32", 0), ("float32", 1), ("bfloat16", 0), ("float16", 0))


def train(dtype: str, seed: int) -> tuple[GPT, dict[str, object]]:
    """One run: the model, and points of its curve, its validation loss, what float16's scale did."""
    training, validation = split(text())
    model = GPT(CONFIG, rng=seed)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=LR, betas=(0.9, 0.99), clip_norm=1.0)
    trainer = Trainer(
        model,
        optimizer,
        Windows(training, CONFIG.context),
        batch_size=BATCH,
        steps=STEPS,
        schedule=cosine(LR, steps=STEPS, warmup=100, final=LR / 10),
        validation=Windows(validation, CONFIG.context),
        log_every=1,
        seed=seed,
        dtype=None if dtype == "float32" else dtype,
        progress=False,
    )
    rows = trainer.run()
    losses = np.array([row["loss"] for row in rows])
    return model, {
        "dtype": dtype,
        "seed": seed,
        "curve": losses.reshape(-1, WINDOW).mean(axis=1).round(4).tolist(),
        "validation_loss": rows[-1]["validation_loss"],
        "skipped": trainer.skipped,
        "loss_scale": None if trainer.loss_scale is None else trainer.loss_scale.value,
    }


def infer(model: GPT, dtype: str) -> dict[str, float]:
    """How far logits and loss of the model in fewer bits are from those in float32, on the validation text."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        narrow = GPT.from_pretrained(folder, dtype=dtype)
    windows = Windows(split(text())[1], CONFIG.context)
    pieces = [windows.samples(first, first + 100) for first in range(0, min(len(windows), 1000), 100)]
    losses = [np.mean([one.infer_loss(piece) for piece in pieces]) for one in (model, narrow)]
    logits, theirs = (one.infer(pieces[0][0]) for one in (model, narrow))
    error = theirs - logits
    prompt = pieces[0][0][:20, :16]
    tokens = [one.generate(prompt, 48, temperature=0) for one in (model, narrow)]
    return {
        "loss_float32": float(losses[0]),
        f"loss_{dtype}": float(losses[1]),
        "perplexity_float32": float(np.exp(losses[0])),
        f"perplexity_{dtype}": float(np.exp(losses[1])),
        "logits_rms": float(np.sqrt(np.mean((logits - logits.mean(axis=-1, keepdims=True)) ** 2))),
        "error_rms": float(np.sqrt(np.mean(error**2))),
        "error_largest": float(np.abs(error).max()),
        "same_best_token": float(np.mean(logits.argmax(axis=-1) == theirs.argmax(axis=-1))),
        "same_greedy_texts": float(np.mean((tokens[0] == tokens[1]).all(axis=1))),
    }


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """All runs, with the largest number of threads."""
    common.set_threads(max(threads))
    made = [train(*one) for one in RUNS]
    runs = [figures for _, figures in made]
    inference = {dtype: infer(made[0][0], dtype) for dtype in ("bfloat16", "int8")}
    first = np.array(runs[0]["curve"])
    print(f"\nmixed_precision: {STEPS} steps; nats a byte; distance of means of {WINDOW} steps from the first run")
    print(f"{'dtype':10}{'seed':>5}{'validation':>12}{'largest':>9}{'mean':>9}{'signed':>9}")
    for one in runs:
        apart = np.array(one["curve"]) - first
        one["apart"] = {"largest": float(np.abs(apart).max()), "mean": float(np.abs(apart).mean())}
        figures = f"{np.abs(apart).max():9.4f}{np.abs(apart).mean():9.4f}{apart.mean():9.4f}"
        print(f"{one['dtype']:10}{one['seed']:5}{one['validation_loss']:12.4f}{figures}", flush=True)
    for dtype, figures in inference.items():
        print(f"{dtype} for use: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mixed_precision.json"
    found = {"machine": common.machine(), "steps": STEPS, "runs": runs, "inference": inference}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path
