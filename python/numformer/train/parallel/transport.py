"""How flat memory gets from rank to rank: by MPI, and from GPU to GPU.

Memory of a GPU goes by NCCL where each rank has a GPU and CuPy has found NCCL, by MPI where that reads memory of GPUs
itself, else by MPI through the host.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from numformer.ops import dispatch
from numformer.ops.memory import assign, on_host

if TYPE_CHECKING:
    from numformer.train.parallel.world import World

Array = NDArray[Any]


class Transport(Protocol):
    """Moves pieces of flat memory while something else is computed."""

    def scatter(self, flat: Array, cuts: Sequence[int], rows: Array) -> Any:
        """Begin to send rank r the numbers from ``cuts[r]`` to ``cuts[r + 1]``; what rank r sends here is ``rows[r]``.

        Nothing is sent to oneself.
        """
        ...

    def gather(self, flat: Array, cuts: Sequence[int]) -> Any:
        """Begin to get the pieces of all others into flat memory that has one's own."""
        ...

    def done(self, transfer: Any, *, wait: bool) -> bool:
        """Whether a transfer is over, or, with `wait`, return when what comes next finds it so; once for each."""
        ...


def choose(world: World, array: Array) -> Transport:
    """Return what moves memory of the kind of an array; called by all ranks."""
    backend = dispatch.backend_of(array)
    if backend is None:
        return ByMPI(world)
    mine = {"gpu": backend.ranks.current(), "nccl": backend.ranks.has_nccl(), "mpi": reads_gpus(world.library)}
    every = [json.loads(text) for text in world.texts(json.dumps(mine))]
    # NCCL refuses two ranks on one device.
    if all(one["nccl"] for one in every) and len({one["gpu"] for one in every}) == world.size:
        key = world.told(backend.ranks.new_key)
        by_nccl: Transport = backend.ranks.Collectives(world.rank, world.size, key)
        return by_nccl
    return FromGPUs(world) if all(one["mpi"] for one in every) else ThroughHost(world)


def reads_gpus(library: str) -> bool:
    """Whether an MPI says that it reads and writes memory of GPUs: a function that Open MPI and MPICH add to it.

    Parameters
    ----------
    library : path
        Of mpi4py's module, which is linked with that of MPI.
    """
    asked = getattr(ctypes.CDLL(library), "MPIX_Query_cuda_support", None)
    return asked is not None and asked() == 1


class ByMPI:
    """MPI, on the memory itself.

    Collective calls of one communicator must come in one order on all ranks, also those that do not block: what goes
    to the ranks that add it up and what comes back from them have one each, as their order is that of arrival.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._there, self._back = world.new_communicator(), world.new_communicator()

    def scatter(self, flat: Array, cuts: Sequence[int], rows: Array) -> Any:
        """See :class:`Transport`."""
        world, size = self._world, flat.itemsize
        counts = [0 if r == world.rank else (cuts[r + 1] - cuts[r]) * size for r in range(world.size)]
        length = rows.shape[1] * size
        coming = [0 if r == world.rank else length for r in range(world.size)]
        starts = [r * length for r in range(world.size)]
        return self._there.Ialltoallv(
            [as_bytes(flat), counts, [cut * size for cut in cuts[:-1]], world.byte],
            [as_bytes(rows), coming, starts, world.byte],
        )

    def gather(self, flat: Array, cuts: Sequence[int]) -> Any:
        """See :class:`Transport`."""
        size = flat.itemsize
        counts = [(stop - start) * size for start, stop in pairwise(cuts)]
        starts = [cut * size for cut in cuts[:-1]]
        return self._back.Iallgatherv(self._world.in_place, [as_bytes(flat), counts, starts, self._world.byte])

    def done(self, transfer: Any, *, wait: bool) -> bool:
        """See :class:`Transport`."""
        return self._world.done(transfer, wait=wait)


class FromGPUs(ByMPI):
    """An MPI that reads memory of GPUs; it knows nothing of streams, so what it reads must be there."""

    def scatter(self, flat: Array, cuts: Sequence[int], rows: Array) -> Any:
        """See :class:`Transport`."""
        dispatch.wait_for(flat)
        return super().scatter(flat, cuts, rows)

    def gather(self, flat: Array, cuts: Sequence[int]) -> Any:
        """See :class:`Transport`."""
        dispatch.wait_for(flat)
        return super().gather(flat, cuts)


class _Copied(NamedTuple):
    request: Any
    here: Array
    there: Array


class ThroughHost(ByMPI):
    """MPI on copies in the memory of the host."""

    def scatter(self, flat: Array, cuts: Sequence[int], rows: Array) -> _Copied:
        """See :class:`Transport`."""
        here = np.empty(rows.shape, rows.dtype)
        return _Copied(super().scatter(on_host(flat), cuts, here), here, rows)

    def gather(self, flat: Array, cuts: Sequence[int]) -> _Copied:
        """See :class:`Transport`."""
        here, mine = np.empty(flat.shape, flat.dtype), slice(*cuts[self._world.rank : self._world.rank + 2])
        here[mine] = on_host(flat[mine])
        return _Copied(super().gather(here, cuts), here, flat)

    def done(self, transfer: _Copied, *, wait: bool) -> bool:
        """See :class:`Transport`."""
        over = super().done(transfer.request, wait=wait)
        if over:
            assign(transfer.there, transfer.here)
        return over


def as_bytes(array: Array) -> Array:
    """Return the bytes of a contiguous array: MPI knows no bfloat16, and moves what it does not know."""
    return array.reshape(-1).view(np.uint8)
