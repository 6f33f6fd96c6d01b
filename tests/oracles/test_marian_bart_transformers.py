"""Transformer beside Hugging Face's MarianMTModel and BartForConditionalGeneration."""

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
from numformer.models import Transformer  # noqa: E402

CLASSES = {"Marian": "MarianMTModel", "Bart": "BartForConditionalGeneration"}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {
        "d_model": 15,
        "encoder_attention_heads": 5,
        "decoder_attention_heads": 5,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_ffn_dim": 22,
        "decoder_ffn_dim": 22,
        "scale_embedding": True,
        "activation_function": "gelu",
    },
}
CASES = [(kind, variant) for kind in CLASSES for variant in VARIANTS]
PAD = {"Marian": 36, "Bart": 1}
EOS = {"Marian": 0, "Bart": 2}


def _theirs(kind: str, variant: str, dtype: str) -> Any:
    options = {
        "vocab_size": 37,
        "max_position_embeddings": 29,
        "d_model": 24,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40,
        "activation_function": "swish",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "pad_token_id": PAD[kind],
        "eos_token_id": EOS[kind],
        "decoder_start_token_id": PAD[kind] if kind == "Marian" else EOS[kind],
        "forced_eos_token_id": EOS[kind],
    } | VARIANTS[variant]
    theirs = judge.peer(getattr(transformers, CLASSES[kind]), getattr(transformers, f"{kind}Config")(**options), dtype)
    with torch.no_grad():
        theirs.final_logits_bias += torch.randn(theirs.final_logits_bias.shape, generator=torch.Generator()).to(
            theirs.final_logits_bias.dtype
        )
        if kind == "Marian":  # theirs are rounded to float32, and the judge has shaken them
            for side in (theirs.model.encoder, theirs.model.decoder):
                width = options["d_model"]
                angle = np.arange(29)[:, None] / 10000.0 ** (2 * (np.arange(width) // 2) / width)
                table = np.concatenate([np.sin(angle[:, ::2]), np.cos(angle[:, 1::2])], axis=1)
                side.embed_positions.weight.copy_(judge.tensors(table))
    return theirs


def _batch(kind: str) -> tuple[Any, Any, Any, Any]:
    """Return source, its mask, what the decoder reads and what it shall answer."""
    rng = np.random.default_rng(0)
    source, labels = rng.integers(3, 35, (4, 17)), rng.integers(3, 35, (4, 13))
    mask = np.arange(17) < np.array([17, 9, 1, 16])[:, None]
    source[~mask] = PAD[kind]
    labels[np.arange(13) >= np.array([13, 4, 8, 12])[:, None]] = -100
    start = PAD[kind] if kind == "Marian" else EOS[kind]
    target = np.concatenate([np.full((4, 1), start), np.where(labels[:, :-1] < 0, PAD[kind], labels[:, :-1])], axis=1)
    return source, mask, target, labels


@pytest.mark.parametrize("dtype", judge.DTYPES)
@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_everything(kind: str, variant: str, dtype: str, tmp_path: Path) -> None:
    theirs = _theirs(kind, variant, dtype)
    ours = judge.read(Transformer, theirs, tmp_path)
    assert (ours.config.dtype, ours.config.style) == (dtype, kind.lower())
    source, mask, target, labels = _batch(kind)
    result = theirs(
        input_ids=judge.tensors(source),
        attention_mask=judge.tensors(mask.astype(np.int64)),
        labels=judge.tensors(labels),
    )
    result.loss.backward()
    memory = ours.encode(source)
    judge.close(memory[mask], result.encoder_last_hidden_state.detach().numpy()[mask], dtype, "memory")
    judge.close(ours.infer(source, target), result.logits, dtype, "logits")
    loss, backward = ours.loss((source, target, labels))
    backward()
    judge.close(loss, result.loss, dtype, "loss")
    judge.close(ours.infer_loss((source, target, labels)), result.loss, dtype, "loss")
    judge.gradients(ours, theirs, dtype)


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_they_read_what_we_write(kind: str, variant: str, tmp_path: Path) -> None:
    theirs = _theirs(kind, variant, "float32")
    judge.read(Transformer, theirs, tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    source, mask, target, _ = _batch(kind)
    inputs = {
        "input_ids": judge.tensors(source),
        "attention_mask": judge.tensors(mask.astype(np.int64)),
        "decoder_input_ids": judge.tensors(target),
    }
    if kind == "Marian":  # theirs makes its own sines when it reads a folder
        theirs = transformers.MarianMTModel.from_pretrained(tmp_path / "theirs", attn_implementation="sdpa").eval()
    judge.same_weights(tmp_path / "ours", theirs, getattr(transformers, CLASSES[kind]), inputs)


@pytest.mark.parametrize("limit", [4, 20])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_the_same_tokens(kind: str, variant: str, beams: int, limit: int, tmp_path: Path) -> None:
    theirs = _theirs(kind, variant, "float64")
    with torch.no_grad():
        theirs.final_logits_bias[0, EOS[kind]] += 4  # so that sentences end
    ours = judge.read(Transformer, theirs, tmp_path)
    source, mask, *_ = _batch(kind)
    expected = theirs.generate(
        judge.tensors(source),
        attention_mask=judge.tensors(mask.astype(np.int64)),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=limit,
            num_beams=beams,
            length_penalty=1.3,
            early_stopping=True if beams > 1 else None,
            do_sample=False,
            suppress_tokens=[PAD[kind]],
            renormalize_logits=True,  # ours share out the probability of what cannot be written
            pad_token_id=PAD[kind],
            eos_token_id=EOS[kind],
            forced_eos_token_id=EOS[kind],
            decoder_start_token_id=ours.config.bos_id,
        ),
    ).numpy()[:, 1:]
    found = ours.generate(source, limit, num_beams=beams, length_penalty=1.3, length_norm="power")
    np.testing.assert_array_equal(found, expected[:, : found.shape[1]])
    assert (expected[:, found.shape[1] :] == PAD[kind]).all()
