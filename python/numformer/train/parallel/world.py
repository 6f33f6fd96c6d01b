"""Ranks that are processes of MPI. mpi4py is loaded here, when there are several of them or one asks for it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numformer.nn import Parameter
from numformer.ops import dispatch
from numformer.ops.memory import assign, device_of, on_host
from numformer.optim import Optimizer
from numformer.train.parallel import devices, threads, transport
from numformer.train.parallel.exchange import BucketExchange
from numformer.train.parallel.ranks import Exchange, Ranks
from numformer.train.parallel.transport import Transport, as_bytes

Array = NDArray[Any]

ALL_FAIL = 10.0
"""Seconds after which a rank that has failed takes it that the others have not."""

SPIN = 0.05
"""Seconds of waiting after which the processor is left to others: no transfer of a bucket takes as long."""


class World(Ranks):
    """The processes of ``MPI.COMM_WORLD``.

    Collective calls of one communicator must come in one order on all ranks, also those that do not block. So what
    belongs to different orders has communicators of its own: what transports move; all that is asked between two
    passes; and mistakes, which come when they come.
    """

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD.Dup()
        self._transports: dict[str, Transport] = {}
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
        every = [json.loads(text) for text in self.texts(mine)]
        for name in settings:
            for rank, theirs in enumerate(every):
                if theirs[name] != every[0][name]:
                    raise ValueError(
                        f"{owner}: {name} must be the same on all ranks, got {every[0][name]} on rank 0 and "
                        f"{theirs[name]} on rank {rank}"
                    )

    def spread(self, parameters: Sequence[Parameter]) -> None:
        for parameter in parameters:
            value = on_host(parameter.value)
            self.done(self._comm.Ibcast([as_bytes(value), self._mpi.BYTE]), wait=True)
            if value is not parameter.value:
                assign(parameter.value, value)
            parameter.changed()

    def exchange(self, parameters: Sequence[Parameter], optimizer: Optimizer, *, shard: bool) -> Exchange:
        return BucketExchange(self, parameters, optimizer, shard=shard)

    def transport(self, array: Array) -> Transport:
        """Return what moves memory of the kind of an array; called by all."""
        device = device_of(array)
        if device not in self._transports:
            self._transports[device] = transport.choose(self, array)
        return self._transports[device]

    def take_device(self, owner: str, device: str) -> None:
        if device != "cuda":
            return super().take_device(owner, device)
        status = dispatch.cuda_status()
        backend = dispatch.cuda() if status["usable"] else None
        offer: devices.Offer = {
            "machine": self._mpi.Get_processor_name(),
            "gpus": [] if backend is None else backend.ranks.devices(),
            "reason": status["reason"],
        }
        numbers = devices.assign(owner, [json.loads(text) for text in self.texts(json.dumps(offer))])
        assert backend is not None  # else assign would have said why
        backend.ranks.use(numbers[self.rank])
        return None

    # What transports need.

    @property
    def library(self) -> str:
        """Where the library is that MPI is asked through."""
        return str(self._mpi.__file__)

    @property
    def byte(self) -> Any:
        """MPI's type of bytes."""
        return self._mpi.BYTE

    @property
    def in_place(self) -> Any:
        """What says to MPI that one's own piece is there already."""
        return self._mpi.IN_PLACE

    def new_communicator(self) -> Any:
        """Return a communicator of all ranks for collective calls in an order of their own; called by all."""
        return self._mpi.COMM_WORLD.Dup()

    def texts(self, text: str) -> list[str]:
        """Return the texts of all ranks; called by all."""
        return self._texts(self._comm, text)

    def collect(self, mine: Array, shape: tuple[int, ...]) -> Array | None:
        """Return the array that has the pieces one after another on rank 0, None elsewhere."""
        mine, counts = on_host(mine), np.empty(self.size, np.int64)
        self.done(self._comm.Iallgather(np.array([mine.nbytes], np.int64), counts), wait=True)
        whole = np.empty(shape, mine.dtype) if self.first else None
        into = None if whole is None else [as_bytes(whole), [int(count) for count in counts], self._mpi.BYTE]
        self.done(self._comm.Igatherv([as_bytes(mine), self._mpi.BYTE], into), wait=True)
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
