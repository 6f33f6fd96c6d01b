"""The context manager that records."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from numformer import _core
from numformer.profiling import ranges

if TYPE_CHECKING:
    from numformer.profiling.ceilings import Ceilings
    from numformer.profiling.counters import Counters
    from numformer.profiling.recording import Recording


# Recorder and ranges begin and end together: between the two no other thread may begin or end a profile.
_switch = threading.Lock()


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"profile: {name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"profile: {name} must be at least {least}, got {value}")
    return value


class profile:
    """Context manager that records every kernel called inside it, on any thread, and the layers that called them.

    Parameters
    ----------
    capacity : int
        The newest so many calls (and ranges, and looks at the memory) are kept one by one, about 150 bytes each. Older
        ones are counted in `dropped`; tables and reports have the sums of all.
    skip, warmup, record : int, optional
        A schedule in steps, counted by :meth:`step`: nothing is recorded for `skip` steps, then `warmup` steps are and
        are forgotten, then `record` steps are kept and recording stops; None keeps on until the end.
    counters : bool
        Whether to count cycles, instructions and cache misses of the whole process too, where the system permits it;
        tables say what was counted, or why it was not.

    Raises
    ------
    TypeError, ValueError
        For a number of the wrong kind or too small.
    RuntimeError
        On entering it while another profile is on.

    Notes
    -----
    Ranges and layers that are open when recording begins are not seen, so begin it outside of them.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> x = np.ones((64, 64), np.float32)
    >>> with nf.profile() as p:
    ...     _ = nf.matmul(x, x)
    >>> p.records()["name"].tolist()
    ['matmul']
    """

    range = ranges.range

    def __init__(
        self,
        capacity: int = 250_000,
        *,
        skip: int = 0,
        warmup: int = 0,
        record: int | None = None,
        counters: bool = False,
    ) -> None:
        self._capacity = _count("capacity", capacity, 1)
        self._skip, self._warmup = _count("skip", skip, 0), _count("warmup", warmup, 0)
        self._record = None if record is None else _count("record", record, 1)
        self._recording: Recording | None = None
        self._wants_counters = counters
        self.counters: Counters | None = None
        self._elsewhere: list[str] = []  # what was measured on another device
        self._entered = self._on = False
        self.steps = 0

    def __enter__(self) -> profile:
        if self._entered:
            raise RuntimeError("profile: this profile is on already")
        self._entered, self.steps, self._recording = True, 0, None
        if self._skip == 0:
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self._stop()

    def _start(self) -> None:
        with _switch:
            if not _core.profile_start(self._capacity):
                self._entered = False
                raise RuntimeError("profile: another profile is on; end it first, one can be on at a time")
            self._on = True
            ranges.begin()
        self._count_from_now()

    def _stop(self) -> None:
        with _switch:
            if self._on:
                self._on = False
                _core.profile_stop()
                self._elsewhere = ranges.end()
                if self.counters is not None:
                    self.counters.stop()
                self._recording = self._take()

    def _count_from_now(self) -> None:
        if self._wants_counters:
            from numformer.profiling.counters import Counters

            if self.counters is not None:
                self.counters.stop()
            self.counters = Counters()
            self.counters.start()

    def _take(self) -> Recording:
        from numformer.profiling.recording import Recording

        return Recording(_core.profile_snapshot(), max(self.steps - self._skip - self._warmup, 0))

    def step(self) -> None:
        """Say that a step is over: the schedule goes on.

        Raises
        ------
        RuntimeError
            Outside the ``with`` block.
        """
        if not self._entered:
            raise RuntimeError("profile: step() belongs inside the with block")
        self.steps += 1
        first = self._skip + self._warmup
        if self.steps == self._skip:
            self._start()
        elif self._on and self.steps == first:
            _core.profile_clear()
            ranges.clear()
            self._count_from_now()
        if self._on and self._record is not None and self.steps == first + self._record:
            self._stop()

    @property
    def recording(self) -> Recording:
        """What was recorded, up to now where it goes on; RuntimeError where nothing was."""
        if self._on:
            return self._take()
        if self._recording is None:
            raise RuntimeError("profile: nothing was recorded; was it entered, and did the schedule reach its steps?")
        return self._recording

    @property
    def dropped(self) -> int:
        """How many calls are in the sums only."""
        return self.recording.dropped

    def records(self) -> NDArray[Any]:
        """One row a call, in the order in which they ended: a structured array.

        Fields: name, layer (path of ranges, with "/"), dtype, shape (6 numbers), flops, bytes, start_ns and end_ns (of
        the monotonic clock), thread (of the system, as in ``threading.get_native_id``), threads and forks (how many
        worked on it, how often they were called), parallel_ns (in parallel regions), busy_ns (all threads' time in
        them), slowest_ns (the slowest thread's), pool_bytes (in use when it ended).
        """
        return self.recording.records

    def ranges(self) -> NDArray[Any]:
        """One row for each time that a layer or a range was left: layer, start_ns, end_ns, thread."""
        return self.recording.ranges

    def to_pandas(self) -> Any:
        """Return :meth:`records` as a pandas DataFrame, with the shape as text; ImportError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("profile: to_pandas needs pandas: pip install pandas") from error
        records = self.records()
        columns = {name: list(records[name]) for name in records.dtype.names or () if name != "shape"}
        columns["shape"] = [self.recording.shape_text(shape) for shape in records["shape"]]
        return pandas.DataFrame(columns)

    def table(self, by: str = "kernel", *, ceilings: Ceilings | None = None) -> str:
        """Return calls, time, rates and the share of this machine's ceiling, the longest first.

        What ran on a GPU has a table of its own below, once the profile is over, with times by events of CUDA.

        Parameters
        ----------
        by : {"kernel", "shape", "layer"}
            What makes a line.
        ceilings : Ceilings, optional
            Those that ``numformer bench --ceilings`` measured for this processor and number of threads by default.
        """
        from numformer.profiling.summary import table

        text = table(self.recording, by, ceilings or self._ceilings())
        counted = [] if self.counters is None else self.counters.lines()
        return "\n".join([text, *counted, *self._elsewhere])

    def save(self, path: str | Path) -> None:
        """Write a trace in Chrome's format, which https://ui.perfetto.dev and chrome://tracing open."""
        from numformer.profiling.chrome_trace import save

        save(self.recording, Path(path))

    def report(self, path: str | Path, *, title: str = "numformer profile", ceilings: Ceilings | None = None) -> None:
        """Write one HTML page that needs no network: roofline, time by kernel and layer, flame view, memory.

        Parameters
        ----------
        path : path
            Of the page.
        title : str
            Its heading.
        ceilings : Ceilings, optional
            As in :meth:`table`.
        """
        from numformer.profiling.report import save

        save(self.recording, Path(path), title, ceilings or self._ceilings())

    def _ceilings(self) -> Ceilings | None:
        from numformer.profiling.ceilings import load

        return load(self.recording.threads)
