"""On an NVIDIA GPU: what it can do at most, then attention beside PyTorch's flash and cuDNN backends, AdamW and layer
norm as shares of the bandwidth of a copy, and a training step of GPT-2 124M beside PyTorch's, eager and compiled.

Times are those of the GPU, by events, contenders taking turns; the median counts. Without PyTorch for GPUs ours is
measured alone. Results are compared before they are timed.
"""

import json
import pathlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numformer as nf
import numpy as np
from numformer.models import GPT, GPTConfig
from numformer.nn import Context
from numformer.optim import AdamW, decay_groups

from benchmarks.training_flops import step_flops

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ATTENTION = [(8, 16, 1024, 64), (4, 16, 4096, 64), (4, 16, 4096, 128)]
GPT2, BATCH = GPTConfig(vocab_size=50257, context=1024, layers=12, heads=12, width=768), 8
PARAMETERS = 124_000_000
ROWS = (32768, 768)
MATRIX, COPIED = 8192, 1 << 30  # rows and columns; bytes
ROUNDS, SLICE = 7, 0.05
# Probabilities are rounded to 8 bits before the second product on either side.
CLOSE = {"rtol": 5e-2, "atol": 5e-2}
LR = 1e-4

Calls = dict[str, Callable[[], Any]]


def run(threads: list[int], folder: pathlib.Path) -> pathlib.Path:
    """All of it, one after another; `threads` are the processor's, and not asked for."""
    status = nf.info()["cuda"]
    if not status["usable"]:
        raise SystemExit(f"cuda: there is no GPU to measure: {status['reason']}")
    gpu = Gpu()
    about = {**status, "torch": None if gpu.torch is None else gpu.torch.__version__, "date": time.strftime("%Y-%m-%d")}
    print(f"cuda: {status['device']}, driver {status['driver']}, numformer {nf.__version__}, torch {about['torch']}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cuda.json"
    for part in (ceilings, attention, memory_bound, training_step):
        part(gpu)
        # What is there is written: the time on such a machine may end.
        path.write_text(json.dumps({"machine": about, "ceilings": gpu.most, "results": gpu.results}, indent=1) + "\n")
    return path


class Gpu:
    """The device, its ceilings, PyTorch where it has it too, and what was measured."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.most = {"TFLOP/s": 0.0, "GB/s": 0.0}
        self.results: list[dict[str, Any]] = []
        self.torch: Any = None
        try:
            import torch
        except ImportError:
            return
        if torch.cuda.is_available():
            self.torch = torch

    def put(self, x: np.ndarray) -> Any:
        """Return a copy on the GPU, CuPy's."""
        return self.cupy.asarray(x)

    def tensor(self, x: np.ndarray) -> Any:
        """Return a copy on the GPU, PyTorch's."""
        if x.dtype == BFLOAT16:
            return self.torch.from_numpy(x.view(np.int16)).view(self.torch.bfloat16).cuda()
        return self.torch.from_numpy(x).cuda()

    def seconds(self, calls: Calls) -> dict[str, float]:
        """Return the median time of each call, on the stream that both libraries use where nobody chose another."""
        counts = {name: max(1, int(SLICE / self._once(call, 1))) for name, call in calls.items()}
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                found[name].append(self._once(call, counts[name]) / counts[name])
        return {name: statistics.median(times) for name, times in found.items()}

    def _once(self, call: Callable[[], Any], count: int) -> float:
        events = self.cupy.cuda
        call()
        start, stop = events.Event(), events.Event()
        start.record()
        for _ in range(count):
            call()
        stop.record()
        stop.synchronize()
        return max(1e-3 * float(events.get_elapsed_time(start, stop)), 1e-9)

    def measure(self, case: str, calls: Calls, *, work: float, of: str) -> dict[str, float]:
        """Measure, print a line, and keep it. `work` is in units of `of`, a ceiling, times a second."""
        seconds = self.seconds(calls)
        rate = work / seconds["numformer"]
        share = rate / self.most[of] if self.most[of] else None
        self.results.append({"case": case, "seconds": seconds, of: rate, "share": share})
        others = "".join(
            f"{name:>12} {t / seconds['numformer']:5.2f}" for name, t in seconds.items() if name != "numformer"
        )
        shown = "" if share is None else f"{share:6.0%}"
        print(f"{case:44}{1e3 * seconds['numformer']:10.3f} ms{rate:10.1f} {of}{shown}{others}", flush=True)
        return seconds


def ceilings(gpu: Gpu) -> None:
    """The rate of matrix products in bfloat16 and the bandwidth of a copy, reads and writes counted."""
    rng = np.random.default_rng()
    host = [rng.standard_normal((MATRIX, MATRIX), np.float32).astype(BFLOAT16) for _ in range(2)]
    a, b = map(gpu.put, host)
    calls: Calls = {"numformer": lambda: nf.matmul(a, b)}
    if gpu.torch is not None:
        x, y = map(gpu.tensor, host)
        calls["torch"] = lambda: gpu.torch.matmul(x, y)
    flops = 2e-12 * MATRIX**3
    seconds = gpu.measure(f"matmul {MATRIX}^3 bfloat16", calls, work=flops, of="TFLOP/s")
    gpu.most["TFLOP/s"] = flops / min(seconds.values())
    source = gpu.cupy.zeros(COPIED // 4, np.float32)
    target = gpu.cupy.zeros(COPIED // 4, np.float32)

    def copy() -> None:
        target[...] = source

    seconds = gpu.measure(f"copy of {COPIED >> 20} MiB", {"numformer": copy}, work=2e-9 * COPIED, of="GB/s")
    gpu.most["GB/s"] = 2e-9 * COPIED / seconds["numformer"]


def attention(gpu: Gpu) -> None:
    """Forward, and forward and backward, causal and not; causal counts half the products."""
    rng = np.random.default_rng()
    for shape in ATTENTION:
        host = [rng.standard_normal(shape, np.float32).astype(BFLOAT16) for _ in range(4)]
        batch, heads, length, width = shape
        for causal in (False, True):
            for backward in (False, True):
                calls = _attention_calls(gpu, host, causal, backward)
                flops = 4e-12 * batch * heads * length**2 * width * (0.5 if causal else 1) * (3.5 if backward else 1)
                name = f"attention {shape}{' causal' if causal else ''}{' fwd+bwd' if backward else ' fwd'}"
                gpu.measure(name, calls, work=flops, of="TFLOP/s")


def _attention_calls(gpu: Gpu, host: list[np.ndarray], causal: bool, backward: bool) -> Calls:
    *qkv, dout = map(gpu.put, host)

    def ours() -> list[Any]:
        out, lse = nf.attention(*qkv, causal=causal, return_lse=True)
        return [out, *(nf.attention_backward(dout, *qkv, out, lse, causal=causal) if backward else ())]

    calls: Calls = {"numformer": ours}
    if gpu.torch is None:
        return calls
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    *tensors, dtensor = map(gpu.tensor, host)
    for x in tensors:
        x.requires_grad_(backward)
    expected = [x.astype(np.float32).get() for x in ours()]
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):

        def theirs(backend: Any = backend) -> list[Any]:
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(*tensors, is_causal=causal)
            return [out, *(gpu.torch.autograd.grad(out, tensors, dtensor) if backward else ())]

        try:
            found = theirs()
        except RuntimeError as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
            continue
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(one, other.detach().float().cpu().numpy(), **CLOSE)
        calls[name] = theirs
    return calls


def memory_bound(gpu: Gpu) -> None:
    """AdamW's update and layer norm: bytes that must be read and written, over the time."""
    count = PARAMETERS
    lists = [[gpu.cupy.full(count, 1e-3, np.float32)] for _ in range(4)]  # values, gradients, moments
    options = {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    calls: Calls = {"numformer": partial(nf.adamw_update, *lists, lr=LR, weight_decay=0.1, step=1)}
    if gpu.torch is not None:
        parameter = gpu.torch.full((count,), 1e-3, device="cuda", requires_grad=True)
        parameter.grad = gpu.torch.full_like(parameter, 1e-3)
        calls["torch"] = gpu.torch.optim.AdamW([parameter], fused=True, **options).step
    gpu.measure(f"AdamW, {count // 1_000_000}M float32", calls, work=1e-9 * 7 * 4 * count, of="GB/s")
    del lists, calls
    rng = np.random.default_rng()
    for dtype in (np.dtype(np.float32), BFLOAT16):
        host = [rng.standard_normal(ROWS, np.float32).astype(dtype) for _ in range(2)]
        x, dy = map(gpu.put, host)
        weight, bias = (gpu.put(np.ones(ROWS[1], np.float32)) for _ in range(2))
        _, mean, rstd = nf.layer_norm(x, weight, bias, return_stats=True)

        def forward(x: Any = x, weight: Any = weight, bias: Any = bias) -> Any:
            return nf.layer_norm(x, weight, bias)

        def backward(x: Any = x, dy: Any = dy, mean: Any = mean, rstd: Any = rstd, weight: Any = weight) -> Any:
            return nf.layer_norm_backward(dy, x, mean, rstd, weight)

        moved = 1e-9 * x.nbytes
        calls = {"numformer": forward}
        if gpu.torch is not None:
            t = gpu.tensor(host[0])
            scale, shift = (gpu.torch.ones(ROWS[1], device="cuda", dtype=t.dtype) for _ in range(2))
            calls["torch"] = lambda t=t, scale=scale, shift=shift: gpu.torch.nn.functional.layer_norm(
                t, (ROWS[1],), scale, shift
            )
        gpu.measure(f"layer norm {ROWS} {dtype}", calls, work=2 * moved, of="GB/s")
        gpu.measure(f"layer norm backward {ROWS} {dtype}", {"numformer": backward}, work=3 * moved, of="GB/s")


def training_step(gpu: Gpu) -> None:
    """Loss, gradient, clipping and AdamW of GPT-2 in mixed precision, on one batch; the first losses must be equal."""
    rng = np.random.default_rng()
    model = GPT(GPT2, rng=0)
    ids, targets = rng.integers(0, GPT2.vocab_size, (2, BATCH, GPT2.context))
    makers = _peers(gpu, model.state_dict()) if gpu.torch is not None else {}
    model.to("cuda")
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=LR, clip_norm=1.0)
    for parameter in model.parameters():
        parameter.keep(BFLOAT16)
    ctx = Context(dtype=BFLOAT16)

    def ours() -> float:
        loss, backward = model.loss((ids, targets), ctx=ctx)
        backward()
        optimizer.step()
        return float(loss)

    first = ours()
    work = 1e-12 * step_flops(GPT2, BATCH)
    gpu.measure(f"GPT-2 124M, T {GPT2.context}, B {BATCH}, bfloat16", {"numformer": ours}, work=work, of="TFLOP/s")
    for name, make in makers.items():
        try:
            step = make()
            theirs = step(gpu.tensor(ids), gpu.tensor(targets))
        except Exception as error:  # whatever stands in the way of torch.compile
            print(f"torch {name} is left out: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
            continue
        np.testing.assert_allclose(theirs, first, rtol=1e-2)
        pair = gpu.tensor(ids), gpu.tensor(targets)
        calls: Calls = {"numformer": ours, name: lambda step=step, pair=pair: step(*pair)}
        gpu.measure(f"GPT-2 124M beside torch {name}", calls, work=work, of="TFLOP/s")


def _peers(gpu: Gpu, state: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    from benchmarks.torch_gpt import TorchGPT
    from benchmarks.torch_peer import TorchStep

    def make(compiled: bool) -> Any:
        peer = TorchGPT(GPT2).copy(weights).cuda()
        return TorchStep(peer, lr=LR, weight_decay=0.1, autocast=gpu.torch.bfloat16, compiled=compiled)

    weights = {name: value.copy() for name, value in state.items()}
    return {"eager": lambda: make(False), "compiled": lambda: make(True)}
