"""nanoGPT's CPU setting, trained to the end: 4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 steps, on bytes
of English.

Both sides start from the same weights and see the same batches; wall time counts training steps only. The text is
the first megabyte of
``$NUMFORMER_DATA/multi30k/train.en.gz`` if there is one, else the English reference inside CPython.
"""

import gzip
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import torch
from numformer import data
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW, decay_groups

from benchmarks import common
from benchmarks.torch_gpt import TorchGPT
from benchmarks.torch_peer import TorchStep, train_in_turns
from benchmarks.training_flops import step_flops

CONFIG = GPTConfig(vocab_size=256, context=64, layers=4, heads=4, width=128)
BATCH, STEPS, EVALUATION = 12, 2000, 400
PEERS = ["torch"]


def text() -> np.ndarray:
    """About a megabyte of English, as bytes."""
    path = pathlib.Path(os.environ.get("NUMFORMER_DATA", "")) / "multi30k" / "train.en.gz"
    if "NUMFORMER_DATA" in os.environ and path.exists():
        return data.to_tokens(gzip.decompress(path.read_bytes())[:1_000_000].decode("utf-8", "ignore"))
    return data.to_tokens(data.builtin_text()[:1_000_000])


def learning_rate(step: int) -> float:
    """Warm-up over 100 steps to 1e-3, then a cosine down to 1e-4."""
    if step < 100:
        return 1e-3 * (step + 1) / 100
    return 1e-4 + 0.5 * (1e-3 - 1e-4) * (1 + np.cos(np.pi * (step - 100) / (STEPS - 100)))


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """Train both, with the largest number of threads."""
    count = max(threads)
    common.set_threads(count)
    training, validation = data.split(text())
    windows, held_out = data.Windows(training, CONFIG.context), data.Windows(validation, CONFIG.context)
    model = GPT(CONFIG, rng=0)
    theirs = TorchGPT(CONFIG).copy(model.state_dict())
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.99), clip_norm=1.0)
    torch_step = TorchStep(theirs, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, clip_norm=1.0)
    common.print_header("nanogpt", PEERS)
    top = common.ceiling()

    def ours(step: int, batch: Sequence[np.ndarray]) -> None:
        _, backward = model.loss((batch[0], batch[1]))
        backward()
        optimizer.step(lr=learning_rate(step))

    seconds = train_in_turns(
        STEPS,
        100,
        lambda step: windows.draw(BATCH, seed=0, step=step),
        ours,
        lambda step, batch: torch_step(*batch, lr=learning_rate(step)),
    )
    losses: dict[str, list[float]] = {"numformer": [], "torch": []}
    for step in range(EVALUATION // BATCH):
        ids, targets = held_out.draw(BATCH, seed=1, step=step)
        losses["numformer"].append(float(model.loss((ids, targets))[0]))
        with torch.no_grad():
            losses["torch"].append(float(theirs.loss(torch.from_numpy(ids).long(), torch.from_numpy(targets).long())))
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    print(f"validation loss (nats a byte): numformer {means['numformer']:.4f}, torch {means['torch']:.4f}")
    if abs(means["numformer"] - means["torch"]) > 0.03:
        raise RuntimeError(f"the losses differ by more than 0.03: {means}")
    per_step = {name: value / STEPS for name, value in seconds.items()}
    result = common.Result(
        "nanogpt",
        f"{STEPS} steps, mean of a step",
        count,
        step_flops(CONFIG, BATCH),
        per_step,
        top,
        1.0,
        {"loss": means, "total_seconds": seconds},
    )
    common.print_result(result, PEERS)
    return common.write("nanogpt", [result], folder)
