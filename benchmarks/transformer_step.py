"""A whole training step (loss, gradient, clipping, AdamW) of a small encoder-decoder against PyTorch eager, float32.

Batches have the lengths of Multi30k's sentences in subwords and are sorted by length. Ours are packed; PyTorch's are
rows, filled to the longest of a batch, which is a few per cent. The work that counts is that of the tokens.
Both sides begin with the same weights; without dropout their losses are asserted equal, with it they are timed.
"""

import dataclasses
import pathlib

import numpy as np
from numformer.data import Packed
from numformer.models import Transformer, TransformerConfig
from numformer.nn import Context
from numformer.optim import AdamW, decay_groups

from benchmarks import common
from benchmarks.torch_peer import TorchStep
from benchmarks.torch_transformer import TorchTransformer, padded

CONFIG = TransformerConfig(
    vocab_size=8000, context=64, encoder_layers=3, decoder_layers=3, heads=4, width=256, hidden=1024, dropout=0.1
)
SENTENCES = 128
NAME = "Transformer 3 + 3 x 256, B 128"
PEERS = ["torch"]
Batch = tuple[Packed, Packed, Packed]


def batches(rng: np.random.Generator) -> list[Batch]:
    """Four batches, from short ones to long ones: mean length 15, 5 to 40."""
    source = np.clip(np.rint(rng.lognormal(2.65, 0.33, 100 * SENTENCES)), 5, 40).astype(int)
    target = np.clip(source + np.rint(rng.normal(0, 2, source.size)), 5, 40).astype(int)
    order = np.lexsort((target, source))
    found = []
    for begin in (20, 40, 60, 80):
        chosen = order[begin * SENTENCES : (begin + 1) * SENTENCES]
        found.append(_batch(rng, source[chosen], target[chosen]))
    return found


def _batch(rng: np.random.Generator, sources: np.ndarray, targets: np.ndarray) -> Batch:
    source, answer = (
        Packed.of([rng.integers(3, CONFIG.vocab_size, length) for length in lengths]) for lengths in (sources, targets)
    )
    return source, Packed.of([np.append(CONFIG.bos_id, sentence[:-1]) for sentence in answer]), answer


def step_flops(batch: Batch, config: TransformerConfig = CONFIG) -> float:
    """Products only: 6 a weight and position that reads it (forward 2, backward 4), and attention's 3.5 x 4 N M D a
    head, half of it where it is causal.
    """
    c, (n, m, _) = config, (part.lengths for part in batch)
    hidden = c.hidden or 4 * c.width
    encoder = c.encoder_layers * (4 * c.width + 2 * hidden) + c.decoder_layers * 2 * c.width  # and the memory's k and v
    decoder = c.decoder_layers * (6 * c.width + 2 * hidden)
    products = 6.0 * c.width * (n.sum() * encoder + m.sum() * (decoder + c.vocab_size))
    pairs = c.encoder_layers * n * n + c.decoder_layers * (m * n + 0.5 * m * m)
    return float(products + 14.0 * c.width * pairs.sum())


def tokens(batch: Batch) -> int:
    """How many tokens of source and target it has."""
    source, target, _ = batch
    return len(source.values) + len(target.values)


class Step:
    """Our side of a training step."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.steps = model, 0
        self.optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-4, clip_norm=1.0)

    def __call__(self, batch: Batch) -> float:
        loss, backward = self.model.loss(batch, ctx=Context(seed=0, step=self.steps))
        backward()
        self.optimizer.step()
        self.steps += 1
        return loss


def _pair(config: TransformerConfig) -> tuple[Step, TorchStep]:
    model = Transformer(config, rng=0)
    theirs = TorchTransformer(config).copy(model.state_dict())
    return Step(model), TorchStep(theirs, lr=1e-4, weight_decay=0.1, clip_norm=1.0)


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """With each number of threads."""
    every = batches(np.random.default_rng(0))
    tensors = [padded(batch) for batch in every]
    total = sum(map(tokens, every))
    results = []
    common.print_header("training_step", PEERS)
    for count in threads:
        common.set_threads(count)
        top = common.ceiling()
        ours, theirs = _pair(dataclasses.replace(CONFIG, dropout=0.0))
        for batch, tensor in zip(every, tensors, strict=True):
            np.testing.assert_allclose(ours(batch), theirs(*tensor), rtol=1e-4)
        ours, theirs = _pair(CONFIG)
        contenders = {
            "numformer": lambda step=ours: [step(batch) for batch in every],
            "torch": lambda step=theirs: [step(*tensor) for tensor in tensors],
        }
        seconds = common.take_turns(contenders, rounds=3)
        rates = {name: total / value for name, value in seconds.items()}
        flops = sum(map(step_flops, every))
        results.append(
            common.Result("training_step", NAME, count, flops, seconds, top, 1.0, {"tokens_per_second": rates})
        )
        common.print_result(results[-1], PEERS)
        print("tokens/s, source and target: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    return common.write("training_step_transformer", results, folder)
