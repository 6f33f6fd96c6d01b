"""The peer: the GPT of ``numformer.models`` in plain PyTorch, as one would write it to be fast in eager mode.

Fused attention (``scaled_dot_product_attention``), the fused AdamW, clipping. Weights are copied from a numformer state
dict, whose maps are (inputs, outputs), like those of GPT-2's Conv1D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numformer.models import GPTConfig
from torch import Tensor, nn

from benchmarks.torch_peer import ACTIVATIONS, Peer


class TorchBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, hidden, bias = config.width, config.hidden or 4 * config.width, config.bias
        self.heads = config.heads
        self.activation = ACTIVATIONS[config.activation]
        self.ln_1 = nn.LayerNorm(width, config.eps, bias=bias)
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.attn_proj = nn.Linear(width, width, bias=bias)
        self.ln_2 = nn.LayerNorm(width, config.eps, bias=bias)
        self.c_fc = nn.Linear(width, hidden, bias=bias)
        self.mlp_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_proj(self.activation(self.c_fc(self.ln_2(x))))


class TorchGPT(Peer):
    """GPT without dropout."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.h = nn.ModuleList(TorchBlock(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, config.eps, bias=config.bias)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.to(torch.float64 if config.dtype == "float64" else torch.float32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; targets of -100 do not count."""
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten(), ignore_index=-100)

    def named(self) -> dict[str, tuple[Tensor, bool]]:
        """Parameters by their name in numformer's state dict, and whether they are the transpose of it."""
        renames = {"attn_proj": "attn.c_proj", "c_attn": "attn.c_attn", "mlp_proj": "mlp.c_proj", "c_fc": "mlp.c_fc"}
        found = {}
        for name, parameter in self.named_parameters():
            for ours, theirs in renames.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
            path = name if name.startswith("lm_head") else f"transformer.{name}"
            found[path] = (parameter, ".c_" in name and name.endswith("weight"))
        return found
