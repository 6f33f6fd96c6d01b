"""What the Trainer asks of the processes that train with it; the base is a process that trains alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from numformer.nn import Parameter
from numformer.ops.memory import check_device
from numformer.optim import Optimizer


class Exchange:
    """Makes one gradient of those of all ranks. That of one rank is there already."""

    def begin(self) -> None:
        """Say that the last backward of the step comes: what is complete may go on its way."""

    def finish(self) -> None:
        """Return when the gradients are those of the whole batch; of a sharded optimizer, its own pieces of them."""


class Ranks:
    """A process among those that train one model together; this base is the only one.

    Methods that are said to be called by all must be called by all ranks, in the same order.

    Attributes
    ----------
    rank, size : int
        Number of this process, from 0, and how many there are.
    """

    rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """Return the first and the last + 1 of `count` samples that are this rank's; the first ranks have one more."""
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return start, start + each + (self.rank < more)

    def largest_share(self, count: int) -> int:
        """Return how many of `count` samples the rank with most has."""
        return -(-count // self.size)

    def sum(self, *values: float) -> list[float]:
        """Add up numbers of all ranks, in the order of ranks; called by all."""
        return list(values)

    def most(self, *values: int) -> list[int]:
        """Return the largest of all ranks' whole numbers, each on its own; called by all."""
        return list(values)

    def told(self, make: Callable[[], str]) -> str:
        """Return a text that rank 0 makes; called by all."""
        return make()

    def wait(self) -> None:
        """Return when all have come here; called by all."""

    def alike(self, owner: str, **settings: object) -> None:
        """Check that settings are the same on all ranks; called by all.

        Raises
        ------
        ValueError
            On all ranks, with the name of the first setting that differs.
        """

    def fail(self, message: str) -> bool:
        """Say a mistake: on rank 0 where all ranks make one, else it ends the job; return whether to speak of it."""
        return True

    @contextlib.contextmanager
    def together(self, after: Callable[[], str] = str) -> Iterator[None]:
        """End the whole job where an exception leaves this on some ranks only: the others would wait for ever.

        `after` gives what to say after the exception.
        """
        yield

    def take_device(self, owner: str, device: str) -> None:
        """Compute on a device from now on, of several GPUs on one that no other rank has; called by all.

        Raises
        ------
        ValueError, RuntimeError
            Where there is no such device, or not for each rank; on all ranks.
        """
        check_device(owner, device)

    def spread(self, parameters: Sequence[Parameter]) -> None:
        """Give all ranks the values of rank 0; called by all."""

    def exchange(self, parameters: Sequence[Parameter], optimizer: Optimizer, *, shard: bool) -> Exchange:
        """Return what adds up the gradients of `parameters`; called by all.

        With `shard` each rank keeps a part of the optimizer's state only (:meth:`Optimizer.shard`).
        """
        return Exchange()
