"""Record tests/oracles/fixtures/transfo_xl_attention.npz, from Transformers' Transformer-XL.

Its last release with that model is 4.57.6, so this runs in an environment of its own:

    pip install transformers==4.57.6 torch && python tests/oracles/record_transfo_xl.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.deprecated.transfo_xl.modeling_transfo_xl import (
    PositionalEmbedding,
    RelPartialLearnableMultiHeadAttn,
)

WIDTH, HEADS, BATCH, LENGTH, SEGMENTS = 8, 2, 2, 5, 3


def main() -> None:
    """Three segments, each with all that came before as memory; outputs, and gradients of all weights and inputs."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    torch.Tensor.float = lambda self: self  # its mask rounds scores to float32
    layer = RelPartialLearnableMultiHeadAttn(HEADS, WIDTH, WIDTH // HEADS, dropout=0.0).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape))
    positions = PositionalEmbedding(WIDTH)
    x, weights = torch.randn(2, SEGMENTS, LENGTH, BATCH, WIDTH)
    x.requires_grad_()
    outputs = []
    for segment in range(SEGMENTS):
        memory = x[:segment].detach().reshape(-1, BATCH, WIDTH)
        before = memory.shape[0]
        r = positions(torch.arange(before + LENGTH - 1, -1, -1.0))
        hidden = torch.ones(LENGTH, before + LENGTH).triu(1 + before)[:, :, None]
        outputs.append(layer(x[segment], r, attn_mask=hidden, mems=memory if before else None)[0])
    out = torch.stack(outputs)
    (out * weights).sum().backward()
    # (segments, batch, positions, width), as ours has it
    turn = lambda a: a.detach().transpose(1, 2).numpy().copy()
    arrays: dict[str, Any] = {"x": turn(x), "out": turn(out), "dout": turn(weights)}
    assert x.grad is not None
    arrays["dx"] = turn(x.grad)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        arrays[name], arrays["d" + name] = parameter.detach().numpy(), parameter.grad.numpy()
    np.savez_compressed(Path(__file__).parent / "fixtures" / "transfo_xl_attention.npz", **arrays)


if __name__ == "__main__":
    main()
