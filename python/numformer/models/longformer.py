"""Longformer: RoBERTa for long documents, with attention in a window and a few global tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numformer.models.bert import Encoder
from numformer.models.bert_config import BERTConfig, RoBERTaConfig
from numformer.models.roberta import RoBERTa
from numformer.nn import SlidingAttention, initial
from numformer.nn.sliding_attention import GLOBAL, LOCAL, UNREAD
from numformer.ops.memory import on_host

Array = NDArray[Any]

__all__ = ["Longformer", "LongformerConfig"]


@dataclass(frozen=True)
class LongformerConfig(RoBERTaConfig):
    """Sizes and options of a :class:`Longformer`; the other parameters are those of :class:`RoBERTaConfig`.

    Parameters
    ----------
    window : int or sequence of int
        How many neighbours a position sees, half of them on either side: an even number, or one for each layer.
    dilation : int or sequence
        Every how manieth of its neighbours a position sees; one number, or for each layer a number or a sequence with
        one for each head. Transformers has no such layers; folders keep it as ``attention_dilation``.
    head : {None, "masked_lm", "sequence", "token"}
        What is computed of the hidden states.
    """

    model_type: ClassVar[str] = "longformer"
    class_name: ClassVar[str] = "Longformer"
    allowed: ClassVar[tuple[str | None, ...]] = (None, "masked_lm", "sequence", "token")

    context: int = 4096
    window: int | tuple[int, ...] = 512
    dilation: int | tuple[int | tuple[int, ...], ...] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.window, int):
            object.__setattr__(self, "window", tuple(self.window))
        # One number stands for all layers: a config.json may name more than there is memory for a tuple of them.
        for one in (self.window,) if isinstance(self.window, int) else self.window:
            initial.size("LongformerConfig", window=one)
            if one % 2:
                raise ValueError(f"LongformerConfig: window must be even, half of it on either side, got {one}")
        if isinstance(self.window, tuple) and len(self.window) != self.layers:
            raise ValueError(
                f"LongformerConfig: window must be one number or {self.layers}, one for each layer, "
                f"got {len(self.window)}"
            )

        if not isinstance(self.dilation, int):
            given = tuple(one if isinstance(one, int) else tuple(one) for one in self.dilation)
            object.__setattr__(self, "dilation", given)
        if isinstance(self.dilation, tuple) and len(self.dilation) != self.layers:
            raise ValueError(
                f"LongformerConfig: dilation must be one number or {self.layers} entries, one for each layer, "
                f"got {len(self.dilation)}"
            )

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each layer."""
        return self.window if isinstance(self.window, tuple) else (self.window,) * self.layers

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a Hugging Face configuration."""
        fields = super().to_json() | {"attention_window": list(self.windows)}
        return fields if self.dilation == 1 else fields | {"attention_dilation": self.dilation}

    @classmethod
    def options_of(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Return the options that only this configuration has."""
        window = given.get("attention_window", cls.window)
        if isinstance(window, list) and len(set(map(str, window))) == 1 and len(window) == given["num_hidden_layers"]:
            window = window[0]
        if not isinstance(window, (int, list)):
            raise TypeError(f"attention_window must be an integer or a list of them, got {window!r}")
        dilation = given.get("attention_dilation", 1)
        if not isinstance(dilation, (int, list)):
            raise TypeError(f"attention_dilation must be an integer or a list, got {dilation!r}")
        return {"window": window, "dilation": dilation}


class Longformer(RoBERTa):
    """Understands long text (Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020).

    It is :class:`RoBERTa` with :class:`numformer.nn.SlidingAttention`: each token sees its neighbours and the global
    tokens, and global tokens see all, so that time and memory grow with the length and not with its square. A text may
    have any length up to the context. The state dict has the names of Hugging Face's ``LongformerForMaskedLM`` and
    ``LongformerForSequenceClassification``. Departures: weights of the attention are not dropped.

    Parameters
    ----------
    config : LongformerConfig
        Sizes, options and head.
    rng : numpy.random.Generator or int, optional
        Draws the initial weights: normal with 0.02.

    Examples
    --------
    >>> import numpy as np
    >>> from numformer.models import Longformer, LongformerConfig
    >>> config = LongformerConfig(vocab_size=50, context=64, layers=1, heads=2, width=8, window=4, head="sequence")
    >>> Longformer(config, rng=0).infer(np.arange(2, 49)).shape
    (2,)
    """

    renames: ClassVar[Mapping[str, str]] = {
        **{f"attention.{one}_global.": f"attention.self.{one}_global." for one in ("query", "key", "value")},
        **{ours: theirs.replace("roberta.", "longformer.") for ours, theirs in RoBERTa.renames.items()},
    }
    head_names: ClassVar[Mapping[str | None, Mapping[str, str]]] = {
        head: {ours: theirs.replace("roberta.", "longformer.") for ours, theirs in names.items()}
        for head, names in RoBERTa.head_names.items()
    }
    prefix: ClassVar[str] = "longformer."
    output_layer: ClassVar[Mapping[str, str]] = {
        ours: theirs.replace("roberta.", "longformer.") for ours, theirs in RoBERTa.output_layer.items()
    }
    config_type: ClassVar[type[BERTConfig]] = LongformerConfig
    inputs: ClassVar[tuple[str, ...]] = ("ids", "mask", "types", "global_tokens")
    config: LongformerConfig

    @classmethod
    def from_roberta(
        cls,
        model: RoBERTa,
        *,
        context: int = 4096,
        window: int | tuple[int, ...] = 512,
        rng: initial.Source | int | None = None,
        **options: Any,
    ) -> Longformer:
        """Make a Longformer of a RoBERTa, to be trained further (section 5 of the paper).

        All weights are copied. The table of positions is filled with that of the RoBERTa, again and again: neighbours
        have the positions that they had. The projections of global tokens begin as those of the others.

        Parameters
        ----------
        model : RoBERTa
            With any head that a Longformer has, or with another one in `options`.
        context : int
            The longest sequence.
        window : int or sequence of int
            See :class:`LongformerConfig`.
        rng : numpy.random.Generator or int, optional
            Draws the initial weights of another head.
        options
            Other fields of the configuration that differ from the RoBERTa's; with another ``head`` that is not copied.
        """
        if type(model) is not RoBERTa:
            raise TypeError(f"Longformer: model must be a RoBERTa, got {type(model).__name__}")
        given = model.config
        same = {field.name: getattr(given, field.name) for field in fields(given)}
        long = cls(LongformerConfig(**(same | {"context": context, "window": window} | options)), rng=rng)
        state = {name: on_host(value) for name, value in model.encoder.state_dict().items()}
        table = state["positions.weight"]
        first = given.pad_id + 1
        state["positions.weight"] = table[np.r_[:first, np.arange(context) % given.context + first]]
        for name, value in list(state.items()):
            if ".attention.qkv." in name:
                for one, part in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                    state[name.replace("qkv", f"{one}_global")] = part
        long.encoder.load_state_dict(state)
        if long.config.head == given.head:
            long.head.load_state_dict(model.head.state_dict())
        return long

    def infer(
        self,
        ids: ArrayLike,
        mask: ArrayLike | None = None,
        types: ArrayLike | None = None,
        global_tokens: ArrayLike | None = None,
        *,
        hidden: list[Array] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> Any:
        """Return what the head answers; the parameters are those of ``BERT.infer`` and the tokens that are global.

        Parameters
        ----------
        ids, mask, types
            As for ``BERT.infer``; any number of positions up to the context.
        global_tokens : boolean array, optional
            True for tokens that see all and are seen by all, of the shape of `ids`; by default none, and the first one
            with head "sequence".
        hidden, dtype
            As for ``BERT.infer``.

        Returns
        -------
        array
            Hidden states, (batch, positions, width), without a head; logits of masked tokens, (batch, positions,
            vocab_size); "sequence" (batch, labels); "token" (batch, positions, labels). Without the first axis for one
            sequence.
        """
        return self._answer(ids, self._inputs(ids, mask, types, global_tokens), hidden, dtype)

    def _encoder(self, rng: initial.Source) -> Encoder:
        window, dilation = self.config.window, self.config.dilation

        def attention(block: int) -> Any:
            one = window if isinstance(window, int) else window[block]
            apart = dilation if isinstance(dilation, int) else dilation[block]
            return functools.partial(SlidingAttention, window=one // 2, dilation=apart)

        return Encoder(self.config, rng, attention)

    def _inputs(
        self,
        ids: ArrayLike,
        mask: ArrayLike | None,
        types: ArrayLike | None,
        global_tokens: ArrayLike | None = None,
    ) -> tuple[Array, Array, Array | None, Array | None]:
        """Return tokens, types, numbers of positions, and what each token is: not read, local or global."""
        tokens, kinds, numbers, attended = super()._inputs(ids, mask, types)
        read = np.ones(tokens.shape, bool) if attended is None else attended.reshape(tokens.shape)
        if global_tokens is None:
            everywhere = np.zeros(tokens.shape, bool)
            everywhere[:, 0] = self.config.head == "sequence"
        else:
            everywhere = np.atleast_2d(np.asarray(global_tokens))
            if everywhere.dtype != np.bool_:
                raise TypeError(f"Longformer: global_tokens must be boolean, got {everywhere.dtype}")
            if everywhere.shape != tokens.shape:
                raise ValueError(
                    f"Longformer: global_tokens must have the shape of ids {tokens.shape}, got {everywhere.shape}"
                )
        roles = np.where(read, np.where(everywhere, GLOBAL, LOCAL), UNREAD).astype(np.int8)
        return tokens, kinds, numbers, roles
