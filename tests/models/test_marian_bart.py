"""Transformers in the styles of Marian and BART: gradients, limits, folders. Their numbers are judged in oracles/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradient import along
from numformer import nn
from numformer.models import Transformer, TransformerConfig, from_pretrained
from safetensors.numpy import load_file, save_file

SMALL: dict[str, Any] = {
    "vocab_size": 13,
    "context": 9,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "heads": 2,
    "width": 8,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "dtype": "float64",
}
STYLES = {"marian": {"pad_id": 12, "bos_id": 12, "eos_id": 0}, "bart": {"pad_id": 1, "bos_id": 2, "eos_id": 2}}
SOURCE = np.array([[3, 4, 5, 6], [7, 8, 1, 1]])
TARGETS = np.array([[5, 6, 2], [9, 2, -100]])


def _model(style: str, **options: Any) -> Transformer:
    model = Transformer(TransformerConfig(**(SMALL | STYLES[style] | {"style": style} | options)), rng=0)
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.value += 0.2 * rng.standard_normal(parameter.value.shape)
    return model


def _source(style: str) -> Any:
    return np.where(SOURCE == 1, STYLES[style]["pad_id"], SOURCE)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("style", STYLES)
def test_gradient(style: str, dropout: float) -> None:
    # relu has a corner, which differences do not see
    model, rng, ctx = _model(style, dropout=dropout, activation="silu"), np.random.default_rng(2), nn.Context(seed=3)
    batch = (_source(style), np.array([[4, 5, 6], [4, 9, 3]]), TARGETS)
    loss, backward = model.loss(batch, ctx=ctx)
    backward()
    assert np.isfinite(loss)
    for parameter in model.parameters():
        along(lambda: model.loss(batch, ctx=ctx)[0], parameter.value, parameter.grad.copy(), rng)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("style", STYLES)
def test_a_sentence_ends_at_its_limit(style: str, beams: int) -> None:
    options = STYLES[style]
    free, forced = (_model(style, forced_eos=forced) for forced in (False, True))
    for model in (free, forced):
        model.head.constant = np.zeros(13)
        model.head.constant[options["eos_id"]] = -50.0  # it would not end by itself
    assert (free.generate(_source(style), 4, num_beams=beams) != options["eos_id"]).all()
    found = forced.generate(_source(style), 4, num_beams=beams)
    assert found.shape == (2, 4)
    assert (found[:, -1] == options["eos_id"]).all() and (found[:, :-1] != options["eos_id"]).all()


@pytest.mark.parametrize("style", STYLES)
def test_round_trip(style: str, tmp_path: Path) -> None:
    model = _model(style, hidden=12, activation="gelu", scale_embedding=False, forced_eos=True)
    model.head.constant = np.random.default_rng(4).standard_normal(13)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert type(again) is Transformer
    assert again.config == model.config
    target = np.array([[4, 5], [6, 7]])
    np.testing.assert_array_equal(again.infer(_source(style), target), model.infer(_source(style), target))
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    # Copies of the table and, in Marian's, of its sines, are allowed; copies that differ are not.
    state["lm_head.weight"] = state["model.shared.weight"].copy()
    state["model.decoder.embed_tokens.weight"] = state["model.shared.weight"].copy()
    if style == "marian":
        state["model.encoder.embed_positions.weight"] = np.zeros((9, 8))
    save_file(state, path)
    np.testing.assert_array_equal(
        from_pretrained(tmp_path).infer(_source(style), target), model.infer(_source(style), target)
    )
    save_file(state | {"final_logits_bias": np.zeros((1, 12))}, path)
    with pytest.raises(ValueError, match=r"final_logits_bias must have shape \(1, 13\), got \(1, 12\)"):
        from_pretrained(tmp_path)
    state["lm_head.weight"] += 1
    save_file(state, path)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.shared\.weight"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("style", STYLES)
def test_broken_folders(style: str, tmp_path: Path) -> None:
    _model(style).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for change, words in (
        ({"decoder_layers": 3}, r"missing model\.decoder\.layers\.2\.self_attn\.q_proj"),
        ({"encoder_layers": 2}, r"missing model\.encoder\.layers\.1"),
        ({"vocab_size": 14, "decoder_vocab_size": 14}, r"must have shape \(14, 8\), got \(13, 8\)|must have shape"),
        ({"decoder_attention_heads": 4}, "decoder_attention_heads must be 2, got 4"),
        ({"decoder_ffn_dim": 7}, "decoder_ffn_dim must be 32, got 7"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be True"),
        ({"decoder_vocab_size": 20}, "decoder_vocab_size must be None or 13, got 20"),
        ({"normalize_before": True}, "normalize_before must be False"),
        ({"activation_function": "tanh"}, "activation_function must be one of"),
        ({"eos_token_id": [0, 2]}, "eos_token_id|forced_eos_token_id|eos_id must be an integer"),
        ({"architectures": ["BartModel"]}, "architectures must be one of"),
        ({"model_type": "mbart"}, "model_type must be one of"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=words):
            from_pretrained(tmp_path)


def test_bad_configs() -> None:
    with pytest.raises(ValueError, match="style must be one of paper, marian, bart, got 't5'"):
        TransformerConfig(style="t5")
    for change in ({"norm": "pre"}, {"tie_weights": False}, {"eps": 1e-6}):
        with pytest.raises(ValueError, match="style 'bart' has norm 'post'"):
            TransformerConfig(style="bart", **change)
    with pytest.raises(ValueError, match="pad_id must differ"):
        TransformerConfig(pad_id=1, bos_id=1)
    with pytest.raises(ValueError, match="length_norm must be 'gnmt' or 'power', got 'sum'"):
        _model("bart").generate(SOURCE, 3, num_beams=2, length_norm="sum")
