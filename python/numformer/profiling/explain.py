"""What a call is going to do, told by the kernels that would do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from numformer import _core
from numformer.profiling.recording import Recording

if TYPE_CHECKING:
    from numformer.profiling.ceilings import Ceilings

EXPLAINED = (
    "matmul",
    "matmul_backward",
    "attention",
    "attention_backward",
    "attention_varlen",
    "attention_varlen_backward",
)


@dataclass(frozen=True)
class Plan:
    """One call of a kernel that was not done.

    Attributes
    ----------
    operation, dtype : str
        Which kernel, and the dtype of its arrays.
    shape : tuple of int
        As in ``profile.records()``: (products, M, K, N) of matmul, (batch, heads, N, M, D, Dv) of attention.
    isa : str
        Instruction set of the kernel.
    path : str
        Which way the call takes through it.
    threads : int
        How many work on it.
    facts : dict
        Sizes of tiles and blocks, and how the work is divided, by name: numbers, and booleans.
    flops, bytes : float
        As a profile counts them: masked pairs outside the pattern left out, each operand moved once.
    pairs : float
        Attention: pairs of a query and a key whose scores are computed, tiles on the edge of the pattern as a whole.
    scratch_bytes : int
        Most memory that the kernel needs at once beside arguments and results.
    ceilings : Ceilings or None
        What this machine can do with so many threads, as ``numformer bench --ceilings`` measured it.
    """

    operation: str
    dtype: str
    shape: tuple[int, ...]
    isa: str
    path: str
    threads: int
    flops: float
    bytes: float
    pairs: float
    scratch_bytes: int
    facts: dict[str, int] = field(default_factory=dict)
    ceilings: Ceilings | None = None

    @property
    def seconds(self) -> float | None:
        """The least time that the ceilings allow (the kernel comes as near to it as a profile shows), or None."""
        return None if self.ceilings is None else max(self.ceilings.seconds(self.flops, self.bytes, self.dtype))

    @property
    def bound(self) -> str | None:
        """What that time is of: "arithmetic" or "memory"; None without ceilings."""
        if self.ceilings is None:
            return None
        arithmetic, memory = self.ceilings.seconds(self.flops, self.bytes, self.dtype)
        return "arithmetic" if arithmetic >= memory else "memory"

    def _time(self) -> str:
        if self.ceilings is None or self.seconds is None:
            return f"not known: numformer bench --ceilings --threads {self.threads} measures what this machine can do"
        where = self.ceilings.level(self.bytes)
        return (
            f"{self.seconds * 1e6:.4g} us at least, bound by {self.bound}: "
            f"{self.ceilings.gflops(self.dtype):.0f} GFLOP/s, {self.ceilings.bandwidth[where]:.0f} GB/s ({where})"
        )

    def __str__(self) -> str:
        text = {True: "yes", False: "no"}
        facts = ", ".join(
            f"{name.replace('_', ' ')}{': ' + text[value] if isinstance(value, bool) else f' {value}'}"
            for name, value in self.facts.items()
        )
        lines = {
            "kernel": f"{self.operation} ({Recording.shape_text(self.shape)}) {self.dtype}, instruction set {self.isa}",
            "path": self.path,
            "threads": str(self.threads),
            "sizes": facts,
            "work": f"{self.flops:.4g} FLOPs, {self.bytes:.4g} bytes moved, {self.scratch_bytes:.4g} bytes of scratch",
        }
        if self.pairs:
            every = self.shape[0] * self.shape[1] * self.shape[2] * self.shape[3]
            lines["pairs"] = f"{self.pairs:.4g} scores are computed, {self.pairs / every:.1%} of all pairs"
        lines["time"] = self._time()
        return "\n".join(f"{name:8}{text}" for name, text in lines.items() if text)


class Explanation(tuple[Plan, ...]):
    """The kernels that a call takes, in their order; its text says what each of them would do."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    __repr__ = __str__


def _empty_like(value: Any) -> Any:
    """What is to be written to: another array of the same layout."""
    if isinstance(value, tuple):
        return tuple(_empty_like(part) for part in value)
    return np.empty_like(value) if isinstance(value, np.ndarray) else value


def explain(operation: Callable[..., Any], /, *args: Any, **options: Any) -> Explanation:
    """Say which kernels a call takes, with which blocks and threads, and how long it takes at best, without doing it.

    The call goes through the same checks and decisions as ever; the kernel then tells what it would do from the
    constants and functions that it runs by, and does not do it.

    Parameters
    ----------
    operation : function
        `matmul`, `attention` or `attention_varlen`, or the ``_backward`` of one of them.
    *args, **options
        As for the call. Of arrays only shape, layout and dtype are read (and the values of `mask`, `global_tokens` and
        ``cu_seqlens``), so ``np.empty(shape, dtype)`` will do. What is given as `out` or `into` is not written.

    Returns
    -------
    Explanation
        A tuple of :class:`Plan`, one a kernel; ``print`` it.

    Raises
    ------
    TypeError, ValueError
        What the call itself would raise; TypeError for another `operation`.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> (plan,) = nf.explain(nf.matmul, np.empty((512, 768), np.float32), np.empty((768, 2304), np.float32))
    >>> plan.operation, plan.flops
    ('matmul', 1811939328.0)
    """
    from numformer.profiling import ceilings  # reads files; most who import numformer never ask

    name = getattr(operation, "__name__", "")
    if name not in EXPLAINED or not str(getattr(operation, "__module__", "")).startswith("numformer.ops"):
        raise TypeError(f"explain: operation must be one of numformer's {', '.join(EXPLAINED)}, got {operation!r:.80}")
    for argument in ("out", "into"):
        if argument in options and not (argument == "out" and name.endswith("backward")):
            options[argument] = _empty_like(options[argument])
    _core.explain()
    try:
        operation(*args, **options)
    finally:
        calls = _core.explained()
    plans = []
    for call in calls:
        path = call["path"] or "rows or columns in turn"
        plans.append(Plan(**{**call, "path": path}, isa=_core.isa, ceilings=ceilings.load(call["threads"])))
    return Explanation(plans)
