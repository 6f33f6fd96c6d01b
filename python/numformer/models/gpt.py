"""GPT: a decoder-only Transformer with the architecture of GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numformer.models import pretrained
from numformer.models.config import GPTConfig
from numformer.models.generation import generate
from numformer.nn import (
    Backward,
    Context,
    CrossEntropy,
    Dropout,
    Embedding,
    KVCache,
    LayerNorm,
    LearnedPositions,
    Linear,
    Module,
    PreNormBlock,
    initial,
)
from numformer.nn.backward import take
from numformer.nn.context import DEFAULT
from numformer.nn.dropout import number_dropouts

Array = NDArray[Any]

__all__ = ["GPT", "GPTConfig"]


class GPT(Module):
    """Predicts the next token (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

    The state dict has the names of Hugging Face's ``GPT2LMHeadModel``.

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
        self.cross_entropy = CrossEntropy(overwrite=True)
        number_dropouts(self)
        self.parameters()  # sets their names

    def loss(self, batch: tuple[ArrayLike, ArrayLike], *, ctx: Context | None = None) -> tuple[float, Backward]:
        """Return the mean cross-entropy of a batch and its backward.

        Parameters
        ----------
        batch : (ids, targets)
            Integers (batch, positions) each; targets of -100 do not count.
        ctx : Context, optional
            Seed and step of dropout, compute dtype.

        Returns
        -------
        loss : float
            Mean over the targets that count.
        backward : callable
            ``backward(dloss=1.0)`` leaves the gradients in the parameters.
        """
        ids, targets = self._batch(batch)
        x, tokens = self.tokens(ids, ctx=ctx)
        x, positions = self.positions(x)
        x, dropout = self.dropout(x, ctx=ctx)
        backwards = [tokens, positions, dropout]
        for block in self.blocks:
            x, backward = block(x, ctx=ctx)
            backwards.append(backward)
        x, backward = self.norm(x)
        backwards.append(backward)
        logits, backward = self.head(x)
        backwards.append(backward)
        loss, backward = self.cross_entropy(logits, targets)
        backwards.append(backward)
        return float(loss), Backward(self._backward, backwards)

    def _backward(self, saved: list[Any], dloss: float = 1.0) -> None:
        backwards = list(take(saved))
        gradient: Any = dloss
        while backwards:
            gradient = backwards.pop()(gradient)

    def infer_loss(self, batch: tuple[ArrayLike, ArrayLike], *, ctx: Context | None = None) -> float:
        """Return the mean cross-entropy of a batch; without dropout, and nothing is kept."""
        ids, targets = self._batch(batch)
        logits = self._infer(ids, (ctx or DEFAULT).dtype)
        return float(self.cross_entropy.infer(logits, targets))

    def infer(
        self,
        ids: ArrayLike,
        *,
        cache: list[KVCache] | None = None,
        last: bool = False,
        dtype: np.dtype[Any] | None = None,
    ) -> Array:
        """Return the logits of the next token at every position.

        Parameters
        ----------
        ids : integers
            (batch, positions), or (positions,) for one sequence.
        cache : list of KVCache, optional
            From :meth:`new_cache`: `ids` continue the sequences in it.
        last : bool
            Only the logits at the last position.
        dtype : dtype, optional
            To compute in; that of the parameters by default.

        Returns
        -------
        array
            (batch, positions, vocab_size), or without the first axis for one sequence.
        """
        tokens = self._ids(ids)
        single = tokens.ndim == 1
        logits = self._infer(tokens[None] if single else tokens, dtype, cache, last)
        return logits[0] if single else logits

    def _infer(
        self, ids: Array, dtype: np.dtype[Any] | None, cache: list[KVCache] | None = None, last: bool = False
    ) -> Array:
        offset = cache[0].length if cache else 0
        if offset + ids.shape[1] > self.config.context:
            raise ValueError(
                f"GPT: a sequence may have up to {self.config.context} positions, got one of {offset + ids.shape[1]}"
            )
        x = self.positions.infer(self.tokens.infer(ids, dtype=dtype), offset=offset)
        for index, block in enumerate(self.blocks):
            x = block.infer(x, cache=cache[index] if cache else None)
        if last:
            x = np.ascontiguousarray(x[:, -1:])
        return self.head.infer(self.norm.infer(x))

    def new_cache(self) -> list[KVCache]:
        """Return an empty cache of keys and values for :meth:`infer`."""
        return [KVCache(min(64, self.config.context)) for _ in self.blocks]

    def generate(
        self,
        ids: ArrayLike,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        use_cache: bool = True,
        slide: int | None = None,
    ) -> Array:
        """Continue sequences of tokens.

        Parameters
        ----------
        ids : integers
            (batch, positions) or (positions,); at least one position.
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
        use_cache : bool
            Keep keys and values instead of reading the window again for every token.
        slide : int, optional
            How many of the oldest tokens leave the window when it is full; a quarter of the context by default. Learned
            positions move with the window, so each slide reads it again: 1 keeps the window full, at the price of a
            full pass a token.

        Returns
        -------
        array of int64
            `ids` with the new tokens behind them.
        """
        return generate(
            self,
            self._ids(ids),
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            use_cache=use_cache,
            slide=slide,
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into a folder, in Hugging Face's format."""
        pretrained.save(self.config.to_json(), self.state_dict(), Path(path))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> GPT:
        """Read a folder with the config.json and model.safetensors of a GPT-2."""
        folder = Path(path)
        fields, state = pretrained.load(folder)
        try:
            config = GPTConfig.from_json(fields)
            model = cls(config, rng=initial.Zeros())
            model.load_state_dict(pretrained.gpt2_names(state, tied=config.tie_weights))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder}: {error}") from error
        return model

    def _ids(self, ids: ArrayLike) -> Array:
        array = np.asarray(ids)
        if array.dtype.kind not in "iu":
            raise TypeError(f"GPT: ids must be integers, got {array.dtype}")
        if array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(
                f"GPT: ids must have shape (batch, positions) or (positions,), not empty, got {array.shape}"
            )
        return array

    def _batch(self, batch: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
        if len(batch) != 2:
            raise ValueError(f"GPT: batch must be (ids, targets), got {len(batch)} arrays")
        ids, targets = self._ids(batch[0]), np.asarray(batch[1])
        if ids.ndim != 2 or ids.shape[1] > self.config.context:
            raise ValueError(f"GPT: ids must have shape (batch, up to {self.config.context}), got {ids.shape}")
        if targets.shape != ids.shape:
            raise ValueError(f"GPT: targets must have the shape of ids {ids.shape}, got {targets.shape}")
        return ids, targets
