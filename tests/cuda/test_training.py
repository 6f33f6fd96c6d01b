"""Layers, models, optimizers and the Trainer on the device: what they do on the CPU, but for roundings."""

from types import SimpleNamespace

import cuda_host
import gpu
import gpu_twin
import numformer as nf
import numpy as np
import pytest
from numformer.data import Windows
from numformer.models import GPT, GPTConfig
from numformer.nn import Context
from numformer.ops import memory
from numformer.optim import SGD, Adafactor, AdamW, Lion, decay_groups
from numformer.train import Trainer

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")

CONFIG = {"vocab_size": 17, "context": 8, "layers": 2, "heads": 2, "width": 8}


@pytest.fixture
def device():
    with gpu.standing_in(gpu_twin.core) as found:
        yield found


def gpt(**options):
    return GPT(GPTConfig(**CONFIG | options), rng=3)


def tokens(rng, count=200):
    return rng.integers(0, CONFIG["vocab_size"], count)


def train(model, data, device, folder=None, **options):
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-2, clip_norm=1.0)
    trainer = Trainer(
        model,
        optimizer,
        Windows(data, CONFIG["context"]),
        **{"batch_size": 4, "steps": 4, "log_every": 1, "progress": False, "device": device, "out_dir": folder}
        | options,
    )
    return trainer, trainer.run()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch": 3},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"checkpoint_activations": True},
        {"ema": 0.5, "nan": "skip"},
    ],
    ids=str,
)
def test_a_gpt_learns_what_it_learns_on_the_cpu(device, rng, options):
    data = tokens(rng)
    extra = {"validation": Windows(tokens(rng, 60), CONFIG["context"]), "eval_every": 2}
    (here, expected), (there, found) = (
        train(gpt(dropout=0.1), data, device, **extra, **options) for device in ("cpu", "cuda")
    )
    assert memory.device_of(here.model.tokens.weight.value) == "cpu"
    assert all(memory.device_of(p.value) == "cuda" for p in there.model.parameters())
    bits = {None: 1e-4 if gpu.TRUE else 1e-5}.get(options.get("dtype"), 2e-2)
    for column in ("loss", "validation_loss", "grad_norm"):
        columns = [[row[column] for row in rows if row[column] is not None] for rows in (expected, found)]
        np.testing.assert_allclose(*columns, rtol=bits)
    assert expected[-1]["loss"] != expected[0]["loss"]
    for one, other in zip(here.model.parameters(), there.model.parameters(), strict=True):
        np.testing.assert_allclose(gpu.got(other.value), one.value, rtol=bits, atol=2 * bits)


@pytest.mark.parametrize("options", [{"tie_weights": False, "activation": "relu", "bias": False}, {"dtype": "float64"}])
def test_gradients_of_other_gpts(device, rng, options):
    here, there = gpt(**options), gpt(**options).to("cuda")
    ids, targets = tokens(rng, 24).reshape(3, 8), tokens(rng, 24).reshape(3, 8)
    mask = np.ones((3, 8), bool)
    mask[1, :3] = False
    positions = np.concatenate([np.arange(5), np.arange(3)])[None].repeat(3, axis=0)
    for batch in ((ids, targets), (ids, mask, targets), (ids, positions, targets)):
        losses = []
        for model in (here, there):
            model.zero_grad()
            loss, backward = model.loss(batch, ctx=Context(seed=1))
            backward()
            losses.append(loss)
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert here.infer_loss(batch) == pytest.approx(there.infer_loss(batch), rel=1e-5)
        found = there.gradients()
        for name, gradient in here.gradients().items():
            np.testing.assert_allclose(gpu.got(found[name]), gradient, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_kernels_themselves_learn_the_same(rng):
    """Those of the GPU, run on the host."""
    core = pytest.importorskip("cuda_host").load()
    data = tokens(rng)
    with gpu.standing_in(core):
        (_, expected), (_, found) = (
            train(gpt(dropout=0.1, layers=1), data, device, steps=3) for device in ("cpu", "cuda")
        )
    for column in ("loss", "grad_norm"):
        np.testing.assert_allclose(*[[row[column] for row in rows] for rows in (found, expected)], rtol=1e-4)


@cuda_host.stand_in
@pytest.mark.parametrize("options", [{}, {"micro_batch": 2}, {"nan": "skip"}, {"dtype": "float16"}], ids=str)
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_step_waits_once_when_all_of_it_is_on_its_way(device, rng, monkeypatch, options, clip_norm):
    """For the loss and the norm of the gradients together."""
    model = gpt()
    optimizer = AdamW(model.parameters(), lr=1e-2, clip_norm=clip_norm)
    data = Windows(tokens(rng), CONFIG["context"])
    trainer = Trainer(model, optimizer, data, batch_size=4, steps=1, progress=False, device="cuda", **options)
    trainer.run()
    launched, wait = [], device.wait
    monkeypatch.setattr(device, "wait", lambda what: (launched.append(gpu_twin.calls[-1]), wait(what)))
    device.counts.clear()
    loss, count, norm = trainer._update(1e-2, SimpleNamespace(asked=0))
    assert launched == ["adam_update"] and device.counts["to_host"] == 1 and "synchronize" not in device.counts
    assert np.isfinite(loss) and count == 32 and (norm is None) == (clip_norm is None)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("nan", ["skip", "stop"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_step_that_is_not_finite_changes_nothing(device, rng, what, nan, clip_norm):
    if (what, nan, clip_norm) == ("gradient", "stop", None):
        pytest.skip("a norm that nobody asks for is not looked at")
    data, results = tokens(rng), []
    for where in ("cpu", "cuda"):
        model = gpt()
        optimizer = AdamW(model.parameters(), lr=1e-2, clip_norm=clip_norm)
        original = model.loss

        def loss(batch, ctx, original=original, model=model):
            value, backward = original(batch, ctx=ctx)
            if ctx.step != 1:
                return value, backward

            def spoilt(dloss):
                backward(dloss)
                model.norm.weight.grad[:1] = np.nan

            return (value * np.nan, backward) if what == "loss" else (value, spoilt)

        model.loss = loss
        options = {"batch_size": 4, "steps": 3, "log_every": 1, "progress": False, "nan": nan, "device": where}
        trainer = Trainer(model, optimizer, Windows(data, CONFIG["context"]), **options)
        if nan == "stop":
            with pytest.raises(FloatingPointError, match=r"the (loss|norm of the gradients) is nan at step 2"):
                trainer.run()
        else:
            trainer.run()
        assert (optimizer.steps, trainer.skipped) == (1 if nan == "stop" else 2, 1)
        results.append([row["loss"] for row in trainer.history] + [gpu.got(p.value) for p in model.parameters()])
    # Adam brings gradients that are zero but for roundings, of keys' biases, nearer to the learning rate, 1e-2.
    noise = 1e-4 if gpu.TRUE else 1e-6
    for here, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=noise)


def test_numbers_of_tokens_are_checked_before_they_are_copied(device, rng):
    model = gpt().to("cuda")
    ids = tokens(rng, 8)[None]
    device.counts.clear()
    for name, wrong in (("ids", (np.where(ids == ids[0, 3], 17, ids), ids)), ("targets", (ids, np.full_like(ids, -1)))):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 17\).*, got (17|-1)"):
            model.loss(wrong)
    assert device.counts == {"to_device": 1}  # the ids of the second, whose targets are looked at last, as on the CPU
    loss, _ = model.loss((ids, np.where(ids == ids, -100, ids)))
    assert loss == 0


def test_a_checkpoint_goes_on_wherever_it_was_written(device, rng, tmp_path):
    data = tokens(rng)
    _, whole = train(gpt(), data, "cuda", tmp_path / "whole", steps=6)
    train(gpt(), data, "cuda", tmp_path / "half", steps=3, eval_every=3)
    model = gpt()
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-2, clip_norm=1.0)
    options = {"batch_size": 4, "log_every": 1, "progress": False, "out_dir": tmp_path / "half"}
    trainer = Trainer(model, optimizer, Windows(data, CONFIG["context"]), steps=5, device="cuda", **options)
    assert trainer.resume() == 3
    trainer.run()
    model = gpt()
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-2, clip_norm=1.0)
    trainer = Trainer(model, optimizer, Windows(data, CONFIG["context"]), steps=6, **options)
    assert trainer.resume() == 5
    rows = trainer.run()
    assert rows[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-5)


def test_a_folder_is_the_same_from_either(device, rng, tmp_path):
    there = gpt().to("cuda")
    there.save_pretrained(tmp_path)
    here = GPT.from_pretrained(tmp_path)
    for name, value in here.state_dict().items():
        np.testing.assert_array_equal(value, gpu.got(there.state_dict()[name]))
    there.load_state_dict({name: value + 1 for name, value in here.state_dict().items()})
    there.load_state_dict(there.state_dict())
    for name, value in there.state_dict().items():
        np.testing.assert_array_equal(gpu.got(value), here.state_dict()[name] + 1)
    back = there.to("cpu")
    assert type(back.tokens.weight.value) is np.ndarray


def test_generation(device, rng):
    here, there = gpt(), gpt().to("cuda")
    prompt = tokens(rng, 6).reshape(2, 3)
    for options in ({"temperature": 0.0}, {"seed": 5}, {"seed": 5, "use_cache": False}):
        np.testing.assert_array_equal(there.generate(prompt, 9, **options), here.generate(prompt, 9, **options))
    np.testing.assert_allclose(there.log_likelihood(prompt), here.log_likelihood(prompt), rtol=1e-5)
    ids = [prompt[0], prompt[1, :2]]
    for one, other in zip(there.generate(ids, 4, seed=1), here.generate(ids, 4, seed=1), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: Adafactor(p, lr=0.05, weight_decay=0.01, clip_norm=1.0),
        lambda p: Lion(p, lr=1e-3, weight_decay=0.1, clip_norm=1.0),
    ],
)
def test_other_optimizers(device, rng, make):
    data = tokens(rng)
    results = []
    for where in ("cpu", "cuda"):
        model = gpt()
        optimizer = make(model.parameters())
        trainer = Trainer(
            model, optimizer, Windows(data, 8), batch_size=4, steps=3, log_every=1, progress=False, device=where
        )
        results.append([row["loss"] for row in trainer.run()])
    np.testing.assert_allclose(*results, rtol=1e-5)


@cuda_host.stand_in
def test_a_device_that_there_is_not(rng):
    with pytest.raises(ValueError, match="Trainer: device must be 'cpu' or 'cuda', got 'tpu'"):
        train(gpt(), tokens(rng), "tpu")
    with gpu.standing_in(gpu_twin.core, devices=0), pytest.raises(RuntimeError, match="no NVIDIA GPU"):
        train(gpt(), tokens(rng), "cuda")


def test_layers_are_called_on_arrays_of_their_device(device, rng):
    layer = nf.nn.Linear(3, 2, rng=np.random.default_rng(0)).to("cuda")
    with pytest.raises((TypeError, ValueError), match="matmul: b must be in the processor's memory"):
        layer.infer(np.ones((1, 3), np.float32))
    y, backward = layer(gpu.put(np.ones((4, 3), np.float32)))
    assert memory.device_of(backward(y)) == "cuda"
    assert memory.device_of(layer.weight.grad) == "cuda"
    layer.to("cpu")
    assert type(layer.weight.grad) is np.ndarray
