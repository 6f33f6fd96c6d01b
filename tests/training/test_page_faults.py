"""A step in the steady state touches no fresh page: what it needs comes from the pool."""

from __future__ import annotations

import sys

import numformer as nf
import numpy as np
import pytest
from numformer.models import GPT, GPTConfig
from numformer.nn.context import Context, compute_dtype
from numformer.optim import AdamW

resource = pytest.importorskip("resource")


def _faults() -> int:
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_page_faults_in_the_steady_state(dtype: str) -> None:
    model = GPT(GPTConfig(vocab_size=300, context=64, layers=2, heads=2, width=128, dropout=0.1), rng=0)
    optimizer = AdamW(model.parameters(), lr=1e-3, clip_norm=1.0)
    rng = np.random.default_rng()
    ids, targets = rng.integers(0, 300, (2, 8, 64))
    narrow = None if dtype == "float32" else compute_dtype("test", dtype)
    for parameter in model.parameters():
        parameter.keep(narrow)

    def step(number: int) -> None:
        _, backward = model.loss((ids, targets), ctx=Context(seed=1, step=number, dtype=narrow))
        backward()
        optimizer.step()

    for number in range(6):
        step(number)
    before = _faults()
    for number in range(6, 16):
        step(number)
    pages = nf.info()["pool"]["bytes_cached"] / resource.getpagesize()
    assert pages > 500, "a step's arrays are some megabytes"
    assert (_faults() - before) / 10 < pages / 50
