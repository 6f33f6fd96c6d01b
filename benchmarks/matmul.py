"""Matrix multiply against NumPy (OpenBLAS) and PyTorch (MKL), float32."""

import pathlib

import numformer as nf
import numpy as np
import torch

from benchmarks import common

SHAPES = [
    (256, 256, 256),
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (512, 768, 2304),
    (512, 3072, 768),
    (8, 768, 3072),
    (1, 768, 50257),
]
BATCHES = [(96, 64, 64, 64)]
PEERS = ["numpy", "torch"]


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """All shapes with each number of threads.

    The aim, 0.9 of the best peer, is for 512^3 and up; elsewhere nothing is promised yet.
    """
    rng = np.random.default_rng()
    results = []
    common.print_header("matmul", PEERS)
    for count in threads:
        common.set_threads(count)
        top = common.ceiling()
        for batch, m, k, n in [(0, *shape) for shape in SHAPES] + BATCHES:
            lead = (batch,) if batch else ()
            a = rng.standard_normal((*lead, m, k), np.float32)
            b = rng.standard_normal((*lead, k, n), np.float32)
            ta, tb = torch.from_numpy(a), torch.from_numpy(b)
            np.testing.assert_allclose(nf.matmul(a, b), (ta @ tb).numpy(), rtol=1e-3, atol=1e-3)
            seconds = common.take_turns(
                {
                    "numformer": lambda a=a, b=b: nf.matmul(a, b),
                    "numpy": lambda a=a, b=b: a @ b,
                    "torch": lambda ta=ta, tb=tb: ta @ tb,
                }
            )
            name = f"{batch} x {m}^3" if batch else f"{m}, {k}, {n}"
            promised = not batch and min(m, k, n) >= 512
            result = common.Result(
                "matmul", name, count, 2.0 * max(batch, 1) * m * k * n, seconds, top, 0.9 if promised else 0.0
            )
            results.append(result)
            common.print_result(result, PEERS)
    return common.write("matmul", results, folder)
