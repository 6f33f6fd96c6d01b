"""Hugging Face's GPT-2 on numformer's attention: the same text, the same loss, gradients as with PyTorch's kernel.

Needs torch and transformers; makes a small model with random weights, so nothing is downloaded:
``python examples/hugging_face.py``
"""

from __future__ import annotations

import copy

import torch
from numformer.interop import transformers as nf_transformers
from transformers import GPT2Config, GPT2LMHeadModel


def main() -> None:
    """Compare logits, generated tokens and gradients of two models that share their weights."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=64, n_embd=64, n_layer=2, n_head=4, resid_pdrop=0.0, attn_pdrop=0.0)
    theirs = GPT2LMHeadModel(config).eval()
    ours = copy.deepcopy(theirs)
    ours.set_attn_implementation(nf_transformers.register())

    ids = torch.randint(3, 100, (2, 32))
    answers = [model(ids, labels=ids) for model in (ours, theirs)]
    difference = (answers[0].logits - answers[1].logits).abs().max().item()
    print(f"largest difference of the logits: {difference:.1e}")
    for answer in answers:
        answer.loss.backward()
    gradients = [model.transformer.h[0].attn.c_attn.weight.grad for model in (ours, theirs)]
    print(f"largest difference of a gradient: {(gradients[0] - gradients[1]).abs().max().item():.1e}")
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    same = bool((ours.generate(ids, **options) == theirs.generate(ids, **options)).all())
    print(f"the same 20 tokens generated: {same}")
    assert difference < 1e-4 and same


if __name__ == "__main__":
    main()
