"""The network of the estimators: packed sequences of vectors, blocks, the mean of each sequence, a linear map."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.data import ByteVocabulary
from numformer.data.vocabulary import BOS
from numformer.nn import (
    Backward,
    Context,
    CrossEntropy,
    Embedding,
    LayerNorm,
    LearnedPositions,
    Linear,
    Module,
    Parameter,
    PreNormBlock,
    initial,
)
from numformer.nn.backward import take
from numformer.nn.dropout import number_dropouts
from numformer.packed import Packed

Array = NDArray[Any]


class TextTokens(Module):
    """A vector for each byte of a text and for its beginning, and its position."""

    def __init__(self, context: int, width: int, rng: initial.Source) -> None:
        self.context = context
        self.tokens = Embedding(len(ByteVocabulary()), width, std=0.5, rng=rng)
        self.positions = LearnedPositions(context, width, std=0.1, rng=rng)

    def pack(self, texts: Any) -> Packed:
        """Return the ids of the tokens of texts, those beyond the context left out."""
        encoded = ByteVocabulary().encode(list(texts))
        return Packed.of([np.append(np.int32(BOS), ids[: self.context - 1]) for ids in encoded])

    def __call__(self, packed: Packed, *, ctx: Context | None = None) -> tuple[Array, Backward]:
        """Return the vectors, (total, width), and their backward, which gives nothing."""
        x, tokens = self.tokens(packed.values, ctx=ctx)
        x, positions = self.positions(x, ids=packed.positions)
        return x, Backward(self._backward, [tokens, positions])

    def _backward(self, saved: list[Any], dx: Array) -> None:
        tokens, positions = take(saved)
        tokens(positions(dx))

    def infer(self, packed: Packed) -> Array:
        """Return the vectors."""
        return self.positions.infer(self.tokens.infer(packed.values), ids=packed.positions)


class NumberTokens(Module):
    """A vector for each feature: its number times one row, plus another.

    Y. Gorishniy, I. Rubachev, V. Khrulkov, A. Babenko, "Revisiting Deep Learning Models for Tabular Data", NeurIPS
    2021, section 3.3.
    """

    def __init__(self, features: int, width: int, rng: initial.Source) -> None:
        self.weight = Parameter(initial.normal(rng, (features, width), 0.5, np.float32))
        self.bias = Parameter(initial.normal(rng, (features, width), 0.5, np.float32))

    def pack(self, rows: Any) -> Packed:
        """Return rows of numbers as sequences."""
        values = np.asarray(rows, np.float32)
        return Packed(values.reshape(-1), np.arange(len(values) + 1) * values.shape[1])

    def _rows(self, packed: Packed) -> Array:
        return packed.values.reshape(len(packed), -1, 1)

    def __call__(self, packed: Packed, *, ctx: Context | None = None) -> tuple[Array, Backward]:
        """Return the vectors, (total, width), and their backward, which gives nothing."""
        for parameter in (self.weight, self.bias):
            parameter.pending += 1
        return self.infer(packed), Backward(self._backward, [self._rows(packed)])

    def _backward(self, saved: list[Any], dx: Array) -> None:
        (rows,) = take(saved)
        dx = dx.reshape(*rows.shape[:2], -1)
        self.weight.add((rows * dx).sum(0))
        self.bias.add(dx.sum(0))

    def infer(self, packed: Packed) -> Array:
        """Return the vectors."""
        x = self._rows(packed) * self.weight.value + self.bias.value
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1]))


class SquaredError(Module):
    """Half the mean squared difference."""

    def __call__(self, y: Array, targets: Array, *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the loss and its backward; ``backward(dloss=1.0)`` gives the gradient of y."""
        difference = y[:, 0] - targets
        return float(np.mean(difference**2)) / 2, Backward(self._backward, [difference])

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> Array:
        (difference,) = take(saved)
        return np.ascontiguousarray((difference * (dloss / len(difference)))[:, None])


class Network(Module):
    """Tokens, blocks, a norm, the mean over each sequence, a linear map."""

    def __init__(
        self,
        tokens: TextTokens | NumberTokens,
        outputs: int,
        *,
        classes: bool,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        rng: initial.Source,
    ) -> None:
        self.tokens = tokens
        self.blocks = [PreNormBlock(width, heads, dropout=dropout, rng=rng) for _ in range(layers)]
        self.norm = LayerNorm(width)
        self.output = Linear(width, outputs, std=0.02, rng=rng)
        self.judge = CrossEntropy() if classes else SquaredError()
        number_dropouts(self)

    def loss(self, batch: tuple[Packed, Array], *, ctx: Context | None = None) -> tuple[float, Backward]:
        """Return the mean loss of sequences and targets, and its backward, which leaves gradients in the parameters."""
        packed, targets = batch
        x, tokens = self.tokens(packed, ctx=ctx)
        steps = [tokens]
        for block in self.blocks:
            x, backward = block(x, cu_seqlens=packed.cu_seqlens, ctx=ctx)
            steps.append(backward)
        x, norm = self.norm(x)
        y, output = self.output(self._mean(x, packed))
        loss, judge = self.judge(y, targets)
        return float(loss), Backward(self._backward, [steps, norm, packed.lengths, output, judge])

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> None:
        steps, norm, lengths, output, judge = take(saved)
        dmean = output(judge(dloss))
        dx = norm(np.repeat(dmean / lengths[:, None].astype(dmean.dtype), lengths, axis=0))
        while steps:
            dx = steps.pop()(dx)

    @staticmethod
    def _mean(x: Array, packed: Packed) -> Array:
        """Return the mean over each sequence, none of which is empty."""
        sums: Array = np.add.reduceat(x, packed.cu_seqlens[:-1], axis=0)
        return sums / packed.lengths[:, None].astype(x.dtype)

    def infer(self, packed: Packed) -> Array:
        """Return (sequences, outputs)."""
        x = self.tokens.infer(packed)
        for block in self.blocks:
            x = block.infer(x, cu_seqlens=packed.cu_seqlens)
        return self.output.infer(self._mean(self.norm.infer(x), packed))
