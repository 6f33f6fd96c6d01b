"""The encoder-decoder on Multi30k, German to English: the first steps of ``numformer train --model transformer``.

Both sides start from the same weights and see the same batches of ``$NUMFORMER_DATA/multi30k``, ours packed, PyTorch's
as rows, with dropout, whose masks differ; afterwards the validation losses are compared. Wall time counts training
steps only.
"""

import os
import pathlib

import numpy as np
import torch
from numformer.data import BytePairVocabulary, Pairs, read_parallel
from numformer.models import Transformer, TransformerConfig
from numformer.nn import Context
from numformer.optim import Adam, inverse_sqrt

from benchmarks import common
from benchmarks.torch_peer import TorchStep, train_in_turns
from benchmarks.torch_transformer import TorchTransformer, padded
from benchmarks.transformer_step import Batch, step_flops, tokens

SUBWORDS, BATCH, STEPS, TURN = 8000, 64, 300, 25
NOISE = 0.1
PEERS = ["torch"]


def read() -> tuple[Pairs, Pairs]:
    """Return pairs to train on and to validate on."""
    if "NUMFORMER_DATA" not in os.environ:
        raise RuntimeError("multi30k needs NUMFORMER_DATA, the folder that holds multi30k/")
    folder = pathlib.Path(os.environ["NUMFORMER_DATA"]) / "multi30k"
    text = read_parallel(folder / "train.de.gz", folder / "train.en.gz")
    held_out = read_parallel(folder / "val.de.gz", folder / "val.en.gz")
    vocabulary = BytePairVocabulary.train(text.sources + text.targets, SUBWORDS)
    return tuple(  # type: ignore[return-value]
        Pairs(vocabulary.encode(some.sources), vocabulary.encode(some.targets)) for some in (text, held_out)
    )


@torch.no_grad()
def torch_loss(model: TorchTransformer, batch: Batch) -> float:
    """Mean cross-entropy without label smoothing."""
    model.eval()
    source, target, targets = padded(batch)
    counted = targets != -100
    logits = model.head(model.hidden(source, target)[counted])
    return float(torch.nn.functional.cross_entropy(logits, targets[counted]))


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """Train both, with the largest number of threads."""
    count = max(threads)
    common.set_threads(count)
    training, validation = read()
    config = TransformerConfig(
        vocab_size=SUBWORDS, encoder_layers=3, decoder_layers=3, heads=4, width=256, dropout=0.1, norm="pre"
    )
    model = Transformer(config, rng=0)
    theirs = TorchTransformer(config).copy(model.state_dict())
    optimizer = Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), clip_norm=1.0)
    torch_step = TorchStep(theirs, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, clip_norm=1.0)
    schedule = inverse_sqrt(lr=1e-3, warmup=100)
    common.print_header("multi30k", PEERS)
    top = common.ceiling()
    batches = [training.draw(BATCH, seed=0, step=step) for step in range(STEPS)]
    total = sum(map(tokens, batches))
    flops = sum(step_flops(batch, config) for batch in batches)

    def ours(step: int, batch: Batch) -> None:
        _, backward = model.loss(batch, ctx=Context(seed=0, step=step))
        backward()
        optimizer.step(lr=schedule(step))

    theirs.train()
    seconds = train_in_turns(
        STEPS, TURN, batches.__getitem__, ours, lambda step, batch: torch_step(*batch, lr=schedule(step)), padded
    )
    losses: dict[str, list[float]] = {"numformer": [], "torch": []}
    weights = []
    for first in range(0, len(validation), BATCH):
        batch = validation.samples(first, min(first + BATCH, len(validation)))
        weights.append(len(batch[2].values))
        losses["numformer"].append(model.infer_loss(batch))
        losses["torch"].append(torch_loss(theirs, batch))
    means = {name: float(np.average(values, weights=weights)) for name, values in losses.items()}
    print(f"validation loss (nats a subword): numformer {means['numformer']:.4f}, torch {means['torch']:.4f}")
    print("tokens/s, source and target: " + ", ".join(f"{n} {total / s:.0f}" for n, s in seconds.items()))
    if abs(means["numformer"] - means["torch"]) > NOISE:
        raise RuntimeError(f"the losses differ by more than {NOISE}: {means}")
    result = common.Result(
        "multi30k",
        f"{STEPS} steps, mean of a step",
        count,
        flops / STEPS,
        {name: value / STEPS for name, value in seconds.items()},
        top,
        1.0,
        {"loss": means, "total_seconds": seconds},
    )
    common.print_result(result, PEERS)
    return common.write("multi30k", [result], folder)
