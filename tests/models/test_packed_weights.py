"""Models that read packed weights: the same answers, from fewer bits, until something is trained."""

from __future__ import annotations

from pathlib import Path

import numformer as nf
import numpy as np
import pytest
from numformer import models
from numformer.models import GPT, GPTConfig
from numformer.nn import Embedding, Linear, Module
from numformer.optim import SGD, AdamW, Average


def gpt(seed: int = 0) -> GPT:
    return GPT(GPTConfig(vocab_size=61, context=40, layers=2, heads=2, width=24), rng=seed)


def linears(model: GPT) -> list[Linear]:
    return [module for _, module in model.modules() if isinstance(module, Linear)]


def test_packing_changes_no_bit_of_many_rows_and_no_token(rng):
    model, ids = gpt(), rng.integers(0, 61, (2, 30))
    want, tokens = model.infer(ids), model.generate(ids[0, :5], 12, temperature=0)
    model.pack()
    assert all(layer.packed is not None and layer.packed.stored == "float32" for layer in linears(model))
    np.testing.assert_array_equal(model.infer(ids), want)
    np.testing.assert_array_equal(model.generate(ids[0, :5], 12, temperature=0), tokens)
    model.unpack()
    assert all(layer.packed is None for layer in linears(model))


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "int8"])
def test_fewer_bits_are_those_of_the_weights(rng, stored):
    """Linear maps with the weights that were kept give the same; the embedding, which is looked up, keeps its own."""
    model, ids = gpt(), rng.integers(0, 61, (3, 11))
    exact = model.infer(ids)
    model.pack(stored)
    got = model.infer(ids)
    assert 0 < np.abs(got - exact).max() < 0.1 * np.abs(exact).max()
    kept = {id(layer): layer.packed.unpack() for layer in linears(model) if layer.packed is not None}
    for layer in linears(model):
        if layer is not model.head:  # its weight is the embedding's
            value = kept[id(layer)]
            layer.weight.value = np.ascontiguousarray(value.T if layer.transposed else value)
    model.unpack()
    model.head.pack(stored)
    np.testing.assert_allclose(model.infer(ids), got, rtol=0, atol=2e-5 * np.abs(got).max())
    targets = rng.integers(0, 61, ids.shape)
    want = nf.cross_entropy(model.infer(ids), targets)
    np.testing.assert_allclose(model.infer_loss((ids, targets)), want, rtol=1e-6)  # by the same head


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_loss_of_many_rows_is_that_of_their_logits(rng, stored):
    """A packed head makes logits of some rows at a time; targets that do not count cost nothing."""
    model = gpt()
    model.pack(stored)
    ids, targets = rng.integers(0, 61, (23, 40)), rng.integers(0, 61, (23, 40))
    for share in (0.0, 0.3, 1.0):
        some = np.where(rng.random(targets.shape) < share, -100, targets)
        want = nf.cross_entropy(model.infer(ids), some)
        np.testing.assert_allclose(model.infer_loss((ids, some)), want, rtol=1e-6)
    with pytest.raises(ValueError, match="targets"):
        model.infer_loss((ids, np.where(targets == 0, 61, targets)))


def test_bfloat16_is_packed_and_not_held_twice(rng, tmp_path: Path):
    model = gpt()
    model.save_pretrained(tmp_path)
    narrow = GPT.from_pretrained(tmp_path, dtype="bfloat16")
    assert all(layer.packed is not None and layer.packed.stored == "bfloat16" for layer in linears(narrow))
    only = [layer.weight for layer in linears(narrow) if layer is not narrow.head]
    assert all(weight._value is None for weight in only)
    ids = rng.integers(0, 61, (2, 9))
    got = narrow.infer(ids)
    assert all(weight._value is None for weight in only), "answering needs no other copy"
    for name, value in narrow.state_dict().items():  # made again, to the bit
        want = model.state_dict()[name]
        np.testing.assert_array_equal(value, want.astype(value.dtype), err_msg=name)
        assert value.flags.c_contiguous
    narrow.unpack()
    np.testing.assert_array_equal(narrow.infer(ids), got)


def test_training_and_loading_let_the_copies_go(rng):
    model, batch = gpt(), (rng.integers(0, 61, (2, 9)), rng.integers(0, 61, (2, 9)))
    model.pack("int8")
    _, backward = model.loss(batch)
    backward()
    AdamW(model.parameters(), lr=0.1).step()
    fresh = gpt(1)
    fresh.load_state_dict({name: value.copy() for name, value in model.state_dict().items()})
    np.testing.assert_array_equal(model.infer(batch[0]), fresh.infer(batch[0]))
    model.pack("int8")
    model.load_state_dict(gpt(2).state_dict())
    np.testing.assert_array_equal(model.infer(batch[0]), gpt(2).infer(batch[0]))


class Shared(Module):
    """A table of words that is also the output layer, and a second layer with the same weight the other way round."""

    def __init__(self) -> None:
        self.tokens = Embedding(9, 8, rng=np.random.default_rng(0))
        self.head = Linear(8, 9, bias=False, transposed=True, weight=self.tokens.weight)
        self.back = Linear(9, 8, bias=False, weight=self.tokens.weight)


@pytest.mark.parametrize("path", ["tokens", "back", "step", "value", "changed", "average"])
def test_no_copy_outlives_its_weight(rng, path):
    """Whoever changes a shared weight, no layer goes on with a copy of what it was."""
    model = Shared()
    weight = model.tokens.weight
    x, y = (rng.standard_normal((3, n)).astype(np.float32) for n in (8, 9))
    optimizer, average = SGD([weight], lr=0.5), Average([weight], decay=0.5)
    if path == "step":  # packed between the backward and the step
        _, backward = model.tokens(np.array([1, 2, 1]))
        backward(x)
    model.pack("int8")
    assert model.head.packed is not None and model.back.packed is not None
    if path == "tokens":
        _, backward = model.tokens(np.array([1, 2, 1]))
        backward(x)
    elif path == "back":
        _, backward = model.back(y)
        backward(x)
    elif path == "value":
        weight.value = weight.value + 1
    elif path == "changed":
        weight.value[...] += 1
        weight.changed()
    elif path == "average":
        average.values[0] += 1
        with average.applied():
            np.testing.assert_array_equal(model.head.infer(x), nf.matmul(x, weight.value.T))
    if path in ("tokens", "back", "step"):
        optimizer.step()
    assert model.head.packed is None and model.back.packed is None
    np.testing.assert_array_equal(model.head.infer(x), nf.matmul(x, weight.value.T))
    np.testing.assert_array_equal(model.back.infer(y), nf.matmul(y, weight.value))


def test_from_pretrained_in_int8(rng, tmp_path: Path):
    model, prompt = gpt(), rng.integers(0, 61, 6)
    model.save_pretrained(tmp_path)
    for read in (GPT.from_pretrained, models.from_pretrained):
        narrow = read(tmp_path, dtype="int8")
        assert all(layer.packed is not None and layer.packed.stored == "int8" for layer in linears(narrow))
        model.pack(np.int8)
        np.testing.assert_array_equal(
            narrow.generate(prompt, 20, temperature=0), model.generate(prompt, 20, temperature=0)
        )


def test_bad_dtypes():
    with pytest.raises(TypeError, match="PackedMatrix: dtype must be"):
        gpt().pack(np.int32)
    double = GPT(GPTConfig(vocab_size=5, context=4, layers=1, heads=1, width=4, dtype="float64"), rng=0)
    with pytest.raises(TypeError, match="PackedMatrix: dtype must be float64 for a float64 b"):
        double.pack("int8")
    double.pack()
