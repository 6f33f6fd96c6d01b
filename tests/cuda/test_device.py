"""What only a true GPU does: memory that ends, errors that come later. With NUMFORMER_TEST_GPU, see gpu.py."""

import gpu
import numformer as nf
import numpy as np
import pytest
from arrays import normal

pytestmark = pytest.mark.skipif(not gpu.TRUE, reason="there is no GPU, or NUMFORMER_TEST_GPU is not set")


def test_it_is_usable():
    found = nf.info()["cuda"]
    assert found["usable"], found["reason"]


def test_memory_that_does_not_suffice(rng):
    import cupy

    x = gpu.put(normal(rng, 64, 64))
    tall = cupy.broadcast_to(x[:1, :1], (1 << 24, 64)), cupy.broadcast_to(x[:1, :1], (64, 1 << 24))
    with pytest.raises(MemoryError):
        nf.matmul(*map(cupy.ascontiguousarray, tall))  # 1 PiB
    np.testing.assert_allclose(gpu.got(nf.matmul(x, x)), nf.matmul(gpu.got(x), gpu.got(x)), rtol=1e-4, atol=1e-4)


def test_results_repeat_bit_for_bit(rng):
    q, k, v, dout = (gpu.put(normal(rng, 2, 4, 200, 64)) for _ in range(4))
    found = []
    for _ in range(3):
        out, lse = nf.attention(q, k, v, causal=True, return_lse=True)
        found.append(gpu.got([out, *nf.attention_backward(dout, q, k, v, out, lse, causal=True)]))
    for other in found[1:]:
        for one, again in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(again, one)
