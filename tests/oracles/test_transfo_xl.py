"""Relative attention against Transformers' Transformer-XL, as record_transfo_xl.py recorded it."""

from pathlib import Path

import numpy as np
import pytest
from numformer import nn

FIXTURE = Path(__file__).parent / "fixtures" / "transfo_xl_attention.npz"
# Ours by theirs. Its "r_w" goes with words, "r_r" with relative positions.
NAMES = {
    "qkv.weight": "qkv_net.weight",
    "positions.weight": "r_net.weight",
    "output.weight": "o_net.weight",
    "bias_u": "r_w_bias",
    "bias_v": "r_r_bias",
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_three_segments(dtype, tolerance):
    with np.load(FIXTURE, allow_pickle=False) as file:
        recorded = {name: file[name] for name in file.files}
    layer = nn.RelativeAttention(8, 2, transposed=True, dtype=dtype)
    norm = nn.LayerNorm(8, dtype=dtype)
    layer.load_state_dict({ours: recorded[theirs] for ours, theirs in NAMES.items()})
    norm.load_state_dict({name: recorded[f"layer_norm.{name}"] for name in ("weight", "bias")})
    x, dout = recorded["x"].astype(dtype), recorded["dout"].astype(dtype)

    def close(got, name):
        want = recorded[name]
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max()), name

    outputs, backwards = [], []
    for segment in range(len(x)):
        memory = np.concatenate(x[:segment], axis=1) if segment else None
        attended, through_attention = layer(x[segment], memory=memory, residual=x[segment])
        out, through_norm = norm(attended)
        outputs.append(out)
        backwards.append((through_norm, through_attention))
        inferred = norm.infer(layer.infer(x[segment], memory=memory, residual=x[segment]))
        np.testing.assert_allclose(inferred, out, rtol=tolerance, atol=tolerance)
    close(np.stack(outputs), "out")
    dx = []
    for d, (through_norm, through_attention) in zip(dout, backwards, strict=True):
        d = through_norm(d)
        dx.append(through_attention(d, residual=d))
    close(np.stack(dx), "dx")
    for ours, gradient in layer.gradients().items():
        close(gradient, "d" + NAMES[ours])
    for name, gradient in norm.gradients().items():
        close(gradient, f"dlayer_norm.{name}")
