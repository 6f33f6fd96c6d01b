"""One gradient from those of all ranks, made while the backward still runs.

Each rank has a piece of each bucket of gradients. It gets that piece of all others, adds them in the order of ranks and
gives the sum to all (or, with a sharded optimizer, updates its piece and gives the new values to all). Libraries are
only trusted to move bytes: the order of each sum is ours, so that a run has the same bits every time, with every MPI.
It is the traffic of a ring, 2 (ranks - 1) / ranks of the gradients each way, with fewer steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numformer import ops
from numformer.nn import Parameter
from numformer.ops.memory import empty, namespace
from numformer.optim import Optimizer
from numformer.train.parallel.buckets import Plan, plan
from numformer.train.parallel.ranks import Exchange
from numformer.train.parallel.transport import Transport

if TYPE_CHECKING:
    from numformer.train.parallel.world import World

Array = NDArray[Any]


class Bucket:
    """Gradients in flat memory, and where they stand.

    Parameters
    ----------
    world : World
        The ranks.
    transport : Transport
        What moves memory between them.
    parameters : list of Parameter
        Of the bucket; their gradients become views of its memory, and so do their values where they are to `spread`.
    plan : Plan
        Where each lies, and what is whose.
    """

    def __init__(
        self, world: World, transport: Transport, parameters: list[Parameter], plan: Plan, *, spread: bool
    ) -> None:
        self.world, self.transport, self.parameters, self.plan = world, transport, parameters, plan
        value = parameters[0].value
        self.grads: Array = namespace(value).zeros(plan.cuts[-1], value.dtype)
        self.values: Array | None = namespace(value).zeros(plan.cuts[-1], value.dtype) if spread else None
        for parameter, view in zip(parameters, self.views(self.grads), strict=True):
            parameter.grad = view
        if self.values is not None:
            for parameter, view in zip(parameters, self.views(self.values), strict=True):
                view[...] = parameter.value
                parameter.value = view
        self.waiting: set[int] = set()
        self.sent = False
        self._scratch: Array | None = None
        self._moving: Any = None

    def views(self, flat: Array) -> list[Array]:
        """Return the parameters' parts of flat memory."""
        return [
            flat[start : start + p.value.size].reshape(p.value.shape)
            for start, p in zip(self.plan.starts, self.parameters, strict=True)
        ]

    @property
    def mine(self) -> slice:
        """Where the piece of this rank is."""
        return slice(self.plan.cuts[self.world.rank], self.plan.cuts[self.world.rank + 1])

    def scatter(self) -> None:
        """Begin to send each rank its piece; parameters without a gradient here send zeros."""
        for parameter in self.parameters:
            if parameter.fresh:
                parameter.buffer()[...] = 0
        mine, ranks = self.mine, self.world.size
        length = mine.stop - mine.start
        self._scratch = empty((ranks, length), self.grads.dtype, like=self.grads)
        self._moving = self.transport.scatter(self.grads, self.plan.cuts, self._scratch)
        self.sent = True

    def arrived(self, *, wait: bool) -> bool:
        """Whether all have come that were sent here; then add them up, once."""
        if self._moving is None:
            return True
        if not self.transport.done(self._moving, wait=wait):
            return False
        assert self._scratch is not None
        rows, mine, rank = self._scratch, self.grads[self.mine], self.world.rank
        total = mine if rank == 0 else rows[0]
        for other in range(1, self.world.size):
            # total += row is a step of gradient descent, which has a kernel on all threads.
            ops.sgd_update([total], [mine if other == rank else rows[other]], None, lr=-1.0)
        if rank:
            mine[...] = total
        self._scratch = self._moving = None
        return True


class BucketExchange(Exchange):
    """Adds up gradients in buckets; the buckets start one after the other, as soon as they are complete.

    Parameters
    ----------
    world : World
        The ranks.
    parameters : sequence of Parameter
        In the order in which layers use them; their gradients are complete in the reverse order, about.
    optimizer : Optimizer
        What they are for.
    shard : bool
        Whether its state is divided.
    """

    def __init__(self, world: World, parameters: Sequence[Parameter], optimizer: Optimizer, *, shard: bool) -> None:
        self.world, self.sharded = world, shard
        trained = {id(p) for p in optimizer.parameters}
        self.parameters = [p for p in reversed(parameters) if id(p) in trained]
        self.transport = world.transport(self.parameters[0].value)
        self.buckets: list[Bucket] = []
        for dtype in dict.fromkeys(p.value.dtype for p in self.parameters):
            same = [p for p in self.parameters if p.value.dtype == dtype]
            whole = shard and not optimizer.elementwise
            plans = plan([p.value.size for p in same], dtype.itemsize, world.size, whole=whole)
            self.buckets += [
                Bucket(world, self.transport, [same[i] for i in one.members], one, spread=shard) for one in plans
            ]
        self._home = {id(p): bucket for bucket in self.buckets for p in bucket.parameters}
        self._begun = False
        self._sent = self._summed = 0  # so many buckets, the first ones, are on their way, and added up here
        self._gathering: list[Any] = []
        if shard:
            optimizer.shard(self)

    def begin(self) -> None:
        """Say that the last backward of the step comes: what is complete goes on its way."""
        for bucket in self.buckets:
            bucket.waiting, bucket.sent = {id(p) for p in bucket.parameters}, False
        for parameter in self.parameters:
            parameter.on_complete = self._complete
        self._begun, self._sent, self._summed = True, 0, 0

    def _complete(self, parameter: Parameter) -> None:
        bucket = self._home[id(parameter)]
        if bucket.sent:
            raise RuntimeError(
                f"the gradient of {parameter.name or 'a parameter'} was complete, was sent to the other ranks, and "
                "grew again: a model must use a parameter in one forward pass before the backward of that begins"
            )
        bucket.waiting.discard(id(parameter))
        while self._sent < len(self.buckets) and not self.buckets[self._sent].waiting:
            self._send()
        self._go_on(wait=False)

    def _send(self) -> None:
        self.buckets[self._sent].scatter()
        self._sent += 1
        self._go_on(wait=False)

    def _go_on(self, *, wait: bool) -> None:
        """Do what can be done with what has come; libraries move bytes when they are asked about them."""
        while self._summed < self._sent and self.buckets[self._summed].arrived(wait=wait):
            bucket = self.buckets[self._summed]
            self._summed += 1
            if not self.sharded:
                self._gathering.append(self.transport.gather(bucket.grads, bucket.plan.cuts))
        while self._gathering and self.transport.done(self._gathering[0], wait=wait):
            self._gathering.pop(0)

    def finish(self) -> None:
        """Return when the gradients are those of the whole batch; of a sharded optimizer, its own pieces of them."""
        if not self._begun:
            self.begin()
        self._begun = False
        for parameter in self.parameters:
            parameter.on_complete = None
        while self._sent < len(self.buckets):
            self._send()
        given = self.world.most(*(not p.fresh for p in self.parameters))
        self._go_on(wait=True)
        for parameter, one in zip(self.parameters, given, strict=True):
            parameter.fresh = not one

    def piece(self, parameter: Parameter) -> slice:
        """Return this rank's part of a parameter."""
        bucket = self._home[id(parameter)]
        start = next(s for s, p in zip(bucket.plan.starts, bucket.parameters, strict=True) if p is parameter)
        first, last = (min(max(cut - start, 0), parameter.value.size) for cut in (bucket.mine.start, bucket.mine.stop))
        return slice(first, last)

    def norm(self, mine: float) -> float:
        """Return the norm of all pieces."""
        return float(np.sqrt(self.world.sum(mine * mine)[0]))

    def whole(self, mine: Array, shape: tuple[int, ...]) -> Array | None:
        """Return an array from its pieces on rank 0, None elsewhere."""
        return self.world.collect(mine, shape)

    def spread(self) -> None:
        """Give all ranks the new values of the piece of each."""
        moving = [self.transport.gather(b.values, b.plan.cuts) for b in self.buckets if b.values is not None]
        for request in moving:
            self.transport.done(request, wait=True)
        for parameter in self.parameters:
            parameter.changed()
