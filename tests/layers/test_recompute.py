"""Blocks that run forward once more in their backward: the same bits, less memory, parameters complete once."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numformer as nf
import numpy as np
import pytest
from numformer import nn
from numformer.models import BERT, GPT, BERTConfig, GPTConfig, Transformer, TransformerConfig

CTX = nn.Context(seed=3, step=2, sample=5)
RNG = np.random.default_rng(0)
IDS, TARGETS = RNG.integers(3, 40, (2, 3, 12))
MODELS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "gpt": (
        lambda: GPT(GPTConfig(vocab_size=40, context=12, layers=3, heads=2, width=16, dropout=0.2), rng=0),
        (IDS, TARGETS),
    ),
    "bert": (
        lambda: BERT(
            BERTConfig(vocab_size=40, context=12, layers=2, heads=2, width=16, dropout=0.2, head="masked_lm"), rng=0
        ),
        (IDS, None, None, TARGETS),
    ),
    **{
        norm: (
            lambda norm=norm: Transformer(
                TransformerConfig(
                    vocab_size=40, encoder_layers=2, decoder_layers=2, heads=2, width=16, dropout=0.2, norm=norm
                ),
                rng=0,
            ),
            (IDS, IDS, TARGETS),
        )
        for norm in ("pre", "post")
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_not_a_bit_changes(name: str) -> None:
    make, batch = MODELS[name]
    found = []
    for recompute in (False, True):
        model = make()
        complete: list[str] = []
        for parameter in model.parameters():
            parameter.on_complete = lambda p, complete=complete: complete.append(p.name)
        loss, backward = model.loss(batch, ctx=replace(CTX, recompute=recompute))
        backward(0.5)
        assert len(set(complete)) == len(complete), "complete once"
        found.append((loss, sorted(complete), model.gradients()))
    (loss, complete, gradients), (again, complete_again, others) = found
    assert loss == again and complete == complete_again and gradients.keys() == others.keys()
    for parameter_name, gradient in gradients.items():
        np.testing.assert_array_equal(others[parameter_name], gradient, err_msg=parameter_name)


def test_memory_is_that_of_one_block() -> None:
    layers = 8
    model = GPT(GPTConfig(vocab_size=16, context=128, layers=layers, heads=4, width=64), rng=0)
    ids, targets = RNG.integers(0, 16, (2, 8, 128))

    def peak(recompute: bool) -> int:
        gc.collect()
        nf._core.pool_reset_peak()
        before = nf.info()["pool"]["bytes_in_use"]
        _, backward = model.loss((ids, targets), ctx=replace(CTX, recompute=recompute))
        backward()
        return int(nf.info()["pool"]["peak_bytes"] - before)

    all_blocks, one_block = (peak(recompute) for recompute in (False, True))
    assert one_block < all_blocks / 2.5
