"""``numformer bench``: kernels beside NumPy and PyTorch, and the machine's ceilings."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

import numformer as nf
from numformer.profiling import ceilings
from numformer.profiling.timing import Call, take_turns

Array = NDArray[Any]

_BAR = 8  # characters of a bar that says twice as fast


@dataclass
class Case:
    """One line: who computes it, each after its own fashion."""

    name: str
    contenders: dict[str, Call]
    flops: float


def run(*, subjects: list[str], ceilings: bool, picture: Path | None, quick: bool, threads: int | None) -> None:
    """Measure and print; check everything first."""
    for subject in subjects:
        if subject not in SUBJECTS:
            raise ValueError(f"bench: subjects must be among {', '.join(SUBJECTS)}, got {subject!r}")
    if picture is not None and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("bench: --picture needs matplotlib: pip install 'numformer[plot]'")
    if threads is not None:
        nf.set_num_threads(threads)
    if ceilings:
        _ceilings(threads, quick)
        if not subjects:
            return
    torch = _torch()
    limit = _limit_blas()
    typer.echo(
        f"numformer {nf.__version__} at {nf.info()['isa']}, {nf.get_num_threads()} threads; NumPy {np.__version__}"
        f"{'' if limit else ' (at the number of threads that its BLAS chose)'}"
        f"; {'PyTorch ' + torch.__version__ if torch else 'PyTorch is not installed'}; float32, median of 5"
    )
    results: list[tuple[str, dict[str, float]]] = []
    typer.echo(f"{'case':36}{'ms':>10}{'GFLOP/s':>10}{'x numpy':>10}{'x torch':>10}")
    for subject in subjects or list(SUBJECTS):
        for case in SUBJECTS[subject](np.random.default_rng(0), torch, quick):
            seconds = take_turns(case.contenders, slice_seconds=0.002 if quick else 0.05)
            ours = seconds["numformer"]
            columns = "".join(
                f"{seconds[peer] / ours:10.2f}" if peer in seconds else f"{'-':>10}" for peer in ("numpy", "torch")
            )
            rate = f"{case.flops / ours * 1e-9:10.1f}" if case.flops else f"{'-':>10}"
            typer.echo(f"{case.name:36}{ours * 1e3:10.3f}{rate}{columns}")
            results.append((case.name, seconds))
    typer.echo("\n" + _bars(results))
    if picture is not None:
        _draw(results, picture)
        typer.echo(f"wrote {picture}")


def _ceilings(threads: int | None, quick: bool) -> None:
    """Measure at 1, 2, 4, ... and all threads, or at the given number; keep and print."""
    before = nf.get_num_threads()
    counts = [threads] if threads is not None else sorted({*(2**n for n in range(11) if 2**n < before), before})
    measured = []
    for count in counts:
        nf.set_num_threads(count)
        measured.append(ceilings.measure(0.002 if quick else 0.05, 2 if quick else 5))
        typer.echo(measured[-1].text())
    nf.set_num_threads(before)
    typer.echo(f"wrote {ceilings.keep(measured)}")


def _torch() -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(nf.get_num_threads())
    return torch


def _limit_blas() -> bool:
    """Give NumPy's BLAS the same number of threads, where threadpoolctl is there to do it."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return False
    import threadpoolctl

    threadpoolctl.threadpool_limits(nf.get_num_threads(), user_api="blas")
    return True


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def _case(name: str, ours: Call, numpy: Call, torch: Call | None, flops: float = 0.0) -> Case:
    """Make a case of contenders that agree; a kernel that is wrong is not worth timing."""
    contenders = {"numformer": ours, "numpy": numpy}
    expected = ours()
    np.testing.assert_allclose(expected, numpy(), rtol=1e-3, atol=1e-3)
    if torch is not None:
        contenders["torch"] = torch
        np.testing.assert_allclose(expected, torch().numpy(), rtol=1e-3, atol=1e-3)
    return Case(name, contenders, flops)


def _matmul(rng: np.random.Generator, torch: Any, quick: bool) -> list[Case]:
    shapes = [(64, 64, 64)] if quick else [(256, 256, 256), (1024, 1024, 1024), (512, 768, 3072), (1, 768, 3072)]

    def case(m: int, k: int, n: int) -> Case:
        a, b = _normal(rng, m, k), _normal(rng, k, n)
        pair = [torch.from_numpy(x) for x in (a, b)] if torch else []
        name, flops = f"matmul {m} x {k} x {n}", 2.0 * m * k * n
        return _case(
            name, lambda: nf.matmul(a, b), lambda: a @ b, (lambda: pair[0] @ pair[1]) if torch else None, flops
        )

    return [case(*shape) for shape in shapes]


def _numpy_attention(q: Array, k: Array, v: Array, causal: bool) -> Array:
    scores = q @ k.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5)
    if causal:
        scores = np.where(np.tri(q.shape[-2], k.shape[-2], dtype=bool), scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True) @ v


def _attention(rng: np.random.Generator, torch: Any, quick: bool) -> list[Case]:
    shapes = [(1, 2, 32, 16)] if quick else [(1, 8, 512, 64), (4, 12, 1024, 64)]

    def case(shape: tuple[int, ...], causal: bool) -> Case:
        q, k, v = (_normal(rng, *shape) for _ in range(3))
        tensors = [torch.from_numpy(x) for x in (q, k, v)] if torch else []
        batch, heads, length, size = shape
        pairs = length * (length + 1) // 2 if causal else length**2
        return _case(
            f"attention {', '.join(map(str, shape))}{' causal' if causal else ''}",
            lambda: nf.attention(q, k, v, causal=causal),
            lambda: _numpy_attention(q, k, v, causal),
            (lambda: torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)) if torch else None,
            4.0 * batch * heads * pairs * size,
        )

    return [case(shape, causal) for shape in shapes for causal in (False, True)]


def _rows(
    name: str, ours: Callable[[Array], Any], numpy: Callable[[Array], Any], torchs: Callable[[Any, Any], Any]
) -> Any:
    def cases(rng: np.random.Generator, torch: Any, quick: bool) -> list[Case]:
        shape = (64, 64) if quick else (2048, 768)
        x = _normal(rng, *shape)
        tensor = torch.from_numpy(x) if torch else None
        return [
            _case(
                f"{name} {shape[0]} x {shape[1]}",
                lambda: ours(x),
                lambda: numpy(x),
                (lambda: torchs(torch, tensor)) if torch else None,
            )
        ]

    return cases


def _numpy_softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _numpy_layer_norm(x: Array) -> Array:
    d = x - x.mean(-1, keepdims=True)
    return np.asarray(d / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-5))


def _numpy_gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x))))


SUBJECTS: dict[str, Callable[[np.random.Generator, Any, bool], list[Case]]] = {
    "matmul": _matmul,
    "attention": _attention,
    "softmax": _rows("softmax", nf.softmax, _numpy_softmax, lambda torch, t: torch.softmax(t, -1)),
    "layer_norm": _rows(
        "layer_norm",
        nf.layer_norm,
        _numpy_layer_norm,
        lambda torch, t: torch.nn.functional.layer_norm(t, t.shape[-1:]),
    ),
    "gelu": _rows(
        "gelu (tanh)",
        lambda x: nf.gelu(x, approximate="tanh"),
        _numpy_gelu_tanh,
        lambda torch, t: torch.nn.functional.gelu(t, approximate="tanh"),
    ),
}


def _bars(results: list[tuple[str, dict[str, float]]]) -> str:
    """Return a picture of text: how many times faster than each peer, to the right of "|", or slower, to its left."""
    bars = [
        (f"{name}, {peer}", seconds[peer] / seconds["numformer"])
        for name, seconds in results
        for peer in seconds
        if peer != "numformer"
    ]
    lengths = [round(_BAR * math.log2(ratio)) for _, ratio in bars]
    width, left, right = max(len(label) for label, _ in bars), max(0, -min(lengths)), max(0, *lengths)
    lines = ["faster than (right), slower than (left): twice each " + "#" * _BAR]
    for (label, ratio), length in zip(bars, lengths, strict=True):
        lines.append(f"{label:{width}} {'#' * -length:>{left}}|{'#' * length:{right}} {ratio:6.2f}")
    return "\n".join(lines)


def _draw(results: list[tuple[str, dict[str, float]]], path: Path) -> None:
    """Bars: how many times faster than each peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.45 * len(results)), layout="constrained")
    peers = [peer for peer in ("numpy", "torch") if any(peer in seconds for _, seconds in results)]
    for number, peer in enumerate(peers):
        ratios = [seconds.get(peer, float("nan")) / seconds["numformer"] for _, seconds in results]
        places = [line + (number - (len(peers) - 1) / 2) * 0.38 for line in range(len(results))]
        # Bars begin at 1: on a scale of ratios nothing else is a length.
        bars = axes.barh(places, [ratio - 1 for ratio in ratios], 0.36, left=1, label=f"as {peer}")
        axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
    axes.axvline(1, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(results)), [name for name, _ in results])
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("how many times as fast")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
