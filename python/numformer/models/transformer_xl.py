"""Transformer-XL: a language model that remembers what it read before."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numformer.models import pretrained
from numformer.models.generation import Options, as_given, count_of_new, generate, next_tokens, read_prompts, stream
from numformer.models.stream_memory import StreamMemory
from numformer.models.transformer_xl_config import TransformerXLConfig
from numformer.nn import Backward, Context, Dropout, Parameter, initial
from numformer.nn.adaptive_embedding import AdaptiveEmbedding
from numformer.nn.adaptive_softmax import AdaptiveSoftmax
from numformer.nn.backward import chain
from numformer.nn.context import DEFAULT
from numformer.nn.dropout import number_dropouts
from numformer.nn.relative_attention import RelativeCache
from numformer.nn.relative_block import RelativeBlock
from numformer.ops.memory import beside, namespace

Array = NDArray[Any]

__all__ = ["TransformerXL", "TransformerXLConfig"]


class TransformerXL(pretrained.PretrainedModel):
    """Predicts the next token of texts of any length (Dai et al., "Transformer-XL: Attentive Language Models Beyond a
    Fixed-Length Context", ACL 2019).

    A text is read segment by segment; each layer attends to its inputs of this segment and to those of the segments
    before, its memory, to which no gradient goes. Positions are distances, so that they mean the same in every segment.
    Input and output are adaptive: see :class:`numformer.nn.AdaptiveEmbedding` and
    :class:`numformer.nn.AdaptiveSoftmax`.

    The state dict has the names of Hugging Face's ``TransfoXLLMHeadModel`` (in Transformers up to 4.57). Departures:
    neither weights of the attention, nor sines, nor what is inside the feed-forward networks are dropped, norms come
    after the residuals only, and heads together are as wide as the model. A text begins with an empty memory, as the
    authors have it; ``new_cache(zeros=True)`` begins as Hugging Face's model does, with a memory full of zeros.

    Parameters
    ----------
    config : TransformerXLConfig
        Sizes and options.
    rng : numpy.random.Generator or int, optional
        Draws the initial weights: normal with 0.02, and 0.02 / sqrt(2 * layers) for the two maps of a block that end in
        the residual; 1/sqrt(width) for tables, whose rows are scaled, and 1/sqrt(inputs) for their maps.

    Examples
    --------
    >>> import numpy as np
    >>> from numformer.models import TransformerXL, TransformerXLConfig
    >>> model = TransformerXL(TransformerXLConfig(context=4, memory=8, layers=1, heads=2, width=8), rng=0)
    >>> cache = model.new_cache()
    >>> model.infer(np.array([[1, 2, 3]]), cache=cache).shape
    (1, 3, 256)
    >>> model.infer(np.array([[4]]), cache=cache).shape  # it remembers the three before
    (1, 1, 256)
    """

    renames: ClassVar[Mapping[str, str]] = {
        "embedding.tables.": "transformer.word_emb.emb_layers.",
        "embedding.maps.": "transformer.word_emb.emb_projs.",
        "softmax.outputs.": "crit.out_layers.",
        "softmax.maps.": "crit.out_projs.",
        "softmax.cluster_": "crit.cluster_",
        "blocks.": "transformer.layers.",
        "norm1.": "dec_attn.layer_norm.",
        "norm2.": "pos_ff.layer_norm.",
        "attention.qkv.": "dec_attn.qkv_net.",
        "attention.positions.": "dec_attn.r_net.",
        "attention.output.": "dec_attn.o_net.",
        "attention.bias_u": "dec_attn.r_w_bias",
        "attention.bias_v": "dec_attn.r_r_bias",
        "bias_u": "transformer.r_w_bias",
        "bias_v": "transformer.r_r_bias",
        "mlp.inner.": "pos_ff.CoreNet.0.",
        "mlp.outer.": "pos_ff.CoreNet.3.",
    }
    config_type: ClassVar[type[TransformerXLConfig]] = TransformerXLConfig
    config: TransformerXLConfig

    def __init__(self, config: TransformerXLConfig, *, rng: initial.Source | int | None = None) -> None:
        self.config = c = config
        source = np.random.default_rng(rng) if rng is None or isinstance(rng, int) else rng
        common: dict[str, Any] = {"dtype": np.dtype(c.dtype), "rng": source}
        self.embedding = AdaptiveEmbedding(c.clusters, c.width, **common)
        self.dropout = Dropout(c.dropout)
        biases = None
        if c.shared_biases:
            shape = (c.heads, c.width // c.heads)
            self.bias_u, self.bias_v = (Parameter(initial.normal(source, shape, 0.02, c.dtype)) for _ in range(2))
            biases = self.bias_u, self.bias_v
        self.blocks = [
            RelativeBlock(
                c.width,
                c.heads,
                hidden=c.hidden,
                clamp=c.clamp,
                window=c.memory - 1 if c.same_length else None,
                biases=biases,
                dropout=c.dropout,
                eps=c.eps,
                std=0.02,
                output_std=0.02 * (2 * c.layers) ** -0.5,
                **common,
            )
            for _ in range(c.layers)
        ]
        self.dropout_out = Dropout(c.dropout)
        self.softmax = AdaptiveSoftmax(
            c.clusters, c.width, embedding=self.embedding, tied=c.tie_weights, tied_maps=c.tied_maps, **common
        )
        number_dropouts(self)
        self.parameters()  # sets their names
        self._training, self._evaluation = StreamMemory(), StreamMemory()

    def _rename(self, path: str) -> str:
        """Name a parameter as files do, in which maps of clusters are bare arrays."""
        return re.sub(r"(emb_projs|out_projs)\.(\d+)\.weight$", r"\1.\2", super()._rename(path))

    def loss(
        self, batch: tuple[ArrayLike, ...], *, memory: list[Array] | None = None, ctx: Context | None = None
    ) -> tuple[float, Backward]:
        """Return the mean of -log p over a batch and its backward.

        Parameters
        ----------
        batch : (ids, targets) or (ids, places, targets)
            Integers (batch, positions) each; targets of -100 do not count. With `places`, (batch, 2), the stream and
            the segment of each row (see :class:`numformer.data.Streams`), the model keeps the memory itself.
        memory : list of arrays, optional
            Hidden states before `ids`, (batch, positions, width) for each layer; an empty list at the beginning of a
            text. It is changed: what it holds after the call is the memory of the next segment. Not with `places`.
        ctx : Context, optional
            Seed and step of dropout, compute dtype.

        Returns
        -------
        loss : float
            Mean over the targets that count.
        backward : callable
            ``backward(dloss=1.0)`` leaves the gradients in the parameters.
        """
        ids, places, targets = self._batch(batch, memory)
        ctx = ctx or DEFAULT
        before = self._before(self._training, places, ctx.step, memory, ids)
        x, backward = self.embedding(ids, ctx=ctx)
        backwards = [backward]
        x, backward = self.dropout(x, ctx=ctx)
        backwards.append(backward)
        states = []
        for index, block in enumerate(self.blocks):
            states.append(x)
            x, backward = block(x, memory=before[index] if before else None, ctx=ctx)
            backwards.append(backward)
        x, backward = self.dropout_out(x, ctx=ctx)
        backwards.append(backward)
        loss, backward = self.softmax(x, targets)
        backwards.append(backward)
        if math.isfinite(loss):  # a memory with NaN would never lose it
            self._remember(self._training, places, memory, before, states)
        return float(loss), Backward(self._backward, backwards)

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> None:
        chain(saved, dloss)

    def infer_loss(
        self, batch: tuple[ArrayLike, ...], *, memory: list[Array] | None = None, ctx: Context | None = None
    ) -> float:
        """Return the mean of -log p over a batch; without dropout, and no gradient is kept.

        The memory of streams is one of its own, so that an evaluation in the course of a training changes nothing.
        """
        ids, places, targets = self._batch(batch, memory)
        before = self._before(self._evaluation, places, -1, memory, ids)
        x = self.embedding.infer(ids, dtype=(ctx or DEFAULT).dtype)
        states = []
        for index, block in enumerate(self.blocks):
            states.append(x)
            x = block.infer(x, memory=before[index] if before else None)
        self._remember(self._evaluation, places, memory, before, states)
        return self.softmax.infer_loss(x, targets)

    def infer(
        self,
        ids: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        cache: list[RelativeCache] | None = None,
        last: bool = False,
        hidden: list[Array] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> Array:
        """Return log p of the next token at every position; a text is read in segments of ``config.context``.

        Parameters
        ----------
        ids : integers
            (batch, positions), or (positions,) for one sequence; any number of positions.
        mask : boolean array, optional
            (batch, positions), all that was read with the cache included: True where a token is real.
        cache : list of RelativeCache, optional
            From :meth:`new_cache`: `ids` continue the sequences in it.
        last : bool
            Only of the last position.
        hidden : list, optional
            What goes into the first block and comes out of each is appended to it: arrays (batch, positions, width).
        dtype : dtype, optional
            To compute in; that of the parameters by default.

        Returns
        -------
        array
            (batch, positions, vocab_size), or without the first axis for one sequence.
        """
        tokens = self._ids(ids)
        rows = np.atleast_2d(tokens)
        cache = self.new_cache() if cache is None else cache
        real = None if mask is None else self._mask(mask, rows, cache[0].length)
        parts, states = [], []
        for first, x, layers in self._segments(rows, real, cache, dtype):
            states.append(layers)
            if not last or first + x.shape[1] == rows.shape[1]:
                parts.append(self.softmax.infer(x[:, -1:] if last else x))
        xp = namespace(parts[0])
        if hidden is not None:
            hidden.extend(xp.concatenate(layer, axis=1) for layer in zip(*states, strict=True))
        scores = parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=1)
        return scores[0] if tokens.ndim == 1 else scores

    def new_cache(self, memory: int | None = None, *, zeros: bool = False, batch: int = 1) -> list[RelativeCache]:
        """Return an empty memory for :meth:`infer`: keys and values of each layer.

        Parameters
        ----------
        memory : int, optional
            Positions to remember; ``config.memory`` by default. More than in training is often better.
        zeros : bool
            Begin with as many positions of zeros, as Hugging Face's model does.
        batch : int
            Number of sequences; for `zeros`.
        """
        reach = self.config.memory if memory is None else memory
        if not isinstance(reach, int) or isinstance(reach, bool):
            raise TypeError(f"TransformerXL: memory must be an integer, got {reach!r}")
        if reach < 0:
            raise ValueError(f"TransformerXL: memory must be at least 0, got {reach}")
        caches = [RelativeCache(reach) for _ in self.blocks]
        if zeros:
            shape = (batch, self.config.heads, reach, self.config.width // self.config.heads)
            for cache in caches:
                zero = namespace(self._table).zeros(shape, self.config.dtype)
                cache.append(zero, zero)
        return caches

    def log_likelihood(self, ids: ArrayLike | Sequence[ArrayLike], *, memory: int | None = None) -> Array:
        """Return log p of sequences: the sum over their tokens but the first, which nothing predicts.

        Parameters
        ----------
        ids
            (batch, positions) or (positions,), or a list of sequences of different lengths; of any length.
        memory : int, optional
            Positions to remember; see :meth:`new_cache`.

        Returns
        -------
        array
            (batch,), or a number for one sequence.
        """
        tokens, mask, _, single = read_prompts(ids, self._ids)
        targets = next_tokens(tokens, mask)
        total = np.zeros(len(tokens))
        for first, x, _ in self._segments(tokens, mask, self.new_cache(memory), None):
            total -= self.softmax.losses(x, targets[:, first : first + x.shape[1]]).sum(axis=1)
        return total[0] if single else total

    def generate(
        self,
        ids: ArrayLike | Sequence[ArrayLike],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        repetition_penalty: float = 1.0,
        stop: int | Iterable[int] = (),
    ) -> Any:
        """Continue sequences of tokens; parameters and result are those of ``GPT.generate``.

        There is no end of the context: each token sees ``config.memory`` positions before it, and what these saw.
        """
        prompts, mask, lengths, single = read_prompts(ids, self._ids)
        options = self._options(temperature, top_k, top_p, seed, repetition_penalty, stop)
        tokens, counts = generate(self, prompts, mask, count_of_new(max_new_tokens), options, context=sys.maxsize)
        return as_given(tokens, counts, prompts, lengths, single)

    def stream(
        self,
        ids: ArrayLike | Sequence[ArrayLike],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        repetition_penalty: float = 1.0,
        stop: int | Iterable[int] = (),
    ) -> Iterator[Array]:
        """Continue sequences and give each token when it is there; see ``GPT.stream``."""
        prompts, mask, _, _ = read_prompts(ids, self._ids)
        options = self._options(temperature, top_k, top_p, seed, repetition_penalty, stop)
        return stream(self, prompts, mask, count_of_new(max_new_tokens), options, context=sys.maxsize)

    def training_memory(self, step: int) -> dict[str, Array]:
        """Return the memory of the streams of a training run before `step`, for its checkpoint."""
        return self._training.state(step)

    def load_training_memory(self, arrays: Mapping[str, Array]) -> None:
        """Set what :meth:`training_memory` returned; ValueError for what does not fit."""
        self._training.load(arrays, self.config.layers, self.config.width)

    def adapt(self, state: dict[str, Array]) -> dict[str, Array]:
        """Leave out copies of tied weights and the wavelengths of the sines."""
        c = self.config
        copies: dict[str, str] = {}
        if c.tie_weights:
            for i in range(len(self.embedding.tables)):
                copies[f"crit.out_layers.{i}.weight"] = f"transformer.word_emb.emb_layers.{i}.weight"
        if self.softmax.maps:
            for i, tied in enumerate(c.tied_maps):
                if tied:
                    copies[f"crit.out_projs.{i}"] = f"transformer.word_emb.emb_projs.{c.clusters.place(i)[0]}"
        copies |= self._copied_biases()
        kept = {name: value for name, value in state.items() if name != "transformer.pos_emb.inv_freq"}
        return pretrained.untied(kept, copies)

    def stored(self) -> dict[str, Array]:
        """Return the state dict, and what Hugging Face's model reads besides: wavelengths, and shared biases."""
        state = self.state_dict()
        width = self.config.width
        waves = (1 / 10000.0 ** (np.arange(0, width, 2) / width)).astype(self.config.dtype)
        copies = {copy: state[name].copy() for copy, name in self._copied_biases().items()}
        return state | copies | {"transformer.pos_emb.inv_freq": waves}

    def _copied_biases(self) -> dict[str, str]:
        """Return the names under which files have shared biases in each layer once more."""
        if not self.config.shared_biases:
            return {}
        return {
            f"transformer.layers.{i}.dec_attn.{name}": f"transformer.{name}"
            for i in range(self.config.layers)
            for name in ("r_w_bias", "r_r_bias")
        }

    def _segments(
        self, ids: Array, mask: Array | None, cache: list[RelativeCache], dtype: np.dtype[Any] | None
    ) -> Iterator[tuple[int, Array, list[Array]]]:
        """Read segment after segment; give where it begins, what the softmax reads, and the states of all layers."""
        before = cache[0].length
        for first in range(0, ids.shape[1], self.config.context):
            piece = ids[:, first : first + self.config.context]
            seen = None
            if mask is not None:
                end = before + first + piece.shape[1]
                keys = min(before + first, cache[0].window or 0) + piece.shape[1]
                seen = beside(mask[:, None, None, end - keys : end], self._table)
            x = self.embedding.infer(piece, dtype=dtype)
            states = [x]
            for block, one in zip(self.blocks, cache, strict=True):
                x = block.infer(x, mask=seen, cache=one)
                states.append(x)
            yield first, x, states

    def _remember(
        self,
        streams: StreamMemory,
        places: Array | None,
        memory: list[Array] | None,
        before: list[Array],
        states: list[Array],
    ) -> None:
        """Keep the last positions of what went into each layer."""
        reach = self.config.memory
        if places is None and memory is None:
            return
        kept = []
        for index, x in enumerate(states):
            if before and x.shape[1] < reach:
                x = namespace(x).concatenate([before[index], x], axis=1)
            kept.append(x[:, max(0, x.shape[1] - reach) :])
        if places is not None:
            streams.write(places, kept)
        elif memory is not None:
            memory[:] = kept

    @property
    def _table(self) -> Array:
        """An array that is where the model is."""
        return self.embedding.tables[0].weight.value

    def _before(
        self, streams: StreamMemory, places: Array | None, step: int, memory: list[Array] | None, ids: Array
    ) -> list[Array]:
        """Return what each layer remembers, where the model is; nothing at the beginning of a text."""
        if places is not None:
            return streams.read(places, step, self._table)
        return [beside(array, self._table) for array in self._memory(memory, ids)]

    def _memory(self, memory: list[Array] | None, ids: Array) -> list[Array]:
        """Check a memory that was given."""
        if not memory:
            return []
        if len(memory) != self.config.layers:
            raise ValueError(
                f"TransformerXL: memory must have {self.config.layers} arrays, one for each layer, got {len(memory)}"
            )
        width = self.config.width
        for array in memory:
            if array.ndim != 3 or array.shape[::2] != (len(ids), width) or array.shape[1] != memory[0].shape[1]:
                raise ValueError(
                    f"TransformerXL: memory must have arrays of shape ({len(ids)}, positions, {width}), "
                    f"got {array.shape}"
                )
        return memory

    def _options(
        self,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
        repetition_penalty: float,
        stop: int | Iterable[int],
    ) -> Options:
        options = Options(temperature, top_k, top_p, seed, repetition_penalty, stop)
        options.check(sys.maxsize)
        return options

    def _mask(self, mask: ArrayLike, ids: Array, offset: int) -> Array:
        array = np.atleast_2d(np.asarray(mask))
        if array.dtype != np.bool_:
            raise TypeError(f"TransformerXL: mask must be boolean, got {array.dtype}")
        if array.shape != (len(ids), offset + ids.shape[1]):
            raise ValueError(
                f"TransformerXL: mask must have shape {(len(ids), offset + ids.shape[1])}, got {array.shape}"
            )
        return array

    def _ids(self, ids: ArrayLike) -> Array:
        array, count = np.asarray(ids), self.config.vocab_size
        if array.dtype.kind not in "iu":
            raise TypeError(f"TransformerXL: ids must be integers, got {array.dtype}")
        if array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(
                f"TransformerXL: ids must have shape (batch, positions) or (positions,), not empty, got {array.shape}"
            )
        if array.min() < 0 or array.max() >= count:
            raise ValueError(f"TransformerXL: ids must be in [0, {count}), got {array.min()} to {array.max()}")
        return array if array.dtype in (np.int32, np.int64) else array.astype(np.int64)

    def _batch(self, batch: tuple[ArrayLike, ...], memory: list[Array] | None) -> tuple[Array, Array | None, Array]:
        if len(batch) not in (2, 3):
            raise ValueError(
                f"TransformerXL: batch must be (ids, targets) or (ids, places, targets), got {len(batch)} arrays"
            )
        ids, targets = self._ids(batch[0]), np.asarray(batch[-1])
        if ids.ndim != 2:
            raise ValueError(f"TransformerXL: ids must have shape (batch, positions), got {ids.shape}")
        if targets.shape != ids.shape:
            raise ValueError(f"TransformerXL: targets must have the shape of ids {ids.shape}, got {targets.shape}")
        if len(batch) == 2:
            return ids, None, targets
        places = np.asarray(batch[1])
        if places.dtype.kind not in "iu" or places.shape != (len(ids), 2) or (places < 0).any():
            raise ValueError(
                f"TransformerXL: places must be integers of shape ({len(ids)}, 2), at least 0, "
                f"got {places.dtype} of {places.shape}"
            )
        if memory is not None:
            raise ValueError("TransformerXL: memory must be None with places")
        return ids, places, targets
