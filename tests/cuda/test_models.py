"""Other models than GPT on the device: loss, gradients and answers are those of the host."""

import copy

import gpu
import gpu_twin
import numpy as np
import pytest
from numformer.models import BERT, BERTConfig, Transformer, TransformerConfig
from numformer.nn import Context
from numformer.optim import AdamW

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")

CTX = Context(seed=3)


@pytest.fixture
def device():
    with gpu.standing_in(gpu_twin.core) as found:
        yield found


def agree(device, here, batch):
    there = copy.deepcopy(here).to("cuda")
    loss, backward = here.loss(batch, ctx=CTX)
    backward()
    device.counts.clear()
    found, backward = there.loss(batch, ctx=CTX)
    backward()
    assert device.counts["to_host"] == 1  # the loss
    assert found == pytest.approx(loss, rel=1e-5)
    gradients = there.gradients()
    assert gradients.keys() == here.gradients().keys()
    for name, gradient in here.gradients().items():
        largest = max(abs(gradient).max(), 1e-3)
        np.testing.assert_allclose(gpu.got(gradients[name]), gradient, atol=1e-5 * largest, rtol=1e-4, err_msg=name)
    assert there.infer_loss(batch) == pytest.approx(here.infer_loss(batch), rel=1e-5)
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
