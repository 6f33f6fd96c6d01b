"""The peer: the encoder-decoder of ``numformer.models`` in plain PyTorch, written to be fast in eager mode.

Fused attention (``scaled_dot_product_attention``), one product for queries, keys and values, the output layer where a
target counts only, the fused AdamW, clipping. Modules have numformer's names; maps are transposed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from numformer.data import Packed
from numformer.models import TransformerConfig
from torch import Tensor, nn

from benchmarks.torch_peer import ACTIVATIONS, Peer, tensors_of


class Attention(nn.Module):
    """Self-attention, or attention to a memory."""

    def __init__(self, config: TransformerConfig, *, cross: bool) -> None:
        super().__init__()
        width = config.width
        self.heads, self.cross, self.p = config.heads, cross, config.dropout
        if cross:
            self.query, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, length, channels = x.shape
        return x.view(batch, length, parts, self.heads, channels // parts // self.heads).permute(2, 0, 3, 1, 4).unbind()

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        if memory is None:
            q, k, v = self._split(self.qkv(x), 3)
        else:
            (q,) = self._split(self.query(x), 1)
            k, v = self._split(self.kv(memory), 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return F.dropout(self.output(y.transpose(1, 2).reshape(x.shape)), self.p, self.training)


class FeedForward(nn.Module):
    """The position-wise network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = config.hidden or 4 * config.width
        self.activation, self.p = ACTIVATIONS[config.activation], config.dropout
        self.inner, self.outer = nn.Linear(config.width, hidden), nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.outer(self.activation(self.inner(x))), self.p, self.training)


class Block(nn.Module):
    """A block of the encoder, or of the decoder."""

    def __init__(self, config: TransformerConfig, *, decoder: bool) -> None:
        super().__init__()
        self.pre, self.decoder = config.norm == "pre", decoder
        self.norm1, self.norm2 = nn.LayerNorm(config.width, config.eps), nn.LayerNorm(config.width, config.eps)
        self.attention = Attention(config, cross=False)
        if decoder:
            self.cross_attention = Attention(config, cross=True)
            self.norm3 = nn.LayerNorm(config.width, config.eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None) -> Tensor:
        own = {"causal": True} if self.decoder else {"mask": mask}
        steps = [(self.norm1, lambda n: self.attention(n, **own))]
        if self.decoder:
            steps.append((self.norm2, lambda n: self.cross_attention(n, memory, mask)))
        steps.append((self.norm3 if self.decoder else self.norm2, self.mlp))
        for norm, layer in steps:
            x = x + layer(norm(x)) if self.pre else norm(x + layer(x))
        return x


def padded(batch: Sequence[Packed]) -> list[Tensor]:
    """Return packed (source, target, targets) as rows, which is how PyTorch reads them."""
    source, target, targets = batch
    return tensors_of([source.padded(0), target.padded(0), targets.padded(-100)])


class TorchTransformer(Peer):
    """The encoder-decoder."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.target_tokens = self.tokens if config.tie_weights else nn.Embedding(config.vocab_size, config.width)
        self.encoder = nn.ModuleList(Block(config, decoder=False) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(Block(config, decoder=True) for _ in range(config.decoder_layers))
        if config.norm == "pre":
            self.encoder_norm = nn.LayerNorm(config.width, config.eps)
            self.decoder_norm = nn.LayerNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.tokens.weight
        self.to(torch.float64 if config.dtype == "float64" else torch.float32)
        angle = torch.arange(config.context, dtype=torch.float64)[:, None] * 10000.0 ** (
            -torch.arange(0, config.width, 2, dtype=torch.float64) / config.width
        )
        table = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, : config.width]
        self.register_buffer("positions", table.to(self.tokens.weight.dtype), persistent=False)

    def _embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        x = table(ids) * self.config.width**0.5 + self.positions[: ids.shape[1]]
        return F.dropout(x, self.config.dropout, self.training)

    def hidden(self, source: Tensor, target: Tensor) -> Tensor:
        """Return what the output layer reads."""
        read = source != self.config.pad_id
        mask = None if bool(read.all()) else read[:, None, None, :]
        memory = self._embed(self.tokens, source)
        for block in self.encoder:
            memory = block(memory, None, mask)
        if self.config.norm == "pre":
            memory = self.encoder_norm(memory)
        x = self._embed(self.target_tokens, target)
        for block in self.decoder:
            x = block(x, memory, mask)
        return self.decoder_norm(x) if self.config.norm == "pre" else x

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.hidden(source, target))

    def loss(self, source: Tensor, target: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy with label smoothing; targets of -100 do not count."""
        counted = targets != -100
        logits = self.head(self.hidden(source, target)[counted])
        return F.cross_entropy(logits, targets[counted], label_smoothing=self.config.label_smoothing)

    def named(self) -> dict[str, tuple[Tensor, bool]]:
        """Modules have numformer's names; maps are transposed."""
        tables = ("tokens", "target_tokens", "head")
        return {
            name: (parameter, parameter.ndim == 2 and not name.startswith(tables))
            for name, parameter in self.named_parameters()
        }
