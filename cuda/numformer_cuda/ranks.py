"""Several processes with a GPU each: which devices there are, and bytes from one to another by NCCL.

`numformer.train.parallel` asks for it. NCCL only moves bytes: sums are made by our kernels, in the order of ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

from numformer_cuda import driver
from numformer_cuda.arrays import Array, namespace
from numformer_cuda.errors import named

_cuda: Any = namespace.cuda


def devices() -> list[str]:
    """Return what identifies each GPU that this process sees, in the order of their numbers, to all processes alike."""
    return driver.identities()


def use(number: int) -> None:
    """Compute on this device from now on, in this thread."""
    _cuda.Device(number).use()


def current() -> str:
    """Return what identifies the device in use."""
    return devices()[int(_cuda.Device().id)]


def _nccl() -> Any:
    """Return CuPy's module for NCCL, which it does not import by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is none: then there are other ways
        return import_module("cupy.cuda.nccl")


def has_nccl() -> bool:
    """Whether CuPy has found NCCL."""
    return bool(_nccl().available)


def new_key() -> str:
    """Return what those who are to exchange bytes have in common; one of them makes it."""
    return str(_nccl().get_unique_id().hex())


class _Transfer(NamedTuple):
    event: Any
    scatter: int | None
    """Its number among the scatters; None for a gather."""


class Collectives:
    """Brings flat memory from rank to rank, on a stream of its own, while other kernels run on the current one.

    All ranks must begin the same transfers in the same order, whatever arrives when. So a scatter counts as done when
    the next one has begun, and not when it happens to be over; who goes on has the current stream wait for it, and
    nothing waits on the host.

    Parameters
    ----------
    rank, size : int
        Number of this process, and how many there are.
    key : str
        See :func:`new_key`.
    """

    def __init__(self, rank: int, size: int, key: str) -> None:
        self._nccl = _nccl()
        self.rank, self.size = rank, size
        with named():
            self._comm = self._nccl.NcclCommunicator(size, bytes.fromhex(key), rank)
            self._stream = _cuda.Stream(non_blocking=True)
        self._scatters = 0
        # Who first sends to another waits for it on the host. Here all do; later one may wait for something else.
        cuts = list(range(size + 1))
        self.done(self.gather(namespace.zeros(size, "uint8"), cuts), wait=True)

    def scatter(self, flat: Array, cuts: Sequence[int], rows: Array) -> _Transfer:
        """Begin to send rank r the numbers from ``cuts[r]`` to ``cuts[r + 1]``; what rank r sends here is ``rows[r]``.

        Nothing is sent to oneself.
        """
        sent = [flat[start:stop] for start, stop in pairwise(cuts)]
        self._scatters += 1
        return _Transfer(self._begin(sent, list(rows)), self._scatters)

    def gather(self, flat: Array, cuts: Sequence[int]) -> _Transfer:
        """Begin to get the pieces of all others into flat memory that has one's own."""
        pieces = [flat[start:stop] for start, stop in pairwise(cuts)]
        return _Transfer(self._begin([pieces[self.rank]] * self.size, pieces), None)

    def _begin(self, sent: list[Array], received: list[Array]) -> Any:
        """Send and receive, behind what the current stream has to do; return the event of its end."""
        nccl, stream = self._nccl, int(self._stream.ptr)
        with named():
            self._stream.wait_event(_recorded(_cuda.get_current_stream()))
            nccl.groupStart()
            for other in range(self.size):
                for array, move in ((sent[other], self._comm.send), (received[other], self._comm.recv)):
                    if other != self.rank and array.size:
                        move(int(array.data.ptr), array.nbytes, nccl.NCCL_UINT8, other, stream)
            nccl.groupEnd()
            return _recorded(self._stream)

    def done(self, transfer: _Transfer, *, wait: bool) -> bool:
        """Whether a transfer counts as done, with `wait` always; what is launched then comes after it."""
        over = wait or (transfer.scatter is not None and transfer.scatter < self._scatters)
        if over:
            _cuda.get_current_stream().wait_event(transfer.event)
        return over


def _recorded(stream: Any) -> Any:
    event = _cuda.Event(disable_timing=True)
    event.record(stream)
    return event
