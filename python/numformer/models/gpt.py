"""GPT: a decoder-only Transformer with the architecture of GPT-2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numformer import ops
from numformer.models import pretrained
from numformer.models.config import GPTConfig
from numformer.models.generation import Options, as_given, count_of_new, generate, next_tokens, read_prompts, stream
from numformer.nn import (
    Backward,
    Context,
    Dropout,
    Embedding,
    KVCache,
    LayerNorm,
    LearnedPositions,
    Linear,
    LinearCrossEntropy,
    PreNormBlock,
    initial,
)
from numformer.nn.backward import chain
from numformer.nn.context import DEFAULT
from numformer.nn.dropout import number_dropouts
from numformer.ops.memory import beside, namespace, number, on_host

Array = NDArray[Any]

__all__ = ["GPT", "GPTConfig"]


class GPT(pretrained.PretrainedModel):
    """Predicts the next token (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

    The state dict has the names of Hugging Face's ``GPT2LMHeadModel``. Departures: weights of the attention are not
    dropped, and initial values of all tables have the deviation of the maps.

    Parameters
    ----------
    config : GPTConfig
        Sizes and options.
    rng : numpy.random.Generator or int, optional
        Draws the initial weights: normal with 0.02, and 0.02 / sqrt(2 * layers) for the two maps of a block that end in
        the residual.

    Examples
    --------
    >>> import numpy as np
    >>> from numformer.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=256, context=16, layers=1, heads=2, width=8), rng=0)
    >>> model.infer(np.array([[1, 2, 3]])).shape
    (1, 3, 256)
    """

    renames: ClassVar[Mapping[str, str]] = {
        "tokens.": "transformer.wte.",
        "positions.": "transformer.wpe.",
        "blocks.": "transformer.h.",
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "attention.qkv.": "attn.c_attn.",
        "attention.output.": "attn.c_proj.",
        "mlp.inner.": "mlp.c_fc.",
        "mlp.outer.": "mlp.c_proj.",
        "norm.": "transformer.ln_f.",
        "head.": "lm_head.",
    }

    config_type = GPTConfig

    def __init__(self, config: GPTConfig, *, rng: initial.Source | int | None = None) -> None:
        self.config = c = config
        source = np.random.default_rng(rng) if rng is None or isinstance(rng, int) else rng
        dtype = np.dtype(c.dtype)
        self.tokens = Embedding(c.vocab_size, c.width, std=0.02, dtype=dtype, rng=source)
        self.positions = LearnedPositions(c.context, c.width, std=0.02, dtype=dtype, rng=source)
        self.dropout = Dropout(c.dropout)
        self.blocks = [
            PreNormBlock(
                c.width,
                c.heads,
                hidden=c.hidden,
                causal=True,
                activation=c.activation,
                bias=c.bias,
                dropout=c.dropout,
                eps=c.eps,
                std=0.02,
                output_std=0.02 * (2 * c.layers) ** -0.5,
                dtype=dtype,
                rng=source,
            )
            for _ in range(c.layers)
        ]
        self.norm = LayerNorm(c.width, bias=c.bias, eps=c.eps, dtype=dtype)
        self.head = Linear(
            c.width,
            c.vocab_size,
            bias=False,
            transposed=True,
            weight=self.tokens.weight if c.tie_weights else None,
            std=0.02,
            dtype=dtype,
            rng=source,
        )
        self.cross_entropy = LinearCrossEntropy()
        number_dropouts(self)
        self.parameters()  # sets their names

    def loss(self, batch: tuple[ArrayLike, ...], *, ctx: Context | None = None) -> tuple[float, Backward]:
        """Return the mean cross-entropy of a batch and its backward.

        Parameters
        ----------
        batch : (ids, targets), (ids, mask, targets) or (ids, positions, targets)
            Integers (batch, positions) each; targets of -100 do not count. `mask`, of the same shape, is True where a
            token is real: no other is attended to, and positions count the real ones. `positions`, integers that count
            up from 0 anew at each document (`data.Windows` makes them), keep documents of one row apart: no token sees
            another document, and each has the positions that it has alone.
        ctx : Context, optional
            Seed and step of dropout, compute dtype.

        Returns
        -------
        loss : float
            Mean over the targets that count.
        backward : callable
            ``backward(dloss=1.0)`` leaves the gradients in the parameters.
        """
        ids, mask, targets = self._batch(batch)
        numbers, mask, starts = _places(mask, ids.shape[1])
        mask = None if mask is None else beside(mask, self.tokens.weight.value)
        x, tokens = self.tokens(ids, ctx=ctx)
        x, positions = self.positions(x, ids=numbers)
        x, dropout = self.dropout(x, ctx=ctx)
        backwards = [tokens, positions, dropout]
        for block in self.blocks:
            x, backward = block(x, mask=mask, cu_seqlens=starts, ctx=ctx)
            backwards.append(backward)
        x, backward = self.norm(x)
        backwards.append(backward)
        loss, backward = self.cross_entropy(self.head, x, targets)
        backwards.append(backward)
        return number(loss, wait=(ctx or DEFAULT).wait), Backward(self._backward, backwards)

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> None:
        chain(saved, dloss)

    def infer_loss(self, batch: tuple[ArrayLike, ...], *, ctx: Context | None = None) -> float:
        """Return the mean cross-entropy of a batch; without dropout, and nothing is kept."""
        ids, mask, targets = self._batch(batch)
        x = self._hidden(ids, mask, (ctx or DEFAULT).dtype)
        return number(self.cross_entropy.infer(self.head, x, targets))

    def infer(
        self,
        ids: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        cache: list[KVCache] | None = None,
        last: bool = False,
        hidden: list[Array] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> Array:
        """Return the logits of the next token at every position.

        Parameters
        ----------
        ids : integers
            (batch, positions), or (positions,) for one sequence.
        mask : boolean array, optional
            (batch, positions), those in the cache included: True where a token is real. No other is attended to, and
            positions count the real ones.
        cache : list of KVCache, optional
            From :meth:`new_cache`: `ids` continue the sequences in it.
        last : bool
            Only the logits at the last position.
        hidden : list, optional
            What goes into the first block and comes out of each, the last after the norm, is appended to it: arrays
            (batch, positions, width).
        dtype : dtype, optional
            To compute in; that of the parameters by default.

        Returns
        -------
        array
            (batch, positions, vocab_size), or without the first axis for one sequence.
        """
        tokens = self._ids(ids)
        single = tokens.ndim == 1
        rows = np.atleast_2d(tokens)
        real = None if mask is None else self._mask(mask, rows, cache[0].length if cache else 0)
        logits = self._infer(rows, real, dtype, cache, last, hidden)
        return logits[0] if single else logits

    def _infer(
        self,
        ids: Array,
        mask: Array | None,
        dtype: np.dtype[Any] | None,
        cache: list[KVCache] | None = None,
        last: bool = False,
        hidden: list[Array] | None = None,
    ) -> Array:
        return self.head.logits(self._hidden(ids, mask, dtype, cache, last, hidden))

    def _hidden(
        self,
        ids: Array,
        mask: Array | None,
        dtype: np.dtype[Any] | None,
        cache: list[KVCache] | None = None,
        last: bool = False,
        hidden: list[Array] | None = None,
    ) -> Array:
        """Return what the output layer reads."""
        offset = cache[0].length if cache else 0
        if offset + ids.shape[1] > self.config.context:
            raise ValueError(
                f"GPT: a sequence may have up to {self.config.context} positions, got one of {offset + ids.shape[1]}"
            )
        numbers, mask, starts = _places(mask, ids.shape[1])
        mask = None if mask is None else beside(mask, self.tokens.weight.value)
        x = self.positions.infer(self.tokens.infer(ids, dtype=dtype), offset=offset, ids=numbers)
        states = [] if hidden is None else hidden
        for index, block in enumerate(self.blocks):
            if hidden is not None:
                states.append(x)
            x = block.infer(x, mask=mask, cu_seqlens=starts, cache=cache[index] if cache else None)
        if last and hidden is None:
            x = namespace(x).ascontiguousarray(x[:, -1:])
        x = self.norm.infer(x)
        if hidden is not None:
            states.append(x)
        return namespace(x).ascontiguousarray(x[:, -1:]) if last else x

    def new_cache(self) -> list[KVCache]:
        """Return an empty cache of keys and values for :meth:`infer`."""
        return [KVCache(min(64, self.config.context)) for _ in self.blocks]

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
        use_cache: bool = True,
        slide: int | None = None,
    ) -> Any:
        """Continue sequences of tokens.

        Parameters
        ----------
        ids : integers
            (batch, positions) or (positions,), at least one position; or a list of sequences of different lengths.
        max_new_tokens : int
            How many tokens to add.
        temperature : float
            Divides the logits; 0 takes the most probable token (greedy).
        top_k : int, optional
            Draw from the k most probable tokens.
        top_p : float, optional
            Draw from the smallest set of tokens whose probability reaches p (Holtzman et al., 2020).
        seed : int, optional
            The same seed gives the same text.
        repetition_penalty : float
            Above 1 makes tokens that a sequence has already less probable (Keskar et al., 2019).
        stop : int or several
            Tokens that end a sequence.
        use_cache : bool
            Keep keys and values instead of reading the window again for every token.
        slide : int, optional
            How many of the oldest tokens leave the window when it is full; a quarter of the context by default. Learned
            positions move with the window, so each slide reads it again: 1 keeps the window full, at the price of a
            full pass a token.

        Returns
        -------
        array of int64, or a list of them
            `ids` with the new tokens behind them. In an array a sequence that ended before others is filled up with the
            token that ended it; a list of sequences gives a list, in which each ends where it ended.
        """
        prompts, mask, lengths, single = read_prompts(ids, self._ids)
        tokens, counts = generate(
            self,
            prompts,
            mask,
            count_of_new(max_new_tokens),
            self._options(temperature, top_k, top_p, seed, repetition_penalty, stop, use_cache, slide),
        )
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
        use_cache: bool = True,
        slide: int | None = None,
    ) -> Iterator[Array]:
        """Continue sequences and give each token when it is there; the parameters are those of :meth:`generate`.

        Yields
        ------
        array of int64
            (batch,): the next token of each sequence, -1 for one that has ended.
        """
        prompts, mask, _, _ = read_prompts(ids, self._ids)
        options = self._options(temperature, top_k, top_p, seed, repetition_penalty, stop, use_cache, slide)
        return stream(self, prompts, mask, count_of_new(max_new_tokens), options)

    def log_likelihood(self, ids: ArrayLike | Sequence[ArrayLike]) -> Array:
        """Return log p of sequences: the sum over their tokens but the first, which nothing predicts.

        Parameters
        ----------
        ids
            (batch, positions) or (positions,), or a list of sequences of different lengths; up to the context.

        Returns
        -------
        array
            (batch,), or a number for one sequence.
        """
        tokens, mask, _, single = read_prompts(ids, self._ids)
        targets = next_tokens(tokens, mask)
        logits = self._infer(tokens, mask, None)
        losses = on_host(ops.cross_entropy(logits, beside(targets, logits), reduction="none"))
        rows = -np.asarray(losses).astype(np.float64).sum(axis=1)
        return rows[0] if single else rows

    def adapt(self, state: dict[str, Array]) -> dict[str, Array]:
        """Bring the names of the bare model to those of GPT2LMHeadModel, and leave out old files' causal masks."""
        kept = {name: value for name, value in state.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
        kept = pretrained.prefixed(kept, "transformer.", ("lm_head.",))
        if self.config.tie_weights:
            return pretrained.untied(kept, {"lm_head.weight": "transformer.wte.weight"})
        return kept

    def _options(
        self,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
        repetition_penalty: float,
        stop: int | Iterable[int],
        use_cache: bool,
        slide: int | None,
    ) -> Options:
        options = Options(temperature, top_k, top_p, seed, repetition_penalty, stop, use_cache, slide)
        options.check(self.config.context)
        return options

    def _mask(self, mask: ArrayLike, ids: Array, offset: int) -> Array:
        array = np.atleast_2d(np.asarray(mask))
        if array.dtype != np.bool_:
            raise TypeError(f"GPT: mask must be boolean, got {array.dtype}")
        if array.shape != (ids.shape[0], offset + ids.shape[1]):
            raise ValueError(f"GPT: mask must have shape {(ids.shape[0], offset + ids.shape[1])}, got {array.shape}")
        return array

    def _ids(self, ids: ArrayLike) -> Array:
        array = np.asarray(ids)
        if array.dtype.kind not in "iu":
            raise TypeError(f"GPT: ids must be integers, got {array.dtype}")
        if array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(
                f"GPT: ids must have shape (batch, positions) or (positions,), not empty, got {array.shape}"
            )
        return array

    def _batch(self, batch: tuple[ArrayLike, ...]) -> tuple[Array, Array | None, Array]:
        """Check a batch; what is between ids and targets is a mask or positions."""
        if len(batch) not in (2, 3):
            raise ValueError(
                "GPT: batch must be (ids, targets), (ids, mask, targets) or (ids, positions, targets), "
                f"got {len(batch)} arrays"
            )
        ids, targets = self._ids(batch[0]), np.asarray(batch[-1])
        if ids.ndim != 2 or ids.shape[1] > self.config.context:
            raise ValueError(f"GPT: ids must have shape (batch, up to {self.config.context}), got {ids.shape}")
        if targets.shape != ids.shape:
            raise ValueError(f"GPT: targets must have the shape of ids {ids.shape}, got {targets.shape}")
        if len(batch) == 2:
            return ids, None, targets
        between = np.asarray(batch[1])
        if between.dtype.kind not in "iu":
            return ids, self._mask(between, ids, 0), targets
        if between.shape != ids.shape:
            raise ValueError(f"GPT: positions must have the shape of ids {ids.shape}, got {between.shape}")
        if between[:, 0].any() or ((between[:, 1:] != between[:, :-1] + 1) & (between[:, 1:] != 0)).any():
            raise ValueError("GPT: positions must count up from 0 in each row, anew at each document")
        return ids, between, targets


def _places(between: Array | None, count: int) -> tuple[Array | None, Array | None, Array | None]:
    """Return the numbers of the last `count` positions, which keys are attended to, and where documents begin.

    `between` is a mask, or the positions of packed documents; keys are (batch, 1, 1, keys).
    """
    if between is None:
        return None, None, None
    if between.dtype != np.bool_:
        return between, None, np.append(np.flatnonzero(between == 0), between.size)
    if between.all():
        return None, None, None
    numbers = np.maximum(np.cumsum(between, axis=1) - 1, 0)
    return np.ascontiguousarray(numbers[:, -count:]), between[:, None, None, :], None
