"""``numformer explain``."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import typer
from numpy.typing import NDArray

import numformer as nf
from numformer.profiling import ceilings
from numformer.profiling.explain import Explanation

_MOST_BYTES = 1 << 46  # beyond what a machine has; memory that is not touched costs nothing


def run(*, operation: str, threads: int | None, **options: Any) -> None:
    """Print what the kernels say; ceilings that were never measured are, once."""
    if threads is not None:
        nf.set_num_threads(threads)
    call = _matmul if operation == "matmul" else _attention
    for plan in call(**options):
        ceilings.find(plan.threads)
    typer.echo(str(call(**options)))


def _numbers(option: str, text: str, axes: tuple[int, ...], names: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in axes or min(numbers, default=-1) < 0:
        raise ValueError(f"explain: --{option} must be {names}, numbers of 0 or more, got {text!r}")
    return numbers


def _empty(dtype: Any, *shape: int) -> NDArray[Any]:
    """An array whose memory nobody touches."""
    bytes = np.dtype(dtype).itemsize
    for extent in shape:
        bytes *= extent
    try:
        if bytes > _MOST_BYTES:
            raise MemoryError
        return np.empty(shape, dtype)
    except MemoryError:
        raise ValueError(f"explain: arrays of shape {shape} must fit in memory") from None


def _dtype(name: str) -> Any:
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


def _matmul(*, shape: str, dtype: str, backward: bool, transposed: tuple[bool, bool], **attention: Any) -> Explanation:
    _refuse("attention", attention)
    *batch, m, k, n = _numbers("shape", shape, (3, 4), "M,K,N or BATCH,M,K,N")
    kind = _dtype(dtype)
    a = _empty(kind, *batch, k, m).swapaxes(-1, -2) if transposed[0] else _empty(kind, *batch, m, k)
    b = _empty(kind, *batch, n, k).swapaxes(-1, -2) if transposed[1] else _empty(kind, *batch, k, n)
    if backward:
        return nf.explain(nf.matmul_backward, _empty(kind, *batch, m, n), a, b)
    return nf.explain(nf.matmul, a, b)


def _attention(
    *,
    shape: str,
    dtype: str,
    backward: bool,
    keys: int | None,
    kv_heads: int | None,
    value_dim: int | None,
    causal: bool,
    window: str | None,
    **matmul: Any,
) -> Explanation:
    _refuse("matmul", matmul)
    *batch, heads, queries, dim = _numbers("shape", shape, (3, 4), "HEADS,N,D or BATCH,HEADS,N,D")
    kind = _dtype(dtype)
    count, width = queries if keys is None else keys, dim if value_dim is None else value_dim
    shared = heads if kv_heads is None else kv_heads
    q, k = _empty(kind, *batch, heads, queries, dim), _empty(kind, *batch, shared, count, dim)
    v = _empty(kind, *batch, shared, count, width)
    options: dict[str, Any] = {"causal": causal, "window": None if window is None else _window(window)}
    if not backward:
        return nf.explain(nf.attention, q, k, v, **options)
    out = _empty(kind, *batch, heads, queries, width)
    lse = _empty(np.float64 if dtype == "float64" else np.float32, *batch, heads, queries)
    return nf.explain(nf.attention_backward, out, q, k, v, out, lse, **options)


def _window(text: str) -> tuple[int | None, int | None]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip() == "" or part.strip().isdecimal() for part in parts):
        raise ValueError(f"explain: --window must be LEFT,RIGHT, numbers of 0 or more or nothing, got {text!r}")
    left, right = (int(part) if part.strip() else None for part in parts)
    return left, right


def _refuse(owner: str, options: dict[str, Any]) -> None:
    """Options of the other operation must not have been given."""
    for name, value in options.items():
        if value not in (None, False, (False, False)):
            option = "transpose-a or --transpose-b" if name == "transposed" else name.replace("_", "-")
            raise ValueError(f"explain: --{option} is for {owner} only")
