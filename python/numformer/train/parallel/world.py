"""Ranks that are processes of MPI. mpi4py is loaded here, when there are several of them or one asks for it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.nn import Parameter
from numformer.optim import Optimizer
from numformer.train.parallel import threads
from numformer.train.parallel.exchange import BucketExchange
from numformer.train.parallel.ranks import Exchange, Ranks

Array = NDArray[Any]

ALL_FAIL = 10.0
"""Seconds after which a rank that has failed takes it that the others have not."""

SPIN = 0.05
"""Seconds of waiting after which the processor is left to others: no transfer of a bucket takes as long."""


class World(Ranks):
    """The processes of ``MPI.COMM_WORLD``.

    Collective calls of one communicator must come in one order on all ranks, also those that do not block. So what
    belongs to different orders has communicators of its own: buckets on their way to the ranks that add them up; sums
    on their way back; all that is asked between two passes; and mistakes, which come when they come.
    """

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD.Dup()
        self._there, self._back = MPI.COMM_WORLD.Dup(), MPI.COMM_WORLD.Dup()
        self._mistakes = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        self._failed = False  # all ranks, together
        self._hook = sys.excepthook
        sys.excepthook = self._uncaught
        here = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        processors = [frozenset(json.loads(text)) for text in self._texts(here, json.dumps([*threads.processors()]))]
        here.Free()
        threads.set_fairly(processors)

    def sum(self, *values: float) -> list[float]:
        mine = np.array(values, np.float64)
        rows = np.empty((self.size, len(values)), np.float64)
        self.done(self._comm.Iallgather(mine, rows), wait=True)
        return [float(total) for total in np.add.reduce(rows, axis=0)]  # one row after the other

    def most(self, *values: int) -> list[int]:
        largest = np.array(values, np.int64)
        self.done(self._comm.Iallreduce(self._mpi.IN_PLACE, largest, self._mpi.MAX), wait=True)
        return [int(value) for value in largest]

    def told(self, make: Callable[[], str]) -> str:
        text = make().encode() if self.first else b""
        length = np.array([len(text)], np.int64)
        self.done(self._comm.Ibcast(length), wait=True)
        buffer = np.frombuffer(text, np.uint8).copy() if self.first else np.empty(length[0], np.uint8)
        self.done(self._comm.Ibcast(buffer), wait=True)
        return buffer.tobytes().decode()

    def wait(self) -> None:
        self.done(self._comm.Ibarrier(), wait=True)

    def alike(self, owner: str, **settings: object) -> None:
        mine = json.dumps({name: repr(value) for name, value in settings.items()})
        every = [json.loads(text) for text in self._texts(self._comm, mine)]
        for name in settings:
            for rank, theirs in enumerate(every):
                if theirs[name] != every[0][name]:
                    raise ValueError(
                        f"{owner}: {name} must be the same on all ranks, got {every[0][name]} on rank 0 and "
                        f"{theirs[name]} on rank {rank}"
                    )

    def spread(self, parameters: Sequence[Parameter]) -> None:
        for parameter in parameters:
            self.done(self._comm.Ibcast([_bytes(parameter.value), self._mpi.BYTE]), wait=True)
            parameter.changed()

    def exchange(self, parameters: Sequence[Parameter], optimizer: Optimizer, *, shard: bool) -> Exchange:
        return BucketExchange(self, parameters, optimizer, shard=shard)

    # What a bucket needs.

    def scatter(self, flat: Array, cuts: Sequence[int], rows: Array) -> Any:
        """Begin to send rank r the numbers from ``cuts[r]`` to ``cuts[r + 1]``; what rank r sends here is ``rows[r]``.

        Nothing is sent to oneself.
        """
        size = flat.itemsize
        counts = [0 if r == self.rank else (cuts[r + 1] - cuts[r]) * size for r in range(self.size)]
        length = rows.shape[1] * size
        coming = [0 if r == self.rank else length for r in range(self.size)]
        starts = [r * length for r in range(self.size)]
        return self._there.Ialltoallv(
            [_bytes(flat), counts, [cut * size for cut in cuts[:-1]], self._mpi.BYTE],
            [_bytes(rows), coming, starts, self._mpi.BYTE],
        )

    def gather(self, flat: Array, cuts: Sequence[int]) -> Any:
        """Begin to get the pieces of all others into flat memory that has one's own."""
        size = flat.itemsize
        counts = [(stop - start) * size for start, stop in pairwise(cuts)]
        starts = [cut * size for cut in cuts[:-1]]
        return self._back.Iallgatherv(self._mpi.IN_PLACE, [_bytes(flat), counts, starts, self._mpi.BYTE])

    def collect(self, mine: Array, shape: tuple[int, ...]) -> Array | None:
        """Return the array that has the pieces one after another on rank 0, None elsewhere."""
        counts = np.empty(self.size, np.int64)
        self.done(self._comm.Iallgather(np.array([mine.nbytes], np.int64), counts), wait=True)
        whole = np.empty(shape, mine.dtype) if self.first else None
        into = None if whole is None else [_bytes(whole), [int(count) for count in counts], self._mpi.BYTE]
        self.done(self._comm.Igatherv([_bytes(mine), self._mpi.BYTE], into), wait=True)
        return whole

    def done(self, request: Any, *, wait: bool) -> bool:
        """Whether a transfer is over, or, with `wait`, return when it is.

        Ranks may be more than processors, so who waits lets others run.
        """
        over = bool(request.Test())
        begin = time.monotonic()
        while wait and not over:
            if time.monotonic() - begin < SPIN:
                os.sched_yield()
            else:
                time.sleep(0.001)
            over = bool(request.Test())
        return over

    def _texts(self, comm: Any, text: str) -> list[str]:
        """Return the texts of all ranks of a communicator."""
        mine = np.frombuffer(text.encode(), np.uint8)
        lengths = np.empty(comm.size, np.int64)
        comm.Allgather(np.array([len(mine)], np.int64), lengths)
        every = np.empty(int(lengths.sum()), np.uint8)
        comm.Allgatherv(mine, [every, [int(n) for n in lengths]])
        return [part.tobytes().decode() for part in np.split(every, np.cumsum(lengths)[:-1])]

    # What becomes of mistakes.

    def fail(self, message: str) -> bool:
        if self._all_fail():
            return self.first
        self._end(message)
        return True

    @contextlib.contextmanager
    def together(self, after: Callable[[], str] = str) -> Iterator[None]:
        self._failed = False
        try:
            yield
        except BaseException as error:
            if not self._all_fail():
                lines = "".join(traceback.format_exception(error))
                self._end(f"{lines}{type(error).__name__}: {error}{after()}")
            raise

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Say an exception that nobody caught once where all ranks have it; else end the job."""
        if not self._all_fail():
            self._end("".join(traceback.format_exception(kind, error, trace)).rstrip())
        if self.first:
            self._hook(kind, error, trace)

    def _all_fail(self) -> bool:
        """Whether all ranks come here within a few seconds."""
        request, begin = None if self._failed else self._mistakes.Ibarrier(), time.monotonic()
        while request is not None and not request.Test():
            if time.monotonic() - begin > ALL_FAIL:
                return False
            time.sleep(0.01)
        self._failed = True  # what they still do on their way out takes its time
        return True

    def _end(self, message: str) -> None:
        """End all processes of the job."""
        out = sys.__stderr__ or sys.stderr
        print(f"{message}\nnumformer: rank {self.rank} of {self.size} failed, which ends the job", file=out, flush=True)
        self._comm.Abort(1)


def _bytes(array: Array) -> Array:
    """Return the bytes of a contiguous array: MPI knows no bfloat16, and moves what it does not know."""
    return array.reshape(-1).view(np.uint8)
