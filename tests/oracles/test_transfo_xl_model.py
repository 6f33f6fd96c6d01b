"""TransformerXL against Transformers' TransfoXLLMHeadModel, as record_transfo_xl_model.py recorded it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numformer import files
from numformer.models import TransformerXL, from_pretrained

FIXTURE = Path(__file__).parent / "fixtures" / "transfo_xl_model.npz"
CASES = ("wt103", "untied", "projected", "plain")


def _recorded(case):
    with np.load(FIXTURE, allow_pickle=False) as file:
        found = {n.removeprefix(f"{case}/"): file[n] for n in file.files if n.startswith(f"{case}/")}
    shapes = json.loads(bytes(found["names"]))
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]

    def named(flat):
        parts = zip(shapes.items(), np.split(flat, ends), strict=True)
        return {name: part.reshape(shape) for (name, shape), part in parts}

    return found, named(found["weights"] / 64.0), named(found["gradients"])


def _load(case, folder, dtype):
    """Write the folder that Transformers would have written, and read it."""
    found, weights, gradients = _recorded(case)
    config = {"model_type": "transfo-xl", "torch_dtype": np.dtype(dtype).name, **json.loads(bytes(found["config"]))}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: value.astype(dtype) for name, value in weights.items()}
    files.write_tensors(folder / "model.safetensors", state | {"transformer.pos_emb.inv_freq": np.ones(3, dtype)}, {})
    return from_pretrained(folder), found, gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
@pytest.mark.parametrize("case", CASES)
def test_three_segments(case, dtype, tolerance, tmp_path):
    model, found, gradients = _load(case, tmp_path / "theirs", dtype)
    assert isinstance(model, TransformerXL)
    assert set(model.state_dict()) == set(gradients)

    def close(got, want, name):
        assert got.shape == want.shape, name
        assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max()), name

    ids = found["ids"].astype(np.int64)
    memory, read, backwards, losses = [], [], [], []
    cache = model.new_cache()
    for segment, scores in zip(ids, found["scores"], strict=True):
        targets = np.full(segment.shape, -100)
        targets[:, :-1] = segment[:, 1:]
        loss, backward = model.loss((segment, targets), memory=memory)
        losses.append(loss)
        backwards.append(backward)
        close(np.array(model.infer_loss((segment, targets), memory=read)), np.array(loss), "infer_loss")
        close(model.infer(segment, cache=cache), scores, "scores")
    close(np.array(losses), found["losses"], "losses")
    close(np.stack(memory), found["memory"], "memory")
    close(np.stack(read), found["memory"], "memory of infer_loss")
    for backward in backwards:
        backward()
    ours = model.gradients()
    assert set(ours) == set(gradients)
    for name, gradient in gradients.items():
        close(ours[name], gradient, name)


@pytest.mark.parametrize("case", CASES)
def test_the_memory_may_begin_with_zeros(case, tmp_path):
    model, found, _ = _load(case, tmp_path / "theirs", np.float64)
    scores = model.infer(found["ids"][0].astype(np.int64), cache=model.new_cache(zeros=True, batch=2))
    np.testing.assert_allclose(scores, found["from_zeros"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens(case, tmp_path):
    model, found, _ = _load(case, tmp_path / "theirs", np.float64)
    tokens = found["tokens"].astype(np.int64)
    prompts = tokens[:, :4]
    np.testing.assert_array_equal(model.generate(prompts, 6, temperature=0), tokens)
    np.testing.assert_array_equal(np.stack(list(model.stream(prompts, 6, temperature=0)), axis=1), tokens[:, 4:])


@pytest.mark.parametrize("case", CASES)
def test_written_folders_hold_what_was_read(case, tmp_path):
    model, found, _ = _load(case, tmp_path / "theirs", np.float64)
    model.save_pretrained(tmp_path / "ours")
    again = TransformerXL.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    ids = found["ids"][0].astype(np.int64)
    np.testing.assert_array_equal(again.infer(ids), model.infer(ids))
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    for name, value in json.loads(bytes(found["config"])).items():
        if name not in ("dropatt", "proj_share_all_but_first"):
            assert config[name] == value, name
