"""TransformerXL: gradients, memory, training over streams, long texts, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gradient import along
from numformer import nn
from numformer.data import Streams, Windows
from numformer.models import TransformerXL, TransformerXLConfig
from numformer.optim import AdamW
from numformer.train import Trainer

SMALL: dict[str, Any] = {"vocab_size": 11, "context": 4, "memory": 6, "layers": 2, "heads": 2, "width": 8}
ADAPTIVE: dict[str, Any] = {"cutoffs": (4, 7), "shrink": 2}


def _model(**options: Any) -> TransformerXL:
    model = TransformerXL(TransformerXLConfig(**(SMALL | {"dtype": "float64"} | options)), rng=0)
    rng = np.random.default_rng(5)
    for parameter in model.parameters():
        parameter.value += 0.2 * rng.standard_normal(parameter.value.shape)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        ADAPTIVE,
        {**ADAPTIVE, "tie_weights": False, "tie_maps": (False, False, True), "shared_biases": True},
        {"embedding": 6, "cutoffs": (5,), "clamp": 3},
        {"same_length": True, "memory": 5},
        {"dropout": 0.2},
    ],
    ids=["plain", "adaptive", "untied-shared", "one-table-clamp", "same-length", "dropout"],
)
def test_gradient(options: dict[str, Any], rng: np.random.Generator) -> None:
    """No gradient goes through the memory: it is held fixed while weights are moved."""
    model = _model(**options)
    for block in model.blocks:  # half of the units on, half off: no difference steps over a kink of ReLU
        block.mlp.inner.bias.value += np.resize([9.0, -9.0], block.mlp.inner.outputs)
    ctx = nn.Context(seed=1, step=4)
    memory: list[Any] = []
    first, second = rng.integers(0, 11, (2, 3, 5))
    model.loss((first, first), memory=memory, ctx=ctx)
    model.zero_grad()
    targets = rng.integers(0, 11, (3, 5))
    targets[0, 1:3] = -100
    targets[1] = np.arange(5) + 4  # no cluster without one
    loss, backward = model.loss((second, targets), memory=list(memory), ctx=ctx)
    assert np.isfinite(loss)
    backward()
    assert all(parameter.pending == 0 for parameter in model.parameters())
    for parameter in model.parameters():
        if parameter.fresh:
            assert "emb" in parameter.name or "crit" in parameter.name  # a cluster without ids
            continue
        along(
            lambda: model.loss((second, targets), memory=list(memory), ctx=ctx)[0],
            parameter.value,
            parameter.grad.copy(),
            rng,
        )
        parameter.reset()


@pytest.mark.parametrize("options", [{}, {"same_length": True}, {"clamp": 2}], ids=["all", "same-length", "clamp"])
def test_segments_see_what_the_whole_sees(options: dict[str, Any], rng: np.random.Generator) -> None:
    """One layer with a memory of the whole text has the scores of one segment of all of it, in pieces of any size."""
    ids = rng.integers(0, 11, (2, 24))
    long = _model(context=24, memory=24, **options)
    whole = long.infer(ids)
    short = _model(context=5, memory=24, **options)
    np.testing.assert_allclose(short.infer(ids), whole, rtol=1e-10, atol=1e-10)
    cache = short.new_cache()
    pieces = [short.infer(ids[:, a:b], cache=cache) for a, b in ((0, 1), (1, 9), (9, 10), (10, 24))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(short.infer(ids, last=True)[:, 0], whole[:, -1], rtol=1e-10, atol=1e-10)
    hidden: list[Any] = []
    short.infer(ids[0], hidden=hidden)
    assert [h.shape for h in hidden] == [(1, 24, 8)] * 3
    np.testing.assert_allclose(short.softmax.infer(hidden[-1])[0], whole[0], rtol=1e-10, atol=1e-10)


def test_memory_reaches_as_far_as_it_says(rng: np.random.Generator) -> None:
    """With one layer a token changes the scores of `memory` positions after its segment, and none behind."""
    model = _model(layers=1, context=1, memory=6)
    ids = rng.integers(0, 11, 12)
    other = ids.copy()
    other[2] = (other[2] + 1) % 11
    differs = np.abs(model.infer(ids) - model.infer(other)).max(axis=-1) > 1e-9
    np.testing.assert_array_equal(np.flatnonzero(differs), np.arange(2, 9))
    cache = [model.new_cache(3) for _ in range(2)]
    differs = np.abs(model.infer(ids, cache=cache[0]) - model.infer(other, cache=cache[1])).max(axis=-1) > 1e-9
    np.testing.assert_array_equal(np.flatnonzero(differs), np.arange(2, 6))


@pytest.mark.parametrize("options", [{}, {"same_length": True}], ids=["all", "same-length"])
def test_hidden_states_and_kept_keys_agree(options: dict[str, Any], rng: np.random.Generator) -> None:
    model = _model(**ADAPTIVE, **options)
    memory: list[Any] = []
    cache = model.new_cache()
    total = 0.0
    text = rng.integers(0, 11, (3, 21))
    for first in range(0, 20, 4):
        ids, targets = text[:, first : first + 4], text[:, first + 1 : first + 5]
        loss = model.infer_loss((ids, targets), memory=memory)
        trained, _ = model.loss((ids, targets), memory=list(memory)) if first == 0 else (None, None)
        scores = model.infer(ids, cache=cache)
        want = -np.take_along_axis(scores, targets[..., None], -1).mean()
        np.testing.assert_allclose(loss, want, rtol=1e-11)
        assert trained is None or np.isfinite(trained)
        total += 12 * loss
        assert [m.shape for m in memory] == [(3, min(6, first + 4), 8)] * 2
    np.testing.assert_allclose(-model.log_likelihood(text).sum(), total, rtol=1e-11)
    np.testing.assert_allclose(model.log_likelihood(text[1]), model.log_likelihood(text)[1], rtol=1e-11)


def test_prompts_of_different_lengths(rng: np.random.Generator) -> None:
    """Each text of a batch has the tokens and the probability that it has alone."""
    model = _model(**ADAPTIVE)
    prompts = [rng.integers(0, 11, n) for n in (3, 9, 1)]
    together = model.generate(prompts, 7, temperature=0)
    for prompt, got in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(got, model.generate(prompt, 7, temperature=0))
    texts = [rng.integers(0, 11, n) for n in (5, 2, 8)]
    np.testing.assert_allclose(
        model.log_likelihood(texts), [model.log_likelihood(text) for text in texts], rtol=1e-11, atol=1e-12
    )


def test_sampling_is_a_function_of_the_seed() -> None:
    model = _model()
    one, same, other = (model.generate(np.array([1, 2]), 40, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    stopped = model.generate(np.array([1, 2]), 40, seed=1, stop=int(one[5]))
    np.testing.assert_array_equal(stopped[:6], one[:6])


def test_streams_cover_the_text() -> None:
    """Each token but the first is a target once, after its predecessor, in the order of its stream."""
    for count, context, streams in ((30, 4, 3), (31, 4, 3), (7, 5, 6), (100, 7, 1), (9, 20, 2)):
        text = np.arange(100, 100 + count)
        data = Streams(text, context, streams)
        seen: dict[int, list[int]] = {}
        for step in range(data.segments):
            ids, places, targets = data.draw(streams, seed=0, step=step)
            assert (places[:, 0] == np.arange(streams)).all()
            assert (places[:, 1] == step).all()
            real = targets != -100
            np.testing.assert_array_equal(targets[real], ids[real] + 1)
            for row in range(streams):
                seen.setdefault(row, []).extend(targets[row][real[row]].tolist())
        assert [token for row in range(streams) for token in seen[row]] == text[1:].tolist()
        assert len(data) == data.segments * streams
        ids, places, targets = data.samples(0, len(data))
        assert int((targets != -100).sum()) == data.targets == count - 1
        np.testing.assert_array_equal(data.draw(streams, seed=3, step=data.segments)[0], ids[:streams])


def _trainer(model: TransformerXL, **options: Any) -> Trainer:
    text = np.random.default_rng(3).integers(0, 11, 150)
    settings: dict[str, Any] = {"batch_size": 4, "steps": 14, "progress": False, "log_every": 1}
    return Trainer(model, AdamW(model.parameters(), lr=0.01), Streams(text, 4, 4), **(settings | options))


def test_training_carries_the_memory() -> None:
    """The Trainer's steps are those of a loop that carries the memory by hand, and begins anew with the text."""
    one, two = _model(), _model()
    history = _trainer(one).run()
    data, optimizer, memory = _trainer(two).data, AdamW(two.parameters(), lr=0.01), []
    assert 2 < data.segments < 14
    for step in range(14):
        ids, _, targets = data.draw(4, seed=0, step=step)
        if step % data.segments == 0:
            memory = []
        loss, backward = two.loss((ids, targets), memory=memory)
        assert history[step]["loss"] == loss
        backward()
        optimizer.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


@pytest.mark.parametrize("options", [{"micro_batch": 2}, {"micro_batch": 1}, {"checkpoint_activations": True}])
def test_micro_batches_and_recomputation_change_nothing(options: dict[str, Any]) -> None:
    one, two = _model(dropout=0.2), _model(dropout=0.2)
    _trainer(one).run()
    _trainer(two, **options).run()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        np.testing.assert_allclose(a.value, b.value, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dtype", [None, ml_dtypes.bfloat16], ids=["float64", "bfloat16"])
def test_resumed_is_uninterrupted(tmp_path: Path, dtype: Any) -> None:
    """The memory is in the checkpoint: to the bit, with an evaluation in between that has a memory of its own."""
    options: dict[str, Any] = {"dtype": dtype, "validation": _trainer(_model()).data, "eval_every": 3}
    of_model = {"dropout": 0.1} | ({} if dtype is None else {"dtype": "float32"})
    one = _model(**of_model)
    _trainer(one, out_dir=tmp_path / "one", **options).run()
    two = _model(**of_model)
    _trainer(two, out_dir=tmp_path / "two", steps=6, **options).run()
    three = _model(**of_model)
    for parameter in three.parameters():
        parameter.value[...] = 0
    trainer = _trainer(three, out_dir=tmp_path / "two", **options)
    assert trainer.resume() == 6
    assert three.training_memory(6)
    trainer.run()
    for a, b in zip(one.parameters(), three.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("one", "two")]
    cut = [[",".join(c for i, c in enumerate(row.split(",")) if i != 6) for row in log] for log in logs]
    assert cut[0] == cut[1]


def test_a_step_that_was_given_up_left_nothing() -> None:
    """After Ctrl-C between two micro-batches the step is made again, with the memory that it had."""
    one, two = _model(), _model()
    data = _trainer(one).data
    for step in range(3):
        for model in (one, two):
            model.loss(data.draw(4, seed=0, step=step), ctx=nn.Context(step=step))
    batch = data.draw(4, seed=0, step=3)
    half = tuple(part[:2] for part in batch)
    two.loss(half, ctx=nn.Context(step=3))
    kept = two.training_memory(3)
    assert {name: value.tolist() for name, value in kept.items()} == {
        name: value.tolist() for name, value in one.training_memory(3).items()
    }
    assert two.loss(batch, ctx=nn.Context(step=3))[0] == one.loss(batch, ctx=nn.Context(step=3))[0]
    loaded = _model()
    loaded.load_training_memory(kept)
    assert loaded.loss(batch, ctx=nn.Context(step=3))[0] == one.loss(batch, ctx=nn.Context(step=3))[0]


def test_a_memory_is_never_of_nan() -> None:
    model = _model()
    data = _trainer(model).data
    model.loss(data.draw(4, seed=0, step=0), ctx=nn.Context(step=0))
    kept = model.blocks[0].norm1.bias.value.copy()
    model.blocks[0].norm1.bias.value[0] = np.nan
    assert not np.isfinite(model.loss(data.draw(4, seed=0, step=1), ctx=nn.Context(step=1))[0])
    model.blocks[0].norm1.bias.value[...] = kept
    assert np.isfinite(model.loss(data.draw(4, seed=0, step=2), ctx=nn.Context(step=2))[0])


def test_memory_lowers_the_loss() -> None:
    """Six tokens three times over, in segments of four: only a memory can tell what comes next."""
    text = np.repeat(np.random.default_rng(0).integers(0, 11, (80, 1, 6)), 3, axis=1).ravel()
    losses = {}
    for memory in (0, 8):
        config = TransformerXLConfig(vocab_size=11, context=4, memory=memory, layers=1, heads=2, width=32)
        model = TransformerXL(config, rng=0)
        optimizer = AdamW(model.parameters(), lr=0.005)
        Trainer(model, optimizer, Streams(text, 4, 8), batch_size=8, steps=250, progress=False, log_every=250).run()
        losses[memory] = -model.log_likelihood(text) / (len(text) - 1)
    assert losses[8] < losses[0] - 0.3, losses


def test_a_checkpoint_of_another_kind(tmp_path: Path) -> None:
    from numformer.models import GPT, GPTConfig

    _trainer(_model(), out_dir=tmp_path, steps=2).run()
    gpt = GPT(GPTConfig(vocab_size=11, context=4, layers=1, heads=2, width=8))
    trainer = Trainer(
        gpt,
        AdamW(gpt.parameters(), lr=0.01),
        Windows(np.arange(11), 4),
        batch_size=2,
        steps=4,
        out_dir=tmp_path,
        progress=False,
    )
    with pytest.raises(ValueError, match="memory"):
        trainer.resume()
    wide = _trainer(_model(width=16), out_dir=tmp_path)
    with pytest.raises(ValueError, match="must have shape"):
        wide.resume()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"memory": -1}, ValueError, "memory"),
        ({"memory": 1.5}, TypeError, "memory"),
        ({"memory": 0, "same_length": True}, ValueError, "memory"),
        ({"width": 9, "heads": 3}, ValueError, "width"),
        ({"cutoffs": (7, 3)}, ValueError, "cutoffs"),
        ({"clamp": 0}, ValueError, "clamp"),
        ({"cutoffs": (4,), "tie_maps": (True,)}, ValueError, "tie_maps"),
        ({"heads": 3}, ValueError, "heads"),
    ],
)
def test_bad_configuration(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TransformerXLConfig(**(SMALL | options))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.infer(np.array([11])), ValueError, "ids"),
        (lambda m: m.infer(np.array([1.0])), TypeError, "ids"),
        (lambda m: m.infer(np.array([1, 2]), mask=np.array([1, 1])), TypeError, "mask"),
        (lambda m: m.infer(np.array([1, 2]), mask=np.array([True])), ValueError, "mask"),
        (lambda m: m.new_cache(-1), ValueError, "memory"),
        (lambda m: m.new_cache(1.5), TypeError, "memory"),
        (lambda m: m.loss((np.array([[1]]),)), ValueError, "batch"),
        (lambda m: m.loss((np.array([1]), np.array([1]))), ValueError, "ids"),
        (lambda m: m.loss((np.array([[1]]), np.array([[1, 2]]))), ValueError, "targets"),
        (lambda m: m.loss((np.array([[1]]), np.array([0]), np.array([[1]]))), ValueError, "places"),
        (lambda m: m.loss((np.array([[1]]), np.array([[0, 0]]), np.array([[1]])), memory=[]), ValueError, "memory"),
        (lambda m: m.loss((np.array([[1]]), np.array([[1]])), memory=[np.zeros((1, 2, 8))]), ValueError, "memory"),
        (lambda m: m.loss((np.array([[1]]), np.array([[1]])), memory=[np.zeros((2, 2, 8))] * 2), ValueError, "memory"),
        (lambda m: m.generate(np.array([1]), 2, temperature=-1), ValueError, "temperature"),
        (lambda m: m.load_training_memory({"0.1": np.zeros((2, 3, 7))}), ValueError, "memory"),
        (lambda m: m.load_training_memory({"x": np.zeros((2, 3, 8))}), ValueError, "memory"),
        (lambda m: Streams(np.arange(5), 4, 5), ValueError, "streams"),
        (lambda m: Streams(np.arange(5.0), 4, 1), TypeError, "tokens"),
        (lambda m: Streams(np.arange(5), 0, 1), ValueError, "context"),
        (lambda m: Streams(np.arange(5), 2, 2).draw(3, seed=0, step=0), ValueError, "count"),
        (lambda m: Streams(np.arange(5), 2, 2).samples(1, 9), ValueError, "samples"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(_model())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_targets_beyond_the_end_do_not_count_whatever_the_tokens_are(dtype: Any) -> None:
    for sample in (Streams(np.arange(11, dtype=dtype), 4, 2).samples(2, 4), Streams(np.arange(11), 4, 2).samples(2, 4)):
        ids, _, targets = sample
        assert ids.dtype == targets.dtype == np.int32
        assert targets.tolist() == [[5, -100, -100, -100], [10, -100, -100, -100]]


def test_rows_must_be_equally_far() -> None:
    model = _model()
    data = Streams(np.arange(11).repeat(4), 4, 2)
    model.loss(data.draw(2, seed=0, step=0), ctx=nn.Context(step=0))
    ids, places, targets = data.draw(2, seed=0, step=1)
    places = places.copy()
    places[0, 1] = 0
    with pytest.raises(ValueError, match="equally far"):
        model.loss((ids, places, targets), ctx=nn.Context(step=1))
