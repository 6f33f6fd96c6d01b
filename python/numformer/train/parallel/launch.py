"""Whether a launcher started this process as one of several: read from the variables that launchers set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

# Who sets them, rank, size. The first that is there counts: mpirun inside a job of SLURM knows better than SLURM.
# SLURM_NTASKS is not among them: it is set in batch scripts too, which run once.
_VARIABLES = (
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("MPICH", "PMI_RANK", "PMI_SIZE"),  # Hydra, Intel MPI, Cray PALS, srun --mpi=pmi2
    ("Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


@dataclass(frozen=True)
class Launch:
    """What a launcher says.

    Parameters
    ----------
    launcher : str
        Whose variables these are.
    rank : int
        Number of this process, from 0.
    size : int
        How many there are.
    """

    launcher: str
    rank: int
    size: int


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Return what the launcher of this process says, or None where there is none; no library is loaded.

    Parameters
    ----------
    environment : mapping, optional
        Instead of ``os.environ``.

    Raises
    ------
    ValueError
        Where a variable is no number, or the rank is not below the size.
    """
    env = os.environ if environment is None else environment
    for launcher, rank_name, size_name in _VARIABLES:
        if size_name not in env:
            continue
        try:
            rank, size = int(env.get(rank_name, "")), int(env[size_name])
        except ValueError:
            rank, size = 0, 0
        if not 0 <= rank < size:
            raise ValueError(
                f"{rank_name} and {size_name} must be a rank and a size above it, "
                f"got {env.get(rank_name)!r} and {env[size_name]!r}"
            )
        return Launch(launcher, rank, size)
    return None
