"""Matrix multiply against NumPy (OpenBLAS), PyTorch (MKL, oneDNN), BLIS and onnxruntime: shapes of Transformers,
layouts, dtypes, few rows, batches, a weight that was packed once, what follows a product, and what a small call costs.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numformer as nf
import numpy as np
import torch

from benchmarks import common
from benchmarks.matmul_peers import blis_product, onednn_product, onnxruntime_product
from benchmarks.torch_peer import tensor

PEERS = ["numpy", "torch", "blis", "onednn", "onnxruntime"]
PACKED, FUSED, SMALL = "packed", "bias + gelu", "4, 4, 4"  # beginnings of the cases that are no `Case`


@dataclass(frozen=True)
class Case:
    """A product (M, K) @ (K, N), and how fast it shall be.

    `layout` says which operands are transposes of arrays in C order: "NN", "NT" (b), "TN" (a). `aim` is a multiple of
    the best peer, `cap` a share of the ceiling of the dtype on one thread and on more: the lower of both counts.
    """

    m: int
    k: int
    n: int
    batch: int = 0
    dtype: str = "float32"
    layout: str = "NN"
    aim: float = 1.05
    cap: tuple[float, float] | None = (0.95, 0.94)

    @property
    def name(self) -> str:
        shape = f"{self.m}, {self.k}, {self.n}" if not self.batch else f"{self.batch} x {self.m}, {self.k}, {self.n}"
        return " ".join([shape, *([self.dtype] if self.dtype != "float32" else []), self.layout])

    @property
    def flops(self) -> float:
        return 2.0 * max(self.batch, 1) * self.m * self.k * self.n


BFLOAT16: dict[str, Any] = {"dtype": "bfloat16", "aim": 1.02, "cap": (0.92, 0.92)}
FEW: dict[str, Any] = {"aim": 1.7, "cap": None}  # bound by memory: the share of a read is beside
CASES = [
    Case(256, 256, 256, aim=1.0),
    *(Case(n, n, n) for n in (512, 1024, 2048, 4096)),
    Case(512, 768, 2304),
    Case(512, 3072, 768),
    *(Case(512, 768, 3072, layout=layout) for layout in ("NN", "NT", "TN")),
    Case(512, 768, 50257, layout="NT", aim=1.5, cap=(0.93, 0.93)),  # GPT-2's head; its two gradients
    Case(512, 50257, 768, cap=(0.93, 0.93)),
    Case(50257, 512, 768, layout="TN", cap=(0.93, 0.93)),
    *(Case(n, n, n, dtype="float64", aim=1.0, cap=None) for n in (512, 1024)),
    *(Case(n, n, n, **BFLOAT16) for n in (256, 512, 1024, 2048)),
    Case(512, 768, 2304, **BFLOAT16),
    Case(512, 3072, 768, **BFLOAT16),
    Case(8, 768, 3072, aim=2.0, cap=(0.93, 0.93)),
    Case(8, 768, 3072, **BFLOAT16),
    Case(1, 768, 50257, aim=1.0, cap=None),
    Case(1, 768, 50257, layout="NT", **FEW),
    Case(1, 768, 50257, dtype="bfloat16", **FEW),
    Case(64, 64, 64, batch=96, aim=1.5, cap=(0.96, 0.95)),
    Case(32, 32, 32, batch=1024, aim=1.5, cap=(0.85, 0.85)),
    Case(512, 64, 512, batch=12, aim=1.5, cap=(0.96, 0.95)),
]


def run(threads: list[int], folder: pathlib.Path, parts: Sequence[str] | None = None) -> pathlib.Path:
    """All cases with each number of threads; of `parts`, only those whose name begins with one of them."""
    chosen = common.of_parts("matmul", [*(case.name for case in CASES), PACKED, FUSED, SMALL], parts)
    rng = np.random.default_rng()
    results = []
    common.print_header("matmul", PEERS)
    for count in threads:
        common.set_threads(count)
        tops = {dtype: common.ceiling(dtype) for dtype in ("float32", "float64", "bfloat16")}
        lines: list[Iterable[common.Result]] = [
            (_compare(rng, case, count, tops[case.dtype]) for case in CASES if case.name in chosen)
        ]
        more = {PACKED: _prepacked, FUSED: _fused, SMALL: _small}
        lines += [measure(rng, count, tops["float32"]) for name, measure in more.items() if name in chosen]
        for result in itertools.chain.from_iterable(lines):
            results.append(result)
            common.print_result(result, PEERS)
    return common.write("matmul", results, folder, keep=bool(parts))


def _compare(rng: np.random.Generator, case: Case, count: int, top: float) -> common.Result:
    lead = (case.batch,) if case.batch else ()
    dtype = np.dtype(ml_dtypes.bfloat16) if case.dtype == "bfloat16" else np.dtype(case.dtype)

    def operand(rows: int, columns: int, transposed: bool) -> np.ndarray:
        shape = (columns, rows) if transposed else (rows, columns)
        x = rng.standard_normal((*lead, *shape)).astype(dtype)
        return x.swapaxes(-1, -2) if transposed else x

    a, b = operand(case.m, case.k, case.layout[0] == "T"), operand(case.k, case.n, case.layout[1] == "T")
    ta, tb = tensor(a), tensor(b)
    # The order of sums, in float32 or wider, is another one, and each result is rounded.
    rounding, sums = float(ml_dtypes.finfo(dtype).eps), 4 * float(np.finfo(np.float32).eps) * case.k
    np.testing.assert_allclose(
        nf.matmul(a, b).astype(np.float64), (ta @ tb).double().numpy(), rtol=4 * rounding, atol=sums
    )
    calls: dict[str, Callable[[], Any]] = {"numformer": lambda: nf.matmul(a, b), "torch": lambda: ta @ tb}
    if case.dtype != "bfloat16":  # NumPy has no BLAS for it
        calls["numpy"] = lambda: a @ b
        if not case.batch and (blis := blis_product(a, b, count)):
            calls["blis"] = blis
    extra: dict[str, Any] = {}
    if case.m > 1:
        seconds = common.take_turns(calls)
    else:
        seconds, read = common.take_turns_with_read(calls, b.nbytes)
        extra = common.beside_read(b.nbytes, seconds["numformer"], read)
    cap = None if case.cap is None else case.cap[0 if count == 1 else 1]
    note = f"{extra['share of read']:.0%} of a read" if extra else ""
    return common.Result("matmul", case.name, count, case.flops, seconds, top, case.aim, extra, cap, note)


def _prepacked(rng: np.random.Generator, count: int, top: float) -> Iterator[common.Result]:
    """A weight packed once, as float32 and in fewer bits, beside others that prepare theirs."""
    k, n = 768, 3072
    b = rng.standard_normal((k, n), np.float32)
    weights = {stored: nf.PackedMatrix(b, stored) for stored in (np.float32, ml_dtypes.bfloat16, np.int8)}
    for m in (1, 8, 16, 64, 512):
        a = rng.standard_normal((m, k), np.float32)
        peers: dict[str, Callable[[], Any] | None] = {
            "numpy": lambda a=a: a @ b,
            "onednn": onednn_product(a, b),
            "onnxruntime": onnxruntime_product(a, b, count),
        }
        calls = {name: call for name, call in peers.items() if call}
        for name, call in calls.items():
            np.testing.assert_allclose(call(), nf.matmul(a, b), rtol=1e-3, atol=1e-3, err_msg=name)
        theirs = list(calls)
        calls["array"] = lambda a=a: nf.matmul(a, b)
        for stored, weight in weights.items():
            calls[np.dtype(stored).name] = lambda a=a, weight=weight: nf.matmul(a, weight)
        seconds = common.take_turns(calls)
        for stored in weights:
            ours = seconds[np.dtype(stored).name]
            extra = {"times as fast as the array": seconds["array"] / ours}
            yield common.Result(
                "matmul",
                f"{PACKED} as {np.dtype(stored).name} {m}, {k}, {n}",
                count,
                2.0 * m * k * n,
                {"numformer": ours, **{name: seconds[name] for name in theirs}},
                top,
                1.0,
                extra,
                0.96 if stored is np.float32 and m > 1 else None,
                f"{extra['times as fast as the array']:.2f}x the array",
            )


def _fused(rng: np.random.Generator, count: int, top: float) -> Iterator[common.Result]:
    """Bias, GELU and residual: by one call, and one after the other in torch; beside, what they add to the product."""
    m, k, n = 512, 768, 3072
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    bias, residual = rng.standard_normal(n, np.float32), rng.standard_normal((m, n), np.float32)
    ta, tb, tbias, tresidual = (torch.from_numpy(x) for x in (a, b, bias, residual))
    out = np.empty((m, n), np.float32)
    for activation, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):

        def ours(activation: str | None = activation) -> np.ndarray:
            return nf.matmul(a, b, bias=bias, activation=activation, residual=residual, out=out)

        def theirs(approximate: str = approximate) -> torch.Tensor:
            return torch.nn.functional.gelu(torch.addmm(tbias, ta, tb), approximate=approximate) + tresidual

        np.testing.assert_allclose(ours(), theirs().numpy(), rtol=1e-3, atol=1e-3)
        seconds = common.take_turns({"numformer": ours, "torch": theirs, "plain": lambda: nf.matmul(a, b, out=out)})
        extra = {"over the plain product": seconds["numformer"] / seconds.pop("plain") - 1}
        name, note = f"bias + {activation} + residual", f"{extra['over the plain product']:+.1%}"
        yield common.Result("matmul", name, count, 2.0 * m * k * n, seconds, top, 1.3, extra, note=note)


def _small(rng: np.random.Generator, count: int, top: float) -> Iterator[common.Result]:
    """What a call costs: 4 x 4 matrices."""
    a, b = rng.standard_normal((2, 4, 4), np.float32)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    calls = {"numformer": lambda: nf.matmul(a, b), "numpy": lambda: a @ b, "torch": lambda: ta @ tb}
    seconds = common.take_turns(calls)
    over = (seconds["numformer"] - seconds["numpy"]) * 1e6
    extra, note = {"us beside numpy": over}, f"{over:+.2f} us beside NumPy"
    yield common.Result("matmul", SMALL, count, 128.0, seconds, top, 0.0, extra, note=note)
