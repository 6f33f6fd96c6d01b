"""Record tests/oracles/fixtures/transfo_xl_model.npz: whole models of Transformers' Transformer-XL.

Its last release with that model is 4.57.6, so this runs in an environment of its own:

    pip install transformers==4.57.6 torch && python tests/oracles/record_transfo_xl_model.py
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.deprecated.transfo_xl.configuration_transfo_xl import TransfoXLConfig
from transformers.models.deprecated.transfo_xl.modeling_transfo_xl import TransfoXLLMHeadModel

BATCH, LENGTH, SEGMENTS, PROMPT, NEW = 2, 5, 3, 4, 6
COMMON: dict[str, Any] = {
    "vocab_size": 13,
    "d_model": 6,
    "n_head": 3,
    "d_head": 2,
    "d_inner": 5,
    "n_layer": 2,
    "mem_len": 7,
    "dropout": 0.0,
    "dropatt": 0.0,
}
# Each option of the configuration has another value in one of them.
CASES: dict[str, dict[str, Any]] = {
    "wt103": {"cutoffs": [4, 8], "d_embed": 6, "div_val": 2, "clamp_len": 6, "same_length": True},
    "untied": {
        "cutoffs": [5],
        "d_embed": 4,
        "div_val": 4,
        "clamp_len": -1,
        "same_length": False,
        "untie_r": False,
        "proj_share_all_but_first": False,
        "tie_word_embeddings": False,
    },
    "projected": {"cutoffs": [4, 9], "d_embed": 4, "div_val": 1, "clamp_len": -1, "same_length": False},
    "plain": {"cutoffs": [], "d_embed": 6, "div_val": 1, "clamp_len": 3, "same_length": False},
}


def record(options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return weights, inputs, outputs, losses, gradients of all weights, and greedy tokens of one model.

    Weights are 64ths of integers. They and their gradients are one array each, in the order of `names`.
    """
    config = TransfoXLConfig(**COMMON, **options)
    config.trainer_compatible = True
    model = TransfoXLLMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape).mul(32).round().clamp(-127, 127) / 64)
    model.tie_weights()
    names = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    flat = lambda tensors: np.concatenate([t.detach().numpy().ravel() for t in tensors])
    arrays = {
        "config": text(options | COMMON),
        "names": text(names),
        "weights": (64 * flat(model.parameters())).astype(np.int8),
    }
    ids = torch.randint(0, config.vocab_size, (SEGMENTS, BATCH, LENGTH))
    ids[0, 0, 2] = 12  # each cluster has a token
    ids[0, 1, 3] = 6
    arrays["ids"] = ids.numpy().astype(np.int8)
    empty = [torch.zeros(0, BATCH, config.d_model) for _ in range(config.n_layer)]
    memory, losses, scores, total = empty, [], [], torch.zeros(())
    for segment in ids:
        out = model(segment, mems=memory, labels=segment.clone(), return_dict=True)
        scores.append(model(segment, mems=memory, return_dict=True).logits.detach())
        losses.append(out.loss)
        memory, total = out.mems, total + out.loss
    total.backward()
    arrays["losses"] = torch.stack(losses).detach().numpy()
    arrays["scores"] = torch.stack(scores).numpy()
    arrays["memory"] = torch.stack(memory).transpose(1, 2).numpy()  # (layers, batch, positions, width)
    arrays["gradients"] = flat(parameter.grad for parameter in model.parameters())
    with torch.no_grad():
        arrays["from_zeros"] = model(ids[0], return_dict=True).logits.numpy()
        arrays["tokens"] = greedy(model, ids[1, :, :PROMPT], empty)
    return arrays


def text(value: Any) -> np.ndarray:
    """Return JSON as bytes."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def greedy(model: TransfoXLLMHeadModel, ids: torch.Tensor, memory: list[torch.Tensor]) -> np.ndarray:
    """Return the prompt and what follows; after the prompt one token is read at a time."""
    tokens, unread = ids, ids
    for _ in range(NEW):
        out = model(unread, mems=memory, return_dict=True)
        memory, unread = out.mems, out.logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, unread], dim=1)
    return tokens.numpy().astype(np.int8)


def main() -> None:
    """Write one file for all cases."""
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = lambda self: self  # its mask rounds scores to float32
    # It calls type_as(dtype=...), which PyTorch does not have.
    torch.Tensor.type_as = lambda self, other=None, dtype=None: self.to(other.dtype if dtype is None else dtype)
    torch.manual_seed(0)
    arrays = {f"{case}/{name}": value for case, options in CASES.items() for name, value in record(options).items()}
    np.savez_compressed(Path(__file__).parent / "fixtures" / "transfo_xl_model.npz", **arrays)


if __name__ == "__main__":
    main()
