"""Pictures of who attends to whom, drawn from what attention computes: pip install 'numformer[plot]'.

With the identity matrix as values, the output of attention is the matrix of its probabilities. So each picture shows
what the kernel does with a mask, not what it should do. The pictures of docs/fast_attention.md are made by

    python examples/attention_pictures.py --out docs/images
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numformer as nf
import numpy as np

SENTENCE = "the cat sat on the mat , because the cat was tired and the mat was warm".split()  # noqa: SIM905


def probabilities(q: Any, k: Any, **options: Any) -> Any:
    """Softmax of the scores, (queries, keys)."""
    return nf.attention(q, k, np.eye(len(k), dtype=q.dtype), **options)


def kinds() -> dict[str, Any]:
    """Probabilities of queries and keys that are all alike: what is seen, and how it is weighted."""
    n, d = 12, 8
    same, longer = np.zeros((n, d), np.float32), np.zeros((n + 6, d), np.float32)
    documents = np.repeat([0, 1, 2], [3, 5, 4])
    one_global = np.arange(n) == 4
    padding = np.arange(n) < 8
    farther = 1.2 * np.cos(np.arange(2 * n) / 2)  # by distance, through one channel of the relative positions
    r, u = np.zeros((1, 2 * n, d), np.float32), np.zeros((1, d), np.float32)
    r[0, :, 0], v = farther, u + np.eye(1, d, dtype=np.float32) * 6
    return {
        "causal=True, 12 queries, 18 keys": probabilities(same, longer, causal=True),
        'causal="top_left"': probabilities(same, longer, causal="top_left"),
        "window=(3, 1)": probabilities(same, same, window=(3, 1)),
        "causal=True, window=(3, None)": probabilities(same, same, causal=True, window=(3, None)),
        "window=(1, 1), global_tokens: 4": probabilities(same, same, window=(1, 1), global_tokens=one_global),
        "mask: 8 keys, the others are padding": probabilities(same, same, mask=padding[None]),
        "mask: three documents, causal": probabilities(
            same, same, causal=True, mask=documents[:, None] == documents[None, :]
        ),
        "alibi_slopes=[0.5], causal": probabilities(same, same, causal=True, alibi_slopes=np.array([0.5], np.float32)),
        "rel: by distance, causal": probabilities(same, same, causal=True, rel=(r, u, v, 0)),
    }


def vectors(words: Sequence[str], d: int = 64) -> Any:
    """A unit vector a word, the same for the same word, by a generator that its letters seed."""
    x = np.stack([np.random.default_rng(list(word.encode())).standard_normal(d) for word in words])
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def attention_map() -> Any:
    """Each word looks for itself among the words so far: the same words find each other."""
    x = vectors(SENTENCE)
    return probabilities(x, x, causal=True, scale=4.0)


def draw(axes: Any, p: Any) -> None:
    """Show a matrix of probabilities, white where nothing is seen."""
    seen = np.ma.masked_equal(p, 0.0)
    axes.imshow(seen, cmap="viridis_r", vmin=0.0, vmax=float(p.max()))
    axes.set_xticks(np.arange(-0.5, p.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, p.shape[0]), minor=True)
    axes.grid(which="minor", color="0.8", linewidth=0.4)
    axes.tick_params(which="both", length=0)


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Write both pictures and return their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="folder")
    out = parser.parse_args(arguments).out
    every = kinds()
    figure, grid = plt.subplots(3, 3, figsize=(9, 8.4), layout="constrained")
    for axes, (title, p) in zip(grid.flat, every.items(), strict=True):
        draw(axes, p)
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.supxlabel("keys")
    figure.supylabel("queries")
    paths = [out / "attention_masks.png", out / "attention_map.png"]
    figure.savefig(paths[0], dpi=80, metadata={"Software": None})
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    draw(axes, attention_map())
    axes.set_xticks(range(len(SENTENCE)), SENTENCE, rotation=90)
    axes.set_yticks(range(len(SENTENCE)), SENTENCE)
    figure.colorbar(axes.images[0], label="probability")
    figure.savefig(paths[1], dpi=80, metadata={"Software": None})
    plt.close(figure)
    return paths


if __name__ == "__main__":
    for path in main():
        print(path)
