"""BERT: an encoder that reads in both directions, with the heads that it is trained and used by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numformer import ops
from numformer.models import pretrained
from numformer.models.bert_config import BERTConfig
from numformer.models.bert_heads import make_head
from numformer.models.embed import embed_sequences, mean_pool
from numformer.nn import (
    Backward,
    Context,
    Dropout,
    Embedding,
    LayerNorm,
    LearnedPositions,
    Module,
    MultiHeadAttention,
    PostNormBlock,
    initial,
)
from numformer.nn.backward import take
from numformer.nn.context import DEFAULT
from numformer.nn.dropout import number_dropouts
from numformer.ops.memory import beside, number, on_host

Array = NDArray[Any]

__all__ = ["BERT", "BERTConfig"]


class Encoder(Module):
    """Norm of the sum of tokens, token types and positions, then post-norm blocks.

    `attention` makes the layer that attends, for each block by its number.
    """

    def __init__(
        self,
        c: BERTConfig,
        rng: initial.Source,
        attention: Callable[[int], Callable[..., MultiHeadAttention]] = lambda block: MultiHeadAttention,
    ) -> None:
        common: dict[str, Any] = {"std": 0.02, "dtype": np.dtype(c.dtype), "rng": rng}
        self.tokens = Embedding(c.vocab_size, c.width, padding=c.pad_id, **common)
        self.types = Embedding(c.types, c.width, **common)
        self.positions = LearnedPositions(c.table, c.width, padding=c.pad_id, **common)
        self.norm = LayerNorm(c.width, eps=c.eps, dtype=np.dtype(c.dtype))
        self.dropout = Dropout(c.dropout)
        self.blocks = [
            PostNormBlock(
                c.width,
                c.heads,
                hidden=c.hidden,
                activation=c.activation,
                dropout=c.dropout,
                eps=c.eps,
                transposed=True,
                output_std=0.02,
                attention=attention(block),
                **common,
            )
            for block in range(c.layers)
        ]

    def __call__(
        self, ids: Array, types: Array, numbers: Array | None, mask: Array | None, *, ctx: Context | None = None
    ) -> tuple[Array, Backward]:
        """Return the hidden states, (batch, positions, width), and their backward, which gives nothing."""
        mask = self._seen(mask)
        x, tokens = self.tokens(ids, ctx=ctx)
        t, kinds = self.types(types, ctx=ctx)
        x, positions = self.positions(ops.add(x, t), ids=numbers)
        x, norm = self.norm(x)
        x, dropout = self.dropout(x, ctx=ctx)
        blocks = []
        for block in self.blocks:
            x, backward = block(x, mask=mask, ctx=ctx)
            blocks.append(backward)
        return x, Backward(self._backward, [tokens, kinds, [positions, norm, dropout, *blocks]])

    def _seen(self, mask: Array | None) -> Array | None:
        """Return a mask where the model is; integers stay on the host, where layers look at them."""
        return mask if mask is None or mask.dtype != np.bool_ else beside(mask, self.tokens.weight.value)

    def _backward(self, saved: list[Any], dx: Array) -> None:
        tokens, kinds, rest = take(saved)
        while rest:
            dx = rest.pop()(dx)
        tokens(dx)
        kinds(dx)

    def infer(
        self,
        ids: Array,
        types: Array,
        numbers: Array | None,
        mask: Array | None,
        *,
        hidden: list[Array] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> Array:
        """Return the hidden states; those before and after each block are appended to `hidden`."""
        mask = self._seen(mask)
        x = ops.add(self.tokens.infer(ids, dtype=dtype), self.types.infer(types, dtype=dtype))
        x = self.norm.infer(self.positions.infer(x, ids=numbers))
        if hidden is not None:
            hidden.append(x)
        for block in self.blocks:
            x = block.infer(x, mask=mask)
            if hidden is not None:
                hidden.append(x)
        return x


class BERT(pretrained.PretrainedModel):
    """Understands text (Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019).

    The state dict has the names of Hugging Face's ``BertForPreTraining`` and the like. Departures: weights of the
    attention are not dropped.

    Parameters
    ----------
    config : BERTConfig
        Sizes, options and head.
    rng : numpy.random.Generator or int, optional
        Draws the initial weights: normal with 0.02.

    Examples
    --------
    >>> import numpy as np
    >>> from numformer.models import BERT, BERTConfig
    >>> model = BERT(BERTConfig(vocab_size=50, context=16, layers=1, heads=2, width=8), rng=0)
    >>> model.infer(np.array([[1, 2, 3, 0]])).shape
    (1, 4, 50)
    """

    renames: ClassVar[Mapping[str, str]] = {
        "encoder.tokens.": "bert.embeddings.word_embeddings.",
        "encoder.types.": "bert.embeddings.token_type_embeddings.",
        "encoder.positions.": "bert.embeddings.position_embeddings.",
        "encoder.norm.": "bert.embeddings.LayerNorm.",
        "encoder.blocks.": "bert.encoder.layer.",
        "attention.output.": "attention.output.dense.",
        "norm1.": "attention.output.LayerNorm.",
        "mlp.inner.": "intermediate.dense.",
        "mlp.outer.": "output.dense.",
        "norm2.": "output.LayerNorm.",
    }
    head_names: ClassVar[Mapping[str | None, Mapping[str, str]]] = {
        None: {"head.pooler.": "bert.pooler."},
        "masked_lm": {
            "head.dense.": "cls.predictions.transform.dense.",
            "head.norm.": "cls.predictions.transform.LayerNorm.",
            "head.decoder.bias": "cls.predictions.bias",
            "head.decoder.": "cls.predictions.decoder.",
        },
        "pretraining": {
            "head.tokens.dense.": "cls.predictions.transform.dense.",
            "head.tokens.norm.": "cls.predictions.transform.LayerNorm.",
            "head.tokens.decoder.bias": "cls.predictions.bias",
            "head.tokens.decoder.": "cls.predictions.decoder.",
            "head.next.pooler.": "bert.pooler.",
            "head.next.classifier.": "cls.seq_relationship.",
        },
        "sequence": {"head.pooler.": "bert.pooler.", "head.classifier.": "classifier."},
        "token": {"head.classifier.": "classifier."},
        "question": {"head.outputs.": "qa_outputs."},
    }
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attention.qkv.": ("attention.self.query.", "attention.self.key.", "attention.self.value.")
    }
    prefix: ClassVar[str] = "bert."
    output_layer: ClassVar[Mapping[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    config_type: ClassVar[type[BERTConfig]] = BERTConfig
    inputs: ClassVar[tuple[str, ...]] = ("ids", "mask", "types")
    config: BERTConfig

    def __init__(self, config: BERTConfig, *, rng: initial.Source | int | None = None) -> None:
        if not isinstance(config, self.config_type):
            raise TypeError(
                f"{type(self).__name__}: config must be a {self.config_type.__name__}, got {type(config).__name__}"
            )
        self.config = config
        source = np.random.default_rng(rng) if rng is None or isinstance(rng, int) else rng
        self.encoder = self._encoder(source)
        self.head = make_head(config, self.encoder.tokens.weight, source)
        number_dropouts(self)
        self.parameters()  # sets their names

    def _encoder(self, rng: initial.Source) -> Encoder:
        return Encoder(self.config, rng)

    def _rename(self, path: str) -> str:
        for ours, theirs in self.head_names[self.config.head].items():
            path = path.replace(ours, theirs)
        path = super()._rename(path)
        return path if self.config.head is not None else path.removeprefix(self.prefix)

    def adapt(self, state: dict[str, Array]) -> dict[str, Array]:
        """Bring old names to those of today, and leave out what this head does not read.

        The norms of the first files have gamma and beta, old files hold the numbers of the positions, those of masked
        tokens alone may have been pre-trained with the next sentence, and a fine-tuned model with masked tokens.
        """
        found = {}
        for name, value in state.items():
            if name.endswith(".position_ids"):
                continue
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            found[name.removeprefix(self.prefix) if self.config.head is None else name] = value
        if self.config.head in ("masked_lm", "token", "question"):
            other = (f"{self.prefix}pooler.", "cls.seq_relationship.")
            found = {name: value for name, value in found.items() if not name.startswith(other)}
        if self.config.tie_weights:
            return pretrained.untied(found, self.output_layer)
        own, bias = list(self.output_layer.items())[1]
        if own in found:  # which theirs reads then, and not the other
            found[bias] = found.pop(own)
        return found

    def stored(self) -> dict[str, Array]:
        """Return the state dict, and the bias of an untied output layer under its second name."""
        state = self.state_dict()
        own, bias = list(self.output_layer.items())[1]
        if bias in state and not self.config.tie_weights:
            state[own] = state[bias].copy()
        return state

    def loss(self, batch: tuple[ArrayLike | None, ...], *, ctx: Context | None = None) -> tuple[float, Backward]:
        """Return the loss of a batch and its backward.

        Parameters
        ----------
        batch : (ids, mask, types, ...targets)
            `ids`, integers (batch, positions); `mask`, True where a token is read, or None: all that are not `pad_id`;
            `types`, integers below ``config.types``, or None: all 0. Then what the head asks for, integers in which
            -100 does not count: head "masked_lm" and "token" (batch, positions); "sequence" (batch,); "pretraining"
            whether the second sentence does not follow, (batch,), and masked tokens; "question" the positions of the
            answer's first and last token, (batch, 2).
        ctx : Context, optional
            Seed and step of dropout, compute dtype.

        Returns
        -------
        loss : float
            Mean over the targets that count; of "pretraining" the sum, of "question" the mean of two.
        backward : callable
            ``backward(dloss=1.0)`` leaves the gradients in the parameters.
        """
        inputs, targets = self._batch(batch)
        x, encoder = self.encoder(*inputs, ctx=ctx)
        loss, head = self.head.loss(x, targets, ctx=ctx)
        return number(loss, wait=(ctx or DEFAULT).wait), Backward(self._backward, [encoder, head])

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> None:
        encoder, head = take(saved)
        encoder(head(dloss))

    def infer_loss(self, batch: tuple[ArrayLike | None, ...], *, ctx: Context | None = None) -> float:
        """Return the loss of a batch without dropout; nothing is kept."""
        inputs, targets = self._batch(batch)
        return self.head.infer_loss(self.encoder.infer(*inputs, dtype=(ctx or DEFAULT).dtype), targets)

    def infer(
        self,
        ids: ArrayLike,
        mask: ArrayLike | None = None,
        types: ArrayLike | None = None,
        *,
        hidden: list[Array] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> Any:
        """Return what the head answers.

        Parameters
        ----------
        ids : integers
            (batch, positions), or (positions,) for one sequence.
        mask : boolean array, optional
            True where a token is read; all that are not `pad_id` by default.
        types : integers, optional
            Token types; all 0 by default.
        hidden : list, optional
            The hidden states before and after each block are appended to it.
        dtype : dtype, optional
            To compute in; that of the parameters by default.

        Returns
        -------
        array or two of them
            Hidden states, (batch, positions, width), without a head; logits of masked tokens, (batch, positions,
            vocab_size); with "pretraining" these and (batch, 2); "sequence" (batch, labels); "token" (batch, positions,
            labels); "question" beginnings and ends, (batch, positions) each. Without the first axis for one sequence.
        """
        return self._answer(ids, self._inputs(ids, mask, types), hidden, dtype)

    def _answer(
        self, ids: ArrayLike, inputs: tuple[Any, ...], hidden: list[Array] | None, dtype: np.dtype[Any] | None
    ) -> Any:
        answer = self.head.infer(self.encoder.infer(*inputs, hidden=hidden, dtype=dtype))
        if np.ndim(ids) == 2:
            return answer
        return tuple(one[0] for one in answer) if isinstance(answer, tuple) else answer[0]

    def hidden_states(
        self,
        ids: ArrayLike,
        mask: ArrayLike | None = None,
        types: ArrayLike | None = None,
        *,
        dtype: np.dtype[Any] | None = None,
    ) -> Array:
        """Return what comes out of the last block, (batch, positions, width), whatever the head."""
        x = self.encoder.infer(*self._inputs(ids, mask, types), dtype=dtype)
        return x if np.ndim(ids) == 2 else x[0]

    def embed(
        self,
        ids: ArrayLike | Sequence[ArrayLike],
        mask: ArrayLike | None = None,
        *,
        normalize: bool = True,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> Array:
        """Return one vector for each sequence: the mean of the hidden states of its tokens (Reimers, Gurevych, 2019).

        Parameters
        ----------
        ids : integers
            (batch, positions), or a list of sequences of different lengths: these are read in batches of like length.
        mask : boolean array, optional
            True where a token is read; for an array of ids.
        normalize : bool
            Scale to length 1, so that a product of two vectors is their cosine.
        batch_size : int
            Sequences of a list that are read at once.
        progress : callable, optional
            Is told how many sequences of a list are done.

        Returns
        -------
        array
            (sequences, width).
        """
        if isinstance(ids, (list, tuple)) and all(np.ndim(one) == 1 for one in ids):
            rows = [self._ids(one)[0] for one in ids]
            return embed_sequences(self, rows, self.config, normalize, batch_size, progress)
        inputs = self._inputs(ids, mask, None)  # type: ignore[arg-type]
        return mean_pool(on_host(self.encoder.infer(*inputs)), inputs[3], normalize)

    def _numbers(self, ids: Array) -> Array | None:
        """Return the number of each position; None where they are 0, 1, 2, ..."""
        return None

    def _inputs(
        self, ids: ArrayLike, mask: ArrayLike | None, types: ArrayLike | None
    ) -> tuple[Array, Array, Array | None, Array | None]:
        name = type(self).__name__
        tokens = self._ids(ids)
        if mask is None:
            real = tokens != self.config.pad_id
        else:
            real = np.atleast_2d(np.asarray(mask))
            if real.dtype != np.bool_:
                raise TypeError(f"{name}: mask must be boolean, got {real.dtype}")
        kinds = np.zeros(tokens.shape, np.int64) if types is None else np.atleast_2d(np.asarray(types))
        if kinds.dtype.kind not in "iu":
            raise TypeError(f"{name}: types must be integers, got {kinds.dtype}")
        for what, array in (("mask", real), ("types", kinds)):
            if array.shape != tokens.shape:
                raise ValueError(f"{name}: {what} must have the shape of ids {tokens.shape}, got {array.shape}")
        _in_range(f"{name}: types", kinds, self.config.types)
        attended = None if real.all() else real[:, None, None, :]
        return tokens, kinds.astype(np.int64, copy=False), self._numbers(tokens), attended

    def _ids(self, ids: ArrayLike) -> Array:
        name, array = type(self).__name__, np.asarray(ids)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name}: ids must be integers, got {array.dtype}")
        if array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(
                f"{name}: ids must have shape (batch, positions) or (positions,), not empty, got {array.shape}"
            )
        if array.shape[-1] > self.config.context:
            raise ValueError(f"{name}: ids may have up to {self.config.context} positions, got {array.shape[-1]}")
        _in_range(f"{name}: ids", array, self.config.vocab_size)
        return np.atleast_2d(array).astype(np.int64, copy=False)

    def _batch(self, batch: tuple[ArrayLike | None, ...]) -> tuple[tuple[Any, ...], tuple[Array, ...]]:
        name, shapes = type(self).__name__, self.head.targets
        count = len(self.inputs)
        if len(batch) != count + len(shapes):
            raise ValueError(
                f"{name}: batch of head {self.config.head!r} must be ({', '.join(self.inputs)}) and {len(shapes)} "
                f"arrays of targets, got {len(batch)} arrays"
            )
        if batch[0] is None:
            raise TypeError(f"{name}: ids must be integers, got None")
        inputs = self._inputs(batch[0], *batch[1:count])
        rows, positions = inputs[0].shape
        targets = tuple(np.asarray(array) for array in batch[count:])
        for array, what in zip(targets, shapes, strict=True):
            shape = {"batch": (rows,), "positions": (rows, positions), "two": (rows, 2)}[what]
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name}: targets must be integers, got {array.dtype}")
            if array.shape != shape:
                raise ValueError(f"{name}: targets must have shape {shape}, got {array.shape}")
        return inputs, targets


def _in_range(what: str, array: Array, end: int) -> None:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= end:
        raise ValueError(f"{what} must be at least 0 and below {end}, got {low if low < 0 else high}")
