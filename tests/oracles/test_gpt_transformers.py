"""GPT beside Hugging Face's GPT2LMHeadModel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import judge  # noqa: E402
from numformer.models import GPT  # noqa: E402

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "odd": {"n_embd": 15, "n_head": 3, "n_layer": 3, "n_inner": 22, "activation_function": "relu"},
    "untied": {"tie_word_embeddings": False, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
}


def _theirs(dtype: str, variant: str = "gpt2") -> Any:
    sizes = {
        "vocab_size": 41,
        "n_positions": 19,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 4,
    } | VARIANTS[variant]
    config = transformers.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return judge.peer(transformers.GPT2LMHeadModel, config, dtype)


def _batch() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 41, (4, 17)), rng.integers(0, 41, (4, 17))
    mask = np.arange(17) >= np.array([0, 5, 16, 1])[:, None]  # filled up on the left
    targets[rng.random(targets.shape) < 0.2] = -100
    return ids, mask, targets


@pytest.mark.parametrize("dtype", judge.DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_everything(variant: str, masked: bool, dtype: str, tmp_path: Path) -> None:
    theirs = _theirs(dtype, variant)
    ours = judge.read(GPT, theirs, tmp_path)
    assert ours.config.dtype == dtype
    ids, mask, targets = _batch()
    inputs = {"input_ids": judge.tensors(ids)}
    if masked:
        targets[~mask] = -100
        inputs["attention_mask"] = judge.tensors(mask.astype(np.int64))
        inputs["position_ids"] = judge.tensors(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    result = theirs(**inputs, output_hidden_states=True)
    # Their own loss rounds the logits to float32.
    expected = torch.nn.functional.cross_entropy(result.logits.flatten(0, 1), judge.tensors(targets.ravel()))
    expected.backward()
    hidden: list[Any] = []
    logits = ours.infer(ids, mask=mask if masked else None, hidden=hidden)
    real = mask if masked else np.ones_like(mask)
    judge.close(logits[real], result.logits.detach().numpy()[real], dtype, "logits")
    assert len(hidden) == len(result.hidden_states)
    for index, (state, other) in enumerate(zip(hidden, result.hidden_states, strict=True)):
        judge.close(state[real], other.detach().numpy()[real], dtype, f"hidden {index}")
    loss, backward = ours.loss((ids, mask, targets) if masked else (ids, targets))
    backward()
    judge.close(loss, expected, dtype, "loss")
    judge.gradients(ours, theirs, dtype)
    judge.close(ours.infer_loss((ids, mask, targets) if masked else (ids, targets)), expected, dtype, "loss")


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_read_what_we_write(variant: str, tmp_path: Path) -> None:
    theirs = _theirs("float32", variant)
    judge.read(GPT, theirs, tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    inputs = {"input_ids": judge.tensors(_batch()[0])}
    judge.same_weights(tmp_path / "ours", theirs, transformers.GPT2LMHeadModel, inputs)


def test_sharded_folder(tmp_path: Path) -> None:
    theirs = _theirs("float64")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with torch.no_grad():
        judge.close(GPT.from_pretrained(tmp_path).infer([[1, 2]]), theirs(torch.tensor([[1, 2]])).logits, "float64", "")


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_tokens(penalty: float, tmp_path: Path) -> None:
    theirs = _theirs("float64")
    ours = judge.read(GPT, theirs, tmp_path)
    rng = np.random.default_rng(2)
    lengths = (5, 5, 5) if penalty != 1.0 else (2, 5, 1)  # theirs counts padding among the tokens that repeat
    prompts = [rng.integers(1, 41, n) for n in lengths]
    free = ours.generate(prompts, 12, temperature=0, repetition_penalty=penalty)
    stop = int(free[0][lengths[0] + 3])
    tokens, mask = np.full((3, 5), stop), np.zeros((3, 5), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, 5 - len(prompt) :], mask[row, 5 - len(prompt) :] = prompt, 1
    expected = theirs.generate(
        judge.tensors(tokens),
        attention_mask=judge.tensors(mask),
        max_new_tokens=12,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=stop,
        pad_token_id=stop,
    ).numpy()
    found = ours.generate(prompts, 12, temperature=0, repetition_penalty=penalty, stop=stop)
    assert len(found[0]) == lengths[0] + free[0][lengths[0] :].tolist().index(stop) + 1
    for row, text in enumerate(found):
        text = text[lengths[row] :]
        np.testing.assert_array_equal(text, expected[row, 5 : 5 + len(text)])
        assert (expected[row, 5 + len(text) :] == stop).all()


def test_log_likelihood(tmp_path: Path) -> None:
    theirs = _theirs("float64")
    ours = judge.read(GPT, theirs, tmp_path)
    texts = [np.random.default_rng(n).integers(0, 41, n) for n in (3, 9, 1)]
    expected = []
    for text in texts:
        with torch.no_grad():
            p = theirs(judge.tensors(text[None])).logits[0].log_softmax(-1).numpy()
        expected.append(p[np.arange(len(text) - 1), text[1:]].sum())
    judge.close(ours.log_likelihood(texts), np.array(expected), "float64", "log-likelihood")
    judge.close(ours.log_likelihood(texts[1]), expected[1], "float64", "log-likelihood")
