"""What ran, how often, how fast: records that every kernel leaves while a profile is on."""

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer import _core

_RECORD = np.dtype(
    [
        ("name", "U32"),
        ("shape", np.int64, (6,)),
        ("flops", np.float64),
        ("bytes", np.float64),
        ("start_ns", np.int64),
        ("end_ns", np.int64),
        ("thread", np.int64),
    ]
)


class profile:
    """Context manager that records every kernel called inside it, on any thread.

    Parameters
    ----------
    capacity : int
        The most records that are kept; later ones are counted in `dropped`.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> x = np.ones((64, 64), np.float32)
    >>> with nf.profile() as p:
    ...     _ = nf.matmul(x, x)
    >>> p.records()["name"].tolist()
    ['matmul']
    """

    def __init__(self, capacity: int = 1_000_000) -> None:
        if capacity < 1:
            raise ValueError(f"profile: capacity must be at least 1, got {capacity}")
        self._capacity = capacity
        self._records: NDArray[Any] = np.zeros(0, _RECORD)
        self.dropped = 0

    def __enter__(self) -> "profile":
        _core.profile_start(self._capacity)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _core.profile_stop()
        rows, self.dropped = _core.profile_records()
        self._records = np.array(rows, _RECORD)

    def records(self) -> NDArray[Any]:
        """One row a call: name, shape, flops, bytes, start_ns, end_ns, thread."""
        return self._records

    def table(self) -> str:
        """Calls, time, GFLOP/s and GB/s by kernel, the longest first."""
        lines = [f"{'kernel':28}{'calls':>8}{'ms':>10}{'GFLOP/s':>10}{'GB/s':>8}"]
        groups = []
        for name in np.unique(self._records["name"]):
            rows = self._records[self._records["name"] == name]
            seconds = float((rows["end_ns"] - rows["start_ns"]).sum()) * 1e-9
            groups.append((seconds, name, len(rows), float(rows["flops"].sum()), float(rows["bytes"].sum())))
        for seconds, name, calls, flops, moved in sorted(groups, reverse=True):
            rate = 1e-9 / max(seconds, 1e-9)
            lines.append(f"{name:28}{calls:8}{seconds * 1e3:10.2f}{flops * rate:10.1f}{moved * rate:8.1f}")
        return "\n".join(lines)
