"""What is computed of an encoder's hidden states: each head has its loss and its answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import ops
from numformer.models.bert_config import BERTConfig, RoBERTaConfig
from numformer.models.parts import Pooler, first_position, select_rows
from numformer.nn import (
    Backward,
    Context,
    CrossEntropy,
    Dropout,
    LayerNorm,
    Linear,
    LinearCrossEntropy,
    Module,
    Parameter,
    initial,
)
from numformer.nn.backward import chain, take
from numformer.ops.memory import namespace, number

Array = NDArray[Any]


class Head(Module):
    """Maps hidden states, (batch, positions, width), to an answer and, with targets, to a loss."""

    targets: tuple[str, ...] = ()
    """Of which shape each array of targets is."""

    def loss(self, x: Array, targets: tuple[Array, ...], *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the loss and its backward, which gives the gradient of x."""
        raise ValueError("BERT: without a head there is no loss; choose one by head=")

    def infer(self, x: Array) -> Any:
        """Return the answer."""
        return x

    def infer_loss(self, x: Array, targets: tuple[Array, ...]) -> float:
        """Return the loss; nothing is kept."""
        raise ValueError("BERT: without a head there is no loss; choose one by head=")


class Bare(Head):
    """The hidden states themselves; the pooler is there for those who want it."""

    def __init__(self, c: BERTConfig, table: Parameter, **common: Any) -> None:
        self.pooler = Pooler(c.width, **common)


class MaskedTokens(Head):
    """Which token stands at a position: a map, a norm, and the table of tokens with a bias.

    RoBERTa's map ends in gelu whatever the activation of its blocks.
    """

    targets = ("positions",)

    def __init__(self, c: BERTConfig, table: Parameter, **common: Any) -> None:
        activation = "gelu" if isinstance(c, RoBERTaConfig) else c.activation
        self.dense = Linear(c.width, c.width, activation=activation, transposed=True, **common)
        self.norm = LayerNorm(c.width, eps=c.eps, dtype=c.dtype)
        self.decoder = Linear(c.width, c.vocab_size, transposed=True, weight=table if c.tie_weights else None, **common)
        self.cross_entropy = LinearCrossEntropy()

    def loss(self, x: Array, targets: tuple[Array, ...], *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the mean over the targets that count, and its backward."""
        (wanted,) = targets
        x, rows = select_rows(x, np.flatnonzero(wanted != -100))
        x, dense = self.dense(x)
        x, norm = self.norm(x)
        loss, entropy = self.cross_entropy(self.decoder, x, wanted[wanted != -100])
        return loss, Backward(chain, [rows, dense, norm, entropy])

    def infer(self, x: Array) -> Array:
        """Return logits, (batch, positions, vocab_size)."""
        return self.decoder.logits(self.norm.infer(self.dense.infer(x)))

    def infer_loss(self, x: Array, targets: tuple[Array, ...]) -> float:
        """Return the mean over the targets that count."""
        counted = targets[0] != -100
        x, _ = select_rows(x, np.flatnonzero(counted))
        x = self.norm.infer(self.dense.infer(x))
        return number(self.cross_entropy.infer(self.decoder, x, targets[0][counted]))


class NextSentence(Head):
    """Whether the second sentence follows the first (class 0) or is another one (class 1)."""

    targets = ("batch",)

    def __init__(self, c: BERTConfig, **common: Any) -> None:
        self.pooler = Pooler(c.width, **common)
        self.classifier = Linear(c.width, 2, transposed=True, **common)
        self.cross_entropy = CrossEntropy()

    def loss(self, x: Array, targets: tuple[Array, ...], *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the mean over the sequences and its backward."""
        x, first = first_position(x)
        x, pooler = self.pooler(x)
        x, classifier = self.classifier(x)
        loss, entropy = self.cross_entropy(x, targets[0])
        return loss, Backward(chain, [first, pooler, classifier, entropy])

    def infer(self, x: Array) -> Array:
        """Return logits, (batch, 2)."""
        return self.classifier.logits(self.pooler.infer(namespace(x).ascontiguousarray(x[:, 0])))

    def infer_loss(self, x: Array, targets: tuple[Array, ...]) -> float:
        """Return the mean over the sequences."""
        return number(self.cross_entropy.infer(self.infer(x), targets[0]))


class Pretraining(Head):
    """Masked tokens and the next sentence; the loss is the sum of both."""

    targets = ("batch", "positions")

    def __init__(self, c: BERTConfig, table: Parameter, **common: Any) -> None:
        self.tokens = MaskedTokens(c, table, **common)
        self.next = NextSentence(c, **common)

    def loss(self, x: Array, targets: tuple[Array, ...], *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the sum of both losses and its backward."""
        tokens, tokens_backward = self.tokens.loss(x, targets[1:])
        following, next_backward = self.next.loss(x, targets[:1])
        return tokens + following, Backward(self._backward, [tokens_backward, next_backward])

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> Array:
        tokens, following = take(saved)
        return ops.add(tokens(dloss), following(dloss))

    def infer(self, x: Array) -> tuple[Array, Array]:
        """Return logits of the tokens, (batch, positions, vocab_size), and of the next sentence, (batch, 2)."""
        return self.tokens.infer(x), self.next.infer(x)

    def infer_loss(self, x: Array, targets: tuple[Array, ...]) -> float:
        """Return the sum of both losses."""
        return self.tokens.infer_loss(x, targets[1:]) + self.next.infer_loss(x, targets[:1])


class SequenceClasses(Head):
    """A class for each sequence, out of its first position.

    BERT reads the pooler's output, whose dropout comes after; RoBERTa drops before a pooler of its own as well.
    """

    targets = ("batch",)

    def __init__(self, c: BERTConfig, table: Parameter, **common: Any) -> None:
        self.before = Dropout(c.dropout if isinstance(c, RoBERTaConfig) else 0.0)
        self.pooler = Pooler(c.width, **common)
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(c.width, c.labels, transposed=True, **common)
        self.cross_entropy = CrossEntropy()

    def loss(self, x: Array, targets: tuple[Array, ...], *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the mean over the sequences and its backward."""
        x, first = first_position(x)
        x, before = self.before(x, ctx=ctx)
        x, pooler = self.pooler(x)
        x, dropout = self.dropout(x, ctx=ctx)
        x, classifier = self.classifier(x)
        loss, entropy = self.cross_entropy(x, targets[0])
        return loss, Backward(chain, [first, before, pooler, dropout, classifier, entropy])

    def infer(self, x: Array) -> Array:
        """Return logits, (batch, labels)."""
        return self.classifier.logits(self.pooler.infer(namespace(x).ascontiguousarray(x[:, 0])))

    def infer_loss(self, x: Array, targets: tuple[Array, ...]) -> float:
        """Return the mean over the sequences."""
        return number(self.cross_entropy.infer(self.infer(x), targets[0]))


class TokenClasses(Head):
    """A class for each token."""

    targets = ("positions",)

    def __init__(self, c: BERTConfig, table: Parameter, **common: Any) -> None:
        self.dropout = Dropout(c.dropout)
        self.classifier = Linear(c.width, c.labels, transposed=True, **common)
        self.cross_entropy = CrossEntropy()

    def loss(self, x: Array, targets: tuple[Array, ...], *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the mean over the targets that count, and its backward."""
        x, dropout = self.dropout(x, ctx=ctx)
        x, classifier = self.classifier(x)
        loss, entropy = self.cross_entropy(x, targets[0])
        return loss, Backward(chain, [dropout, classifier, entropy])

    def infer(self, x: Array) -> Array:
        """Return logits, (batch, positions, labels)."""
        return self.classifier.logits(x)

    def infer_loss(self, x: Array, targets: tuple[Array, ...]) -> float:
        """Return the mean over the targets that count."""
        return number(self.cross_entropy.infer(self.infer(x), targets[0]))


class Answer(Head):
    """Where the answer to a question begins and ends in the text that follows it."""

    targets = ("two",)

    def __init__(self, c: BERTConfig, table: Parameter, **common: Any) -> None:
        self.outputs = Linear(c.width, 2, transposed=True, **common)
        self.cross_entropy = CrossEntropy()

    def loss(self, x: Array, targets: tuple[Array, ...], *, ctx: Context | None = None) -> tuple[Any, Backward]:
        """Return the mean of the losses of beginning and end, and its backward."""
        z, outputs = self.outputs(x)
        pieces = [
            self.cross_entropy(namespace(z).ascontiguousarray(z[..., i]), np.ascontiguousarray(targets[0][:, i]))
            for i in range(2)
        ]
        loss = (pieces[0][0] + pieces[1][0]) / 2
        return loss, Backward(self._backward, [outputs, pieces[0][1], pieces[1][1]])

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> Any:
        outputs, begin, end = take(saved)
        dz = [begin(dloss / 2), end(dloss / 2)]
        return outputs(namespace(dz[0]).stack(dz, axis=-1))

    def infer(self, x: Array) -> tuple[Array, Array]:
        """Return the logits of the beginning and of the end, (batch, positions) each."""
        z = self.outputs.logits(x)
        return z[..., 0], z[..., 1]

    def infer_loss(self, x: Array, targets: tuple[Array, ...]) -> float:
        """Return the mean of the losses of beginning and end."""
        losses = [
            number(self.cross_entropy.infer(namespace(z).ascontiguousarray(z), np.ascontiguousarray(targets[0][:, i])))
            for i, z in enumerate(self.infer(x))
        ]
        return (losses[0] + losses[1]) / 2


_KINDS: dict[str | None, Any] = {
    None: Bare,
    "pretraining": Pretraining,
    "masked_lm": MaskedTokens,
    "sequence": SequenceClasses,
    "token": TokenClasses,
    "question": Answer,
}


def make_head(c: BERTConfig, table: Parameter, rng: initial.Source) -> Head:
    """Make the head that a configuration names; `table` holds the embeddings of the tokens."""
    head: Head = _KINDS[c.head](c, table, std=0.02, dtype=np.dtype(c.dtype), rng=rng)
    return head
