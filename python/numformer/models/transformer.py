"""The encoder-decoder Transformer of "Attention Is All You Need"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numformer.models import marian_bart
from numformer.models.generation import check_sampling
from numformer.models.parts import NormedPositions, Scores
from numformer.models.pretrained import PretrainedModel
from numformer.models.transformer_config import TransformerConfig
from numformer.models.translation import beam_search, check_search, sample_sentences
from numformer.nn import (
    Backward,
    Context,
    Dropout,
    Embedding,
    KVCache,
    LayerNorm,
    LinearCrossEntropy,
    PostNormBlock,
    PostNormDecoderBlock,
    PreNormBlock,
    PreNormDecoderBlock,
    SinusoidalPositions,
    initial,
)
from numformer.nn.backward import chain, take
from numformer.nn.context import DEFAULT
from numformer.nn.dropout import number_dropouts
from numformer.ops.memory import beside, number, on_host
from numformer.packed import Packed

Array = NDArray[Any]
Rows = ArrayLike | Packed
Batch = tuple[Rows, Rows, Rows]
"""Sources, what the decoder reads, and its targets: packed, or rows that are filled at their ends."""

IGNORE = -100
"""A target that does not count."""

__all__ = ["Transformer", "TransformerConfig"]


class Transformer(PretrainedModel):
    """Writes a target sequence while it reads a source sequence (Vaswani et al., 2017): translation.

    With the style of Marian (Junczys-Dowmunt et al., 2018) or BART (Lewis et al., 2020) it reads and writes the folders
    of Hugging Face's ``MarianMTModel`` and ``BartForConditionalGeneration``, whose names its state dict has.

    Parameters
    ----------
    config : TransformerConfig
        Sizes and options.
    rng : numpy.random.Generator or int, optional
        Draws the initial weights: normal, with 1/sqrt(inputs) for maps and 1/sqrt(width) for tables, whose rows are
        multiplied by sqrt(width), so that embeddings and logits have deviation 1.

    Examples
    --------
    >>> import numpy as np
    >>> from numformer.models import Transformer, TransformerConfig
    >>> config = TransformerConfig(vocab_size=20, encoder_layers=1, decoder_layers=1, heads=2, width=8)
    >>> model = Transformer(config, rng=0)
    >>> model.infer(np.array([[5, 6, 7, 2]]), np.array([[1, 9, 8]])).shape
    (1, 3, 20)
    """

    config_type = TransformerConfig
    config: TransformerConfig
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = marian_bart.SPLITS

    def __init__(self, config: TransformerConfig, *, rng: initial.Source | int | None = None) -> None:
        self.config = c = config
        source = np.random.default_rng(rng) if rng is None or isinstance(rng, int) else rng
        dtype = np.dtype(c.dtype)

        published = c.style != "paper"

        def table() -> Embedding:
            return Embedding(
                c.vocab_size,
                c.width,
                scale=c.width**0.5 if c.scale_embedding else 1.0,
                padding=c.pad_id if published else None,
                std=c.width**-0.5,
                dtype=dtype,
                rng=source,
            )

        def positions() -> SinusoidalPositions | NormedPositions:
            if c.style == "bart":
                return NormedPositions(c.context, c.width, eps=c.eps, dtype=dtype, rng=source)
            return SinusoidalPositions(c.context, c.width, halves=c.style == "marian")

        self.tokens = table()
        self.target_tokens = self.tokens if c.tie_weights else table()
        self.positions, self.target_positions = positions(), positions()
        self.dropout, self.target_dropout = Dropout(c.dropout), Dropout(c.dropout)
        block = PostNormBlock if c.norm == "post" else PreNormBlock
        decoder_block = PostNormDecoderBlock if c.norm == "post" else PreNormDecoderBlock
        options: dict[str, Any] = {
            "hidden": c.hidden,
            "activation": c.activation,
            "dropout": c.dropout,
            "eps": c.eps,
            "transposed": published,
            "dtype": dtype,
            "rng": source,
        }
        self.encoder = [block(c.width, c.heads, **options) for _ in range(c.encoder_layers)]
        self.decoder = [decoder_block(c.width, c.heads, **options) for _ in range(c.decoder_layers)]
        # Post-norm blocks end in a norm, pre-norm ones do not.
        self.encoder_norm, self.decoder_norm = (
            LayerNorm(c.width, eps=c.eps, dtype=dtype) if c.norm == "pre" else None for _ in range(2)
        )
        self.head = Scores(
            c.width,
            c.vocab_size,
            bias=False,
            transposed=True,
            weight=self.tokens.weight if c.tie_weights else None,
            dtype=dtype,
            rng=source,
        )
        self.cross_entropy = LinearCrossEntropy(label_smoothing=c.label_smoothing)
        number_dropouts(self)
        self.parameters()  # sets their names

    def _rename(self, path: str) -> str:
        return path if self.config.style == "paper" else marian_bart.rename(path)

    def adapt(self, state: dict[str, Array]) -> dict[str, Array]:
        """Take the bias of the logits out of a file of Marian or BART, and copies of the table."""
        if self.config.style == "paper":
            return state
        found, bias = marian_bart.adapt(self.config, state)
        self.head.constant = bias[0] if bias.any() else None
        return found

    def stored(self) -> dict[str, Array]:
        """Return what model.safetensors holds: the state dict and, in a folder of Marian or BART, that bias."""
        state = self.state_dict()
        if self.config.style == "paper":
            return state
        bias = self.head.constant
        return marian_bart.stored(state, np.zeros(self.config.vocab_size, self.config.dtype) if bias is None else bias)

    def loss(self, batch: Batch, *, ctx: Context | None = None) -> tuple[float, Backward]:
        """Return the mean cross-entropy of a batch, with label smoothing, and its backward.

        Sentences are computed one after another in one array, so that there is no padding in it.

        Parameters
        ----------
        batch : (source, target, targets)
            Integers, each packed (:class:`numformer.data.Packed`): source; target, what the decoder reads, beginning
            with `bos_id`; targets, of the lengths of target, what it shall answer, -100 where that does not count. Or
            each as rows: source (batch, source positions), filled at the end with `pad_id`, target and targets (batch,
            target positions), which end with the last target that counts: what fills them behind it does not matter.
        ctx : Context, optional
            Seed and step of dropout, compute dtype.

        Returns
        -------
        loss : float
            Mean over the targets that count.
        backward : callable
            ``backward(dloss=1.0)`` leaves the gradients in the parameters.
        """
        source, target, targets = self._batch(batch)
        x, embed = self._embed(self.tokens, self.positions, self.dropout, source, ctx)
        encoder = [embed]
        for block in self.encoder:
            x, backward = block(x, cu_seqlens=source.cu_seqlens, ctx=ctx)
            encoder.append(backward)
        if self.encoder_norm is not None:
            x, backward = self.encoder_norm(x)
            encoder.append(backward)
        memory = x
        x, embed_target = self._embed(self.target_tokens, self.target_positions, self.target_dropout, target, ctx)
        decoder = []
        for decoder_block in self.decoder:
            x, backward = decoder_block(
                x, memory, cu_seqlens=target.cu_seqlens, memory_cu_seqlens=source.cu_seqlens, ctx=ctx
            )
            decoder.append(backward)
        ends = []
        if self.decoder_norm is not None:
            x, backward = self.decoder_norm(x)
            ends.append(backward)
        # The output layer, a quarter of all the work, is computed where a target counts only.
        loss, backward = self.cross_entropy(self.head, x, targets, bias=self.head.constant)
        ends.append(backward)
        return number(loss, wait=(ctx or DEFAULT).wait), Backward(
            self._backward, [encoder, embed_target, decoder, ends]
        )

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> None:
        encoder, embed_target, decoder, ends = take(saved)
        dx: Any = chain(ends, dloss)
        dmemory: Any = None
        while decoder:
            dx, dmemory = decoder.pop()(dx, dmemory=dmemory)
        embed_target(dx)
        dx = dmemory
        del dmemory  # chain() would have this frame hold it to the end
        while encoder:
            dx = encoder.pop()(dx)

    def _embed(
        self,
        tokens: Embedding,
        positions: SinusoidalPositions | NormedPositions,
        dropout: Dropout,
        ids: Packed,
        ctx: Context | None,
    ) -> tuple[Array, Backward]:
        x, embed = tokens(ids.values, ctx=ctx)
        x, shift = positions(x, ids=ids.positions)
        x, drop = dropout(x, cu_seqlens=ids.cu_seqlens, ctx=ctx)
        return x, Backward(chain, [embed, shift, drop])

    def infer_loss(self, batch: Batch, *, ctx: Context | None = None) -> float:
        """Return the mean cross-entropy of a batch, in nats a token; no dropout, no label smoothing, nothing kept."""
        source, target, targets = self._batch(batch)
        dtype = (ctx or DEFAULT).dtype
        memory = self._encode(source.values, dtype, positions=source.positions, cu_seqlens=source.cu_seqlens)
        x = self._decode(
            target.values,
            memory,
            dtype,
            positions=target.positions,
            cu_seqlens=target.cu_seqlens,
            memory_cu_seqlens=source.cu_seqlens,
        )
        return number(self.cross_entropy.infer(self.head, x, targets, bias=self.head.constant))

    def encode(self, source_ids: ArrayLike, *, dtype: np.dtype[Any] | None = None) -> Array:
        """Return the encoder's output, (batch, source positions, width); rows at `pad_id` mean nothing."""
        source = self._ids("source_ids", source_ids)
        rows = np.atleast_2d(source)
        memory = self._encode(rows, dtype, mask=self._mask(rows))
        return memory[0] if source.ndim == 1 else memory

    def infer(self, source_ids: ArrayLike, target_ids: ArrayLike, *, dtype: np.dtype[Any] | None = None) -> Array:
        """Return the logits of the next token at every position of the target.

        Parameters
        ----------
        source_ids : integers
            (batch, source positions), filled with `pad_id`, or (source positions,).
        target_ids : integers
            (batch, target positions) or (target positions,), beginning with `bos_id`.
        dtype : dtype, optional
            To compute in; that of the parameters by default.

        Returns
        -------
        array
            (batch, target positions, vocab_size), or without the first axis for one sentence.
        """
        source, target, single = self._pair(source_ids, target_ids)
        mask = self._mask(source)
        logits = self.head.logits(self._decode(target, self._encode(source, dtype, mask=mask), dtype, mask=mask))
        return logits[0] if single else logits

    def cross_attention(self, source_ids: ArrayLike, target_ids: ArrayLike) -> Array:
        """Return how much each target position attends to each source position, to look at.

        Parameters
        ----------
        source_ids, target_ids
            As for :meth:`infer`.

        Returns
        -------
        array
            (decoder_layers, batch, heads, target positions, source positions), or without the batch for one sentence;
            the sums over the last axis are 1.
        """
        source, target, single = self._pair(source_ids, target_ids)
        mask, weights = self._mask(source), list[Array]()
        self._decode(target, self._encode(source, mask=mask), mask=mask, weights=weights)
        every = np.stack(list(map(on_host, weights)))
        return every[:, 0] if single else every

    def _encode(
        self, source: Array, dtype: np.dtype[Any] | None = None, *, positions: Array | None = None, **layout: Any
    ) -> Array:
        """Run the encoder: `layout` is the mask of rows, or where packed sentences begin."""
        x = self.positions.infer(self.tokens.infer(source, dtype=dtype), ids=positions)
        for block in self.encoder:
            x = block.infer(x, **layout)
        return x if self.encoder_norm is None else self.encoder_norm.infer(x)

    def _decode(
        self,
        target: Array,
        memory: Array,
        dtype: np.dtype[Any] | None = None,
        *,
        positions: Array | None = None,
        **layout: Any,
    ) -> Array:
        x = self.target_positions.infer(self.target_tokens.infer(target, dtype=dtype), ids=positions)
        for block in self.decoder:
            x = block.infer(x, memory, **layout)
        return x if self.decoder_norm is None else self.decoder_norm.infer(x)

    def generate(
        self,
        source_ids: ArrayLike,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 0.6,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        length_norm: str = "gnmt",
    ) -> Array:
        """Translate: the encoder runs once, keys and values are kept, sentences that are done cost nothing.

        Parameters
        ----------
        source_ids : integers
            (batch, source positions), filled with `pad_id`, or (source positions,).
        max_new_tokens : int, optional
            The longest result; by default 50 more than the source has tokens, as in the paper, up to the context.
        num_beams : int
            1 takes one token after the other; above 1: beam search.
        length_penalty : float
            alpha in the score log p / ((5 + n) / 6)**alpha of a sentence of n tokens (Wu et al., 2016); 0 prefers
            short ones. For beam search.
        temperature : float
            0 takes the most probable token (greedy); above 0 divides the logits of a draw.
        top_k : int, optional
            Draw from the k most probable tokens.
        top_p : float, optional
            Draw from the smallest set of tokens whose probability reaches p (Holtzman et al., 2020).
        seed : int, optional
            The same seed and the same batch draw the same tokens.
        length_norm : {"gnmt", "power"}
            What log p is divided by: ((5 + n) / 6)**alpha, or n**alpha as in Hugging Face's Transformers.

        Returns
        -------
        array of int64
            (batch, longest result) or (length,): tokens after `bos_id`, up to and with `eos_id` where it was reached,
            then `pad_id`. `pad_id` and `bos_id` are never written.
        """
        check_search(num_beams, length_penalty, length_norm, temperature)
        check_sampling(temperature, top_k, top_p)
        rng = np.random.Generator(np.random.Philox(None if seed is None else initial.seed("generate", seed)))
        c, source = self.config, self._ids("source_ids", source_ids)
        rows = np.atleast_2d(source)
        limits = self._limits(rows, max_new_tokens)
        if limits.max() == 0:
            result = np.empty((rows.shape[0], 0), np.int64)
        elif num_beams > 1:
            result = beam_search(self.decoding(rows), c, limits, num_beams, length_penalty, length_norm)
        else:
            result = sample_sentences(
                self.decoding(rows), c, limits, rng, temperature=temperature, top_k=top_k, top_p=top_p
            )
        return result[0] if source.ndim == 1 else result

    def decoding(self, source: Array) -> TransformerDecoding:
        """Read source sentences, (batch, source positions), and begin their targets: what a search works with."""
        return TransformerDecoding(self, source)

    def _limits(self, source: Array, max_new_tokens: int | None) -> Array:
        if max_new_tokens is None:
            return np.minimum((source != self.config.pad_id).sum(axis=1) + 50, self.config.context)
        if not isinstance(max_new_tokens, (int, np.integer)) or isinstance(max_new_tokens, bool):
            raise TypeError(f"generate: max_new_tokens must be an integer, got {max_new_tokens!r}")
        if not 0 <= max_new_tokens <= self.config.context:
            raise ValueError(
                f"generate: max_new_tokens must be between 0 and the context {self.config.context}, "
                f"got {max_new_tokens}"
            )
        return np.full(source.shape[0], max_new_tokens, np.int64)

    def _mask(self, source: Array) -> Array | None:
        """Return which source positions are read, (batch, 1, 1, source positions); None where all are."""
        read = source != self.config.pad_id
        return None if read.all() else beside(read[:, None, None, :], self.tokens.weight.value)

    def _ids(self, name: str, ids: ArrayLike) -> Array:
        array = np.asarray(ids)
        if array.dtype.kind in "iu" and (array.ndim not in (1, 2) or array.size == 0):
            raise ValueError(
                f"Transformer: {name} must have shape (batch, positions) or (positions,), not empty, got {array.shape}"
            )
        return self._known(name, array, array.shape[-1])

    def _known(self, name: str, array: Array, longest: int) -> Array:
        """Return ids that the model knows, in a dtype that its operations take."""
        if array.dtype.kind not in "iu":
            raise TypeError(f"Transformer: {name} must be integers, got {array.dtype}")
        if longest > self.config.context:
            raise ValueError(f"Transformer: {name} may have up to {self.config.context} positions, got {longest}")
        low, high = int(array.min(initial=0)), int(array.max(initial=0))
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"Transformer: {name} must be at least 0 and below the vocabulary's size {self.config.vocab_size}, "
                f"got {low if low < 0 else high}"
            )
        return array if array.dtype in (np.int32, np.int64) else array.astype(np.int64)

    def _pair(self, source_ids: ArrayLike, target_ids: ArrayLike) -> tuple[Array, Array, bool]:
        source, target = self._ids("source_ids", source_ids), self._ids("target_ids", target_ids)
        if source.ndim != target.ndim or (source.ndim == 2 and source.shape[0] != target.shape[0]):
            raise ValueError(
                f"Transformer: target_ids must have the batch of source_ids {source.shape}, got {target.shape}"
            )
        return np.atleast_2d(source), np.atleast_2d(target), source.ndim == 1

    def _batch(self, batch: Batch) -> tuple[Packed, Packed, Array]:
        """Return source and target, packed, and the targets of target's values."""
        if len(batch) != 3:
            raise ValueError(f"Transformer: batch must be (source, target, targets), got {len(batch)} arrays")
        source, target, targets = batch
        if not (isinstance(source, Packed) and isinstance(target, Packed) and isinstance(targets, Packed)):
            if any(isinstance(part, Packed) for part in batch):
                raise TypeError("Transformer: source, target and targets must all be packed, or none of them")
            source, target, targets = self._packed(*map(np.asarray, batch))
        if len(source) != len(target):
            raise ValueError(
                f"Transformer: target must have as many sequences as source, {len(source)}, got {len(target)}"
            )
        if not np.array_equal(targets.cu_seqlens, target.cu_seqlens):
            raise ValueError("Transformer: targets must have the lengths of target")
        for name, part in (("source", source), ("target", target)):
            if part.values.ndim != 1:
                raise ValueError(f"Transformer: {name} must have values of shape (total,), got {part.values.shape}")
        source, target = (
            Packed(self._known(name, part.values, int(part.lengths.max(initial=0))), part.cu_seqlens)
            for name, part in (("source", source), ("target", target))
        )
        return source, target, targets.values

    def _packed(self, source: Array, target: Array, targets: Array) -> tuple[Packed, Packed, Packed]:
        """Leave out what fills the ends of rows."""
        source, target = self._ids("source", source), self._ids("target", target)
        if source.ndim != 2 or target.ndim != 2 or source.shape[0] != target.shape[0]:
            raise ValueError(
                f"Transformer: source and target must have shape (batch, positions) each, "
                f"got {source.shape} and {target.shape}"
            )
        if targets.shape != target.shape:
            raise ValueError(f"Transformer: targets must have the shape of target {target.shape}, got {targets.shape}")
        read = source != self.config.pad_id
        if (read[:, 1:] > read[:, :-1]).any():
            raise ValueError(f"Transformer: source must have pad_id {self.config.pad_id} at the end of its rows only")
        ends = np.where(targets != IGNORE, np.arange(1, targets.shape[1] + 1), 0).max(axis=1)
        return Packed.cut(source, read.sum(axis=1)), Packed.cut(target, ends), Packed.cut(targets, ends)


class TransformerDecoding:
    """Targets that grow: keys and values of the memory, and of the tokens so far, for every decoder block."""

    def __init__(self, model: Transformer, source: Array) -> None:
        self._model = model
        self._mask = model._mask(source)
        memory = model._encode(source, mask=self._mask)
        self._memories = [block.cross_attention.project(memory) for block in model.decoder]
        self._caches = [KVCache(16) for _ in model.decoder]

    def step(self, tokens: Array) -> Array:
        """Append a token to each row and return the logits of the next one, (rows, vocab_size)."""
        model = self._model
        x = model.target_positions.infer(model.target_tokens.infer(tokens[:, None]), offset=self._caches[0].length)
        for block, memory, cache in zip(model.decoder, self._memories, self._caches, strict=True):
            x = block.infer(x, kv=memory, mask=self._mask, cache=cache)
        if model.decoder_norm is not None:
            x = model.decoder_norm.infer(x)
        return on_host(model.head.logits(x[:, 0]))

    def select(self, rows: Array, sentences: Array) -> None:
        """Keep these rows of the targets and these sentences of the source."""
        for cache in self._caches:
            cache.select(rows)
        if sentences.size < self._memories[0].shape[0]:
            kept = beside(sentences, self._memories[0])
            self._memories = [memory[kept] for memory in self._memories]
            self._mask = None if self._mask is None else self._mask[kept]
