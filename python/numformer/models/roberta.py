"""RoBERTa: BERT, trained longer, on masked tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from numformer.models.bert import BERT
from numformer.models.bert_config import BERTConfig, RoBERTaConfig

Array = NDArray[Any]

__all__ = ["RoBERTa", "RoBERTaConfig"]


class RoBERTa(BERT):
    """Understands text (Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", 2019).

    It is :class:`BERT` without the next sentence and with another count of positions: tokens are numbered from
    `pad_id` + 1, padding is `pad_id`. The state dict has the names of Hugging Face's ``RobertaForMaskedLM`` and the
    like. Tokens are masked anew in each batch: :func:`numformer.data.mask_tokens`. Departures: weights of the attention
    are not dropped.

    Parameters
    ----------
    config : RoBERTaConfig
        Sizes, options and head.
    rng : numpy.random.Generator or int, optional
        Draws the initial weights: normal with 0.02.
    """

    renames: ClassVar[Mapping[str, str]] = {
        ours: theirs.replace("bert.", "roberta.") for ours, theirs in BERT.renames.items()
    }
    head_names: ClassVar[Mapping[str | None, Mapping[str, str]]] = {
        None: {"head.pooler.": "roberta.pooler."},
        "masked_lm": {
            "head.dense.": "lm_head.dense.",
            "head.norm.": "lm_head.layer_norm.",
            "head.decoder.bias": "lm_head.bias",
            "head.decoder.": "lm_head.decoder.",
        },
        "sequence": {"head.pooler.dense.": "classifier.dense.", "head.classifier.": "classifier.out_proj."},
        "token": {"head.classifier.": "classifier."},
        "question": {"head.outputs.": "qa_outputs."},
    }
    prefix: ClassVar[str] = "roberta."
    output_layer: ClassVar[Mapping[str, str]] = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }
    config_type: ClassVar[type[BERTConfig]] = RoBERTaConfig

    def _numbers(self, ids: Array) -> Array | None:
        """Return the number of each position: real tokens count from `pad_id` + 1, padding has `pad_id`."""
        real = ids != self.config.pad_id
        return np.cumsum(real, axis=1) * real + self.config.pad_id
