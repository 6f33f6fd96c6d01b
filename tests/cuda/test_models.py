"""Other models than GPT on the device: loss, gradients and answers are those of the host."""

import copy

import gpu
import gpu_twin
import ml_dtypes
import numpy as np
import pytest
from numformer.data import Streams
from numformer.models import (
    BERT,
    BERTConfig,
    Longformer,
    LongformerConfig,
    RoBERTa,
    RoBERTaConfig,
    Transformer,
    TransformerConfig,
    TransformerXL,
    TransformerXLConfig,
    ViT,
    ViTConfig,
)
from numformer.nn import Context
from numformer.ops import memory
from numformer.optim import AdamW
from numformer.train import Trainer

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")

CTX = Context(seed=3)


@pytest.fixture
def device():
    with gpu.standing_in(gpu_twin.core) as found:
        yield found


def agree(device, here, batch, ctx=CTX, losses=1):
    there = copy.deepcopy(here).to("cuda")
    bits = 1e-5 if ctx.dtype is None else 1e-2
    loss, backward = here.loss(batch, ctx=ctx)
    backward()
    device.counts.clear()
    found, backward = there.loss(batch, ctx=ctx)
    backward()
    assert device.counts["to_host"] == losses
    assert found == pytest.approx(loss, rel=bits)
    gradients = there.gradients()
    assert gradients.keys() == here.gradients().keys()
    # Some gradients are zero but for roundings, those of keys' biases for one: these are of the size of the others'.
    most = max(abs(gradient).max() for gradient in here.gradients().values())
    for name, gradient in here.gradients().items():
        largest = max(abs(gradient).max(), 0.1 * most)
        np.testing.assert_allclose(
            gpu.got(gradients[name]), gradient, atol=bits * largest, rtol=10 * bits, err_msg=name
        )
    assert there.infer_loss(batch, ctx=ctx) == pytest.approx(here.infer_loss(batch, ctx=ctx), rel=bits)
    AdamW(there.parameters(), lr=0.01, clip_norm=1.0).step()
    return there


@pytest.mark.parametrize("style", ["paper", "marian", "bart"])
def test_transformer(device, rng, style):
    config = TransformerConfig(
        vocab_size=19, context=12, encoder_layers=2, decoder_layers=2, heads=2, width=8, dropout=0.1, style=style
    )
    here = Transformer(config, rng=1)
    source, target = rng.integers(4, 19, (3, 7)), rng.integers(4, 19, (3, 6))
    source[0, 5:] = config.pad_id
    targets = np.roll(target, -1, axis=1)
    targets[1, 3:] = -100
    batch = source, target, targets
    there = copy.deepcopy(here).to("cuda")
    for options in ({"num_beams": 1}, {"num_beams": 3}):
        found, expected = (model.generate(source, 8, **options) for model in (there, here))
        np.testing.assert_array_equal(found, expected)
    logits = [model.infer(source, target) for model in (there, here)]
    np.testing.assert_allclose(gpu.got(logits[0]), logits[1], rtol=1e-4, atol=1e-5)
    agree(device, here, batch)
    with pytest.raises(ValueError, match=r"LinearCrossEntropy: targets must be in \[0, 19\) or -100, got 77"):
        there.loss((source, target, np.full_like(targets, 77)), ctx=CTX)


@pytest.mark.parametrize("head", ["masked_lm", "pretraining", "sequence", "token", "question"])
def test_bert(device, rng, head):
    config = BERTConfig(vocab_size=23, context=9, layers=2, heads=2, width=8, head=head, labels=4, dropout=0.1)
    here = BERT(config, rng=1)
    ids = rng.integers(1, 23, (3, 7))
    ids[1, 4:] = config.pad_id
    tokens = np.where(rng.random((3, 7)) < 0.4, rng.integers(0, 23, (3, 7)), -100)
    tokens[0, 0] = 5
    wanted = {
        "masked_lm": (tokens,),
        "pretraining": (rng.integers(0, 2, 3), tokens),
        "sequence": (rng.integers(0, 4, 3),),
        "token": (rng.integers(0, 4, (3, 7)),),
        "question": (rng.integers(0, 4, (3, 2)),),
    }[head]
    there = agree(device, here, (ids, None, rng.integers(0, 2, (3, 7)), *wanted))
    assert there.embed(ids).shape == (3, 8)


MIXED = Context(seed=3, dtype=np.dtype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("ctx", [CTX, MIXED], ids=["float32", "bfloat16"])
def test_vit(device, rng, ctx):
    config = ViTConfig(image=12, patch=4, channels=2, labels=5, layers=2, heads=2, width=8, dropout=0.1)
    here = ViT(config, rng=1)
    images, labels = rng.standard_normal((3, 2, 12, 12)).astype(np.float32), np.array([4, -100, 0])
    there = agree(device, here, (images, labels), ctx)
    here.load_state_dict(there.state_dict())
    hidden = [], []
    for model, kept in zip((here, there), hidden, strict=True):
        close(model.infer(images[0], hidden=kept), model.infer(images)[0])
    assert len(hidden[1]) == 3
    for one, other in zip(*hidden, strict=True):
        close(other, one)
    with pytest.raises(ValueError, match=r"CrossEntropy: targets must be in \[0, 5\) or -100, got 5"):
        there.loss((images, np.array([1, 5, 0])), ctx=ctx)


def close(found, expected):
    np.testing.assert_allclose(gpu.got(found), gpu.got(expected), rtol=1e-4, atol=1e-5)


def documents(rng, pad):
    """Tokens of texts of different lengths, which are read, and which are global; one of these is not read."""
    read = np.arange(11) < np.array([11, 5, 8])[:, None]
    ids = np.where(read, rng.integers(2, 23, read.shape), pad)
    everywhere = np.zeros(read.shape, bool)
    everywhere[0, [1, 9]] = everywhere[1, [0, 4, 7]] = True
    return ids, read, everywhere


@pytest.mark.parametrize("ctx", [CTX, MIXED], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dilation", [1, (2, (1, 3))], ids=["near", "dilated"])
@pytest.mark.parametrize("head", ["masked_lm", "sequence", "token"])
def test_longformer(device, rng, head, dilation, ctx):
    config = LongformerConfig(
        vocab_size=23,
        context=16,
        layers=2,
        heads=2,
        width=8,
        window=4,
        dilation=dilation,
        head=head,
        dropout=0.1,
    )
    here = Longformer(config, rng=1)
    for parameter in here.parameters():  # the bias of keys of global tokens too
        parameter.value += 0.1 * rng.standard_normal(parameter.value.shape).astype(np.float32)
    ids, read, everywhere = documents(rng, config.pad_id)
    targets = rng.integers(0, 2, 3) if head == "sequence" else np.where(read, rng.integers(0, 2, read.shape), -100)
    there = agree(device, here, (ids, read, None, everywhere, targets), ctx)
    here.load_state_dict(there.state_dict())
    close(there.infer(ids, read, global_tokens=everywhere), here.infer(ids, read, global_tokens=everywhere))
    close(there.infer(ids[0]), here.infer(ids[0]))
    np.testing.assert_allclose(
        there.embed([ids[0], ids[1, :5]]), here.embed([ids[0], ids[1, :5]]), rtol=1e-4, atol=1e-5
    )


def test_a_longformer_of_a_roberta(device, rng):
    small = {"vocab_size": 23, "layers": 1, "heads": 2, "width": 8, "head": "masked_lm"}
    model = RoBERTa(RoBERTaConfig(context=9, **small), rng=1)
    here = Longformer.from_roberta(model, context=30, window=4)
    there = Longformer.from_roberta(model.to("cuda"), context=30, window=4).to("cuda")
    ids = rng.integers(2, 23, (2, 20))
    close(there.infer(ids), here.infer(ids))


@pytest.mark.parametrize("ctx", [CTX, MIXED], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"cutoffs": (5, 12), "embedding": 4, "shrink": 2, "shared_biases": True, "clamp": 5, "same_length": True}],
    ids=["plain", "adaptive"],
)
def test_transformer_xl(device, rng, options, ctx):
    config = TransformerXLConfig(vocab_size=19, context=5, memory=6, layers=2, heads=2, width=8, dropout=0.1, **options)
    here = TransformerXL(config, rng=1)
    for parameter in here.parameters():
        parameter.value += 0.1 * rng.standard_normal(parameter.value.shape).astype(np.float32)
    ids, targets = rng.integers(0, 19, (2, 3, 5))
    targets[0, 2] = -100
    ids[0, 1] = targets[0, 0] = 18  # the last cluster is in it
    bits = 1e-5 if ctx.dtype is None else 1e-2
    memories = [], []
    there = copy.deepcopy(here).to("cuda")
    for _ in range(3):  # what is remembered grows until it is full
        losses = []
        for model, remembered in zip((here, there), memories, strict=True):
            model.zero_grad()
            loss, backward = model.loss((ids, targets), memory=remembered, ctx=ctx)
            backward()
            losses.append(loss)
        assert losses[1] == pytest.approx(losses[0], rel=bits)
        found = there.gradients()
        for name, gradient in here.gradients().items():
            if ctx.dtype is not None:
                # Where a rounding to 16 bits turns the sign of ReLU's argument, an element of a gradient jumps; and in
                # those of the two biases much cancels.
                size = max(float(np.linalg.norm(gradient)), 2e-2 * gradient.size**0.5)
                assert np.linalg.norm(gpu.got(found[name]) - gradient) < 0.1 * size, name
                continue
            largest = max(abs(gradient).max(), 1e-3)
            np.testing.assert_allclose(
                gpu.got(found[name]), gradient, atol=3 * bits * largest, rtol=10 * bits, err_msg=name
            )
    assert memories[1][0].shape == (3, 6, 8) and memory.device_of(memories[1][0]) == "cuda"
    with pytest.raises(ValueError, match=r"AdaptiveSoftmax: targets must be in \[0, 19\) or -100, got 77"):
        there.loss((ids, np.full_like(targets, 77)), ctx=ctx)


def test_what_a_transformer_xl_is_used_for(device, rng):
    config = TransformerXLConfig(
        vocab_size=19, context=5, memory=6, layers=2, heads=2, width=8, cutoffs=(5, 12), embedding=4, shrink=2
    )
    here = TransformerXL(config, rng=1)
    there = copy.deepcopy(here).to("cuda")
    ids = rng.integers(0, 19, (2, 13))
    hidden = [], []
    for model, kept in zip((here, there), hidden, strict=True):
        close(model.infer(ids, hidden=kept), here.infer(ids))
        zeros = model.new_cache(zeros=True, batch=2)
        close(
            model.infer(ids[:, :4], cache=zeros, last=True),
            here.infer(ids[:, :4], cache=here.new_cache(zeros=True, batch=2))[:, -1:],
        )
    for one, other in zip(*hidden, strict=True):
        close(other, one)
    prompts = [ids[0], ids[1, :6]]
    np.testing.assert_allclose(there.log_likelihood(prompts), here.log_likelihood(prompts), rtol=1e-5)
    for one, other in zip(there.generate(prompts, 9, seed=2), here.generate(prompts, 9, seed=2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_streams_of_a_transformer_xl_go_on_where_they_were(device, rng, tmp_path):
    """Trained over streams on the device, whose memory goes through a checkpoint to the CPU and back."""
    data = Streams(rng.integers(0, 19, 200), 5, 4)

    def trainer(device, steps, folder):
        model = TransformerXL(TransformerXLConfig(19, context=5, memory=6, layers=1, heads=2, width=8), rng=1)
        optimizer = AdamW(model.parameters(), lr=0.01)
        options = {"batch_size": 4, "log_every": 1, "progress": False, "out_dir": folder, "device": device}
        return Trainer(model, optimizer, data, steps=steps, validation=data, **options)

    whole = trainer("cpu", 6, tmp_path / "whole").run()
    trainer("cuda", 2, tmp_path / "parts").run()
    for device_name, steps in (("cpu", 4), ("cuda", 6)):
        one = trainer(device_name, steps, tmp_path / "parts")
        one.resume()
        rows = one.run()
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in whole], rtol=1e-4)
    assert rows[-1]["validation_loss"] == pytest.approx(whole[-1]["validation_loss"], rel=1e-4)


class Pictures:
    """Samples for the Trainer: images and labels in order, and by chance."""

    def __init__(self, images, labels):
        self.arrays = images, labels

    def __len__(self):
        return len(self.arrays[0])

    def samples(self, start, stop):
        return tuple(array[start:stop] for array in self.arrays)

    def draw(self, count, *, seed, step):
        rows = np.random.default_rng([seed, step]).integers(0, len(self), count)
        return tuple(array[rows] for array in self.arrays)


def test_a_vit_is_trained(device, rng):
    data = Pictures(rng.standard_normal((20, 2, 12, 12)).astype(np.float32), rng.integers(0, 5, 20))
    config = ViTConfig(image=12, patch=4, channels=2, labels=5, layers=1, heads=2, width=8, dropout=0.1)
    losses = []
    for where in ("cpu", "cuda"):
        model = ViT(config, rng=1)
        optimizer = AdamW(model.parameters(), lr=0.01, clip_norm=1.0)
        options = {"batch_size": 6, "micro_batch": 4, "steps": 4, "log_every": 1, "progress": False, "device": where}
        rows = Trainer(model, optimizer, data, validation=data, **options).run()
        losses.append([value for row in rows for value in (row["loss"], row["validation_loss"]) if value is not None])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(losses[0]) > 4
