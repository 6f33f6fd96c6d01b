"""Other models than GPT on the device: loss, gradients and answers are those of the host."""

import copy

import gpu
import gpu_twin
import ml_dtypes
import numpy as np
import pytest
from numformer.models import (
    BERT,
    BERTConfig,
    Longformer,
    LongformerConfig,
    RoBERTa,
    RoBERTaConfig,
    Transformer,
    TransformerConfig,
    ViT,
    ViTConfig,
)
from numformer.nn import Context
from numformer.optim import AdamW

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
    for name, gradient in here.gradients().items():
        largest = max(abs(gradient).max(), 1e-3)
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
