"""A whole training step (loss, gradient, clipping, AdamW) of small GPTs against PyTorch eager on the same
weights and batches, float32.
"""

import pathlib

import numpy as np
import torch
from numformer.models import GPT, GPTConfig
from numformer.optim import AdamW, decay_groups

from benchmarks import common
from benchmarks.torch_gpt import TorchGPT
from benchmarks.torch_peer import TorchStep

# name: configuration, batch
MODELS = {
    "GPT 6 x 384, T 256, B 8": (GPTConfig(vocab_size=256, context=256, layers=6, heads=6, width=384), 8),
    "GPT 4 x 128, T 64, B 12": (GPTConfig(vocab_size=65, context=64, layers=4, heads=4, width=128), 12),
}
PEERS = ["torch"]


def step_flops(config: GPTConfig, batch: int) -> float:
    """Products only: 6 a weight and token (forward 2, backward 4), and attention's 3.5 x 4 N^2 D a head,
    half of it as it is causal.
    """
    width, tokens = config.width, batch * config.context
    weights = config.layers * 12 * width * width + config.vocab_size * width
    return 6.0 * weights * tokens + config.layers * batch * 3.5 * 4.0 * config.context**2 * width * 0.5


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """Each model with each number of threads."""
    rng = np.random.default_rng()
    results = []
    common.print_header("training_step", PEERS)
    for count in threads:
        common.set_threads(count)
        top = common.ceiling()
        for name, (config, batch) in MODELS.items():
            model = GPT(config, rng=0)
            theirs = TorchGPT(config).copy(model.state_dict())
            optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-3, clip_norm=1.0)
            torch_step = TorchStep(theirs, lr=1e-3, weight_decay=0.1, clip_norm=1.0)
            ids, targets = rng.integers(0, config.vocab_size, (2, batch, config.context))
            tensors = (torch.from_numpy(ids), torch.from_numpy(targets))

            def ours(
                model: GPT = model, optimizer: AdamW = optimizer, pair: tuple[np.ndarray, np.ndarray] = (ids, targets)
            ) -> float:
                loss, backward = model.loss(pair)
                backward()
                optimizer.step()
                return float(loss)

            def torchs(step: TorchStep = torch_step, pair: tuple[torch.Tensor, ...] = tensors) -> float:
                return step(*pair)

            for _ in range(5):
                np.testing.assert_allclose(ours(), torchs(), rtol=1e-3)
            seconds = common.take_turns({"numformer": ours, "torch": torchs}, slice_seconds=0.5)
            extra = {"tokens_per_second": batch * config.context / seconds["numformer"]}
            results.append(
                common.Result("training_step", name, count, step_flops(config, batch), seconds, top, 1.0, extra)
            )
            common.print_result(results[-1], PEERS)
    return common.write("training_step", results, folder)
