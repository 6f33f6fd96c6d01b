"""GPT-2, BERT, RoBERTa and Llama of Hugging Face on our kernel: the logits and gradients of their own."""

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
from numformer.interop.transformers import register  # noqa: E402

NAME = register()
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
COMMON = {"vocab_size": 41, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
DROP = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"n_embd": 24, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "BertForMaskedLM": ("BertConfig", {**SIZES, **DROP}),
    "RobertaForMaskedLM": ("RobertaConfig", {**SIZES, **DROP, "type_vocab_size": 1}),
    "LlamaForCausalLM": ("LlamaConfig", {**SIZES, "num_key_value_heads": 2}),
}


def _model(kind: str, dtype: str, attention: str, **more: Any) -> Any:
    config, options = MODELS[kind]
    made = getattr(transformers, config)(**COMMON | options | more)
    torch.manual_seed(1)  # so that two of them have the same weights
    model = judge.peer(getattr(transformers, kind), made, dtype, attention=attention)
    assert model.config._attn_implementation == attention
    return model


def _calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count the calls of our kernel: that the name was taken is not enough."""
    import numformer.interop.torch as ours

    calls: list[Any] = []
    original = ours.ops.attention

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return original(*args, **options)

    monkeypatch.setattr(ours.ops, "attention", counted)
    return calls


@pytest.mark.parametrize("masked", ["whole", "right", "left"])
@pytest.mark.parametrize("dtype", judge.DTYPES)
@pytest.mark.parametrize("kind", MODELS)
def test_same_logits_and_gradients(kind: str, dtype: str, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _calls(monkeypatch)
    ours, theirs = _model(kind, dtype, NAME), _model(kind, dtype, "eager" if dtype == "float32" else "sdpa")
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(3, 41, (3, 17)))
    lengths = np.array([17, 9, 4])[:, None]
    columns = np.arange(17)
    mask = {"whole": columns < 17 + 0 * lengths, "right": columns < lengths, "left": columns >= 17 - lengths}[masked]
    # What is padding counts nowhere, not even where it is asked for the token after it.
    counts = mask & np.roll(mask, 1, axis=1) if masked == "left" else mask
    inputs = {"input_ids": ids, "labels": ids.masked_fill(torch.from_numpy(~counts), -100)}
    if masked != "whole":
        inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    answers = [model(**inputs) for model in (ours, theirs)]
    seen = mask[..., None] * np.ones(41, bool)  # logits of padding say nothing
    got, want = (answer.logits.detach().numpy()[seen] for answer in answers)
    judge.close(got, want, dtype, "logits")
    assert len(calls) == 2
    for answer in answers:
        answer.loss.backward()
    wants = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    largest = max(float(g.norm()) for g in wants.values())
    for name, parameter in ours.named_parameters():
        if name in wants:
            error = float((parameter.grad - wants[name]).norm())
            assert error <= judge.TOLERANCE[dtype] * max(float(wants[name].norm()), 0.01 * largest), (name, error)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation(kind: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _calls(monkeypatch)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 41, (2, 5)))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    if cache == "static":
        options["cache_implementation"] = "static"
    got, want = (
        _model(kind, "float64", attention).generate(ids, attention_mask=mask, **options) for attention in (NAME, "sdpa")
    )
    assert (got == want).all() and len(calls) == 16


def test_dropout_follows_their_seed() -> None:
    model = _model("GPT2LMHeadModel", "float32", NAME, attn_pdrop=0.3).train()
    ids = torch.arange(3, 20)[None]

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(model(ids, labels=ids).loss.detach())

    assert loss(1) == loss(1) != loss(2)


def test_sinks_softcap_and_bias() -> None:
    """What some models ask of an attention besides: against a plain computation."""
    from numformer.interop.transformers import attention_forward

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, 6, 8, generator=generator, dtype=torch.float64) for h in (4, 2, 2))
    bias, sinks = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((1, 4, 6, 6), (4,)))
    layer = torch.nn.Module()
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    added = torch.zeros(1, 1, 6, 6, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    for given in (mask, added):
        out, weights = attention_forward(
            layer, q, k, v, given, scaling=0.4, softcap=2.0, position_bias=bias, s_aux=sinks
        )
        scores = 2.0 * torch.tanh(0.4 * q @ k.repeat_interleave(2, 1).mT / 2.0) + bias + added
        scores = torch.cat([scores, sinks[None, :, None, None].expand(2, 4, 6, 1)], -1)
        want = scores.softmax(-1)[..., :-1] @ v.repeat_interleave(2, 1)
        assert weights is None and torch.allclose(out, want.transpose(1, 2), atol=1e-12)
    with pytest.raises(ValueError, match="output_attentions"):
        attention_forward(layer, q, k, v, None, output_attentions=True)
