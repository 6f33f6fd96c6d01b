"""A ViT that reads handwritten digits: 1797 images of 8 by 8 that scikit-learn carries, so nothing is downloaded.

pip install 'numformer[examples]', then python examples/digits.py: 16 patches of 2 by 2, 4 layers of 64 channels, taught
by 1437 of them. The others are what it is judged on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numformer.models import ViT, ViTConfig
from numformer.optim import AdamW, cosine, decay_groups
from numformer.train import Trainer
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Array = NDArray[Any]


class Images:
    """Images and what they show, as samples for the Trainer."""

    def __init__(self, images: Array, labels: Array) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def samples(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return images in their order."""
        return self.images[start:stop], self.labels[start:stop]

    def draw(self, count: int, *, seed: int, step: int) -> tuple[Array, Array]:
        """Return images by chance; the same seed and step give the same ones."""
        which = np.random.default_rng([seed, step]).integers(len(self.images), size=count)
        return self.images[which], self.labels[which]


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, print how many of the held out images it reads right, and return their share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    digits = load_digits()
    order = np.random.default_rng(options.seed).permutation(len(digits.images))
    images = (digits.images[order][:, None] / 8 - 1).astype(np.float32)  # -1 to 1
    labels = digits.target[order]
    held = len(images) // 5
    training, test = Images(images[held:], labels[held:]), Images(images[:held], labels[:held])

    sizes = {"layers": options.layers, "heads": 4, "width": options.width}
    config = ViTConfig(image=8, patch=2, channels=1, labels=10, dropout=0.1, **sizes)
    model = ViT(config, rng=options.seed)
    for parameter in model.parameters():  # 0.02, the usual deviation, is for wider ones: this one would begin slowly
        if parameter.value.ndim > 1:
            parameter.value *= options.width**-0.5 / 0.02

    def accuracy() -> float:
        return float((model.infer(test.images).argmax(axis=-1) == test.labels).mean())

    optimizer = AdamW(decay_groups(model.parameters(), 0.05), lr=1e-3, weight_decay=0.05, clip_norm=1.0)
    trainer = Trainer(
        model,
        optimizer,
        training,
        batch_size=options.batch,
        steps=options.steps,
        schedule=cosine(2e-3, steps=options.steps, warmup=options.steps // 10, final=0.0),
        validation=test,
        metrics={"accuracy": accuracy},
        eval_every=max(1, options.steps // 6),
        log_every=max(1, options.steps // 6),
        seed=options.seed,
    )
    begin = time.monotonic()
    trainer.run()
    found = accuracy()
    print(
        f"{sum(p.value.size for p in model.parameters()):,} weights, {time.monotonic() - begin:.0f} s; "
        f"{found:.2%} of {held} images that it has never seen are read right"
    )
    return found


if __name__ == "__main__":
    main()
