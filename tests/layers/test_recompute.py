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
    layers = 12  # of eight, a fifth of the peak is what a single product packs
    model = GPT(GPTConfig(vocab_size=16, context=128, layers=layers, heads=4, width=64), rng=0)
    ids, targets = RNG.integers(0, 16, (2, 8, 128))

    def peak(recompute: bool) -> int:
        gc.collect()
        nf.empty_pool()
        nf._core.pool_reset_peak()
        before = nf.info()["pool"]["bytes_in_use"]
        _, backward = model.loss((ids, targets), ctx=replace(CTX, recompute=recompute))
        backward()
        return int(nf.info()["pool"]["peak_bytes"] - before)

    all_blocks, one_block = (peak(recompute) for recompute in (False, True))
    assert one_block < all_blocks / 2.5


ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", *ACTIVATIONS])
def test_a_result_made_again_is_that_result(name: str, dtype: Any) -> None:
    first: Any
    if name in ACTIVATIONS:
        first = nn.Linear(24, 24, activation=name, dtype=dtype, rng=np.random.default_rng(1))
    else:
        first = getattr(nn, name)(24, dtype=dtype)
    x = RNG.standard_normal((7, 24)).astype(dtype)
    y, backward = first(x)
    assert backward.again is not None
    np.testing.assert_array_equal(backward.again(), y)
    second = nn.Linear(24, 5, dtype=dtype, rng=np.random.default_rng(2))
    dy = RNG.standard_normal((7, 5)).astype(dtype)
    found = []
    for again in (None, backward.again):
        second.zero_grad()
        dx = second(y, again=again)[1](dy)
        found.append((dx, {name: grad.copy() for name, grad in second.gradients().items()}))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    for parameter, gradient in found[0][1].items():
        np.testing.assert_array_equal(gradient, found[1][1][parameter])
    backward(np.zeros_like(y))
    assert backward.again is None, "after its backward a layer holds nothing"


def test_sums_of_16_bits_are_not_made_again_from_what_was_rounded() -> None:
    x = RNG.standard_normal((7, 24)).astype(np.float16)
    _, backward = nn.Linear(24, 24, activation="gelu", rng=np.random.default_rng(1))(x)
    assert backward.again is None


def test_a_block_keeps_no_norm_and_no_activation() -> None:
    width, rows = 64, 8 * 128
    block = nn.PreNormBlock(width, 4, causal=True, rng=np.random.default_rng(0))
    x = RNG.standard_normal((8, 128, width), np.float32)
    gc.collect()
    nf.empty_pool()  # which lends blocks up to a quarter larger than asked for, if it has such
    before = nf.info()["pool"]["bytes_in_use"]
    _, backward = block(x)
    kept = (nf.info()["pool"]["bytes_in_use"] - before) / (4 * rows * width)
    # Queries, keys and values, the heads' outputs, what is between the branches, four pre-activations: 9 times x; the
    # output; and the statistics of norms and softmax.
    assert kept <= 10.5, "times the size of x"
    backward(x)
