"""Which ranks this process is one of."""

from __future__ import annotations

from numformer.train.parallel.launch import Launch, launched
from numformer.train.parallel.ranks import Ranks

_joined: Ranks | None = None


def join(*, ask: bool = False) -> Ranks:
    """Return the ranks that this process is one of: those that a launcher started, else itself alone.

    MPI is started at the first call that needs it, and threads are then divided among the ranks of a machine, unless
    OMP_NUM_THREADS or ``set_num_threads`` has said how many.

    Parameters
    ----------
    ask : bool
        Ask MPI even where no launcher is known.

    Raises
    ------
    ImportError
        Where several processes were started, or MPI is asked for, and mpi4py or an MPI is not installed.
    ConnectionError
        Where a launcher started several processes of which MPI knows nothing: it is that of another MPI.
    """
    global _joined
    if _joined is None:
        launch = launched()
        if not ask and (launch is None or launch.size == 1):
            return Ranks()
        _joined = _world(launch)
    return _joined


def joined() -> Ranks | None:
    """Return what :func:`join` has found, None where it has not started MPI."""
    return _joined


def _world(launch: Launch | None) -> Ranks:
    try:
        from numformer.train.parallel.world import World

        world = World()
    except (ImportError, RuntimeError) as error:  # mpi4py, or the library that it looks for
        who = "" if launch is None else f"{launch.launcher} started {launch.size} processes (this is {launch.rank}): "
        raise ImportError(
            f"{who}training with several ranks needs mpi4py and an MPI: pip install 'numformer[mpi]' ({error})"
        ) from error
    if launch is not None and launch.size != world.size:
        raise ConnectionError(
            f"{launch.launcher} started {launch.size} processes, and the MPI that mpi4py has found sees {world.size}: "
            "the launcher is that of another MPI. Start with the mpiexec of that MPI, or let mpi4py use the other one"
        )
    return world
