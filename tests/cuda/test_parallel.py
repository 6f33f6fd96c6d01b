"""Several ranks with a GPU each: which one each takes, and that they train what one process trains."""

import csv
from pathlib import Path
from typing import Any

import cuda_host
import gpu
import mpi
import numpy as np
import pytest
from conftest import SEED
from numformer.train.parallel.devices import assign
from numformer.train.parallel.transport import reads_gpus

pytestmark = pytest.mark.skipif(not gpu.PACKAGE.is_dir(), reason="cuda/ is not here: this is an installed package")

# 5 samples in micro-batches of 1 are 3 rounds and 2; one sample leaves a rank without any, which sends all it has at
# the end of the step, and in the order of the other one.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "uneven, accumulated, sharded": {"batch": 5, "micro": 1, "shard": True, "ema": 0.9},
    "a rank without samples": {"batch": 1, "steps": 3},
    "mixed precision, sharded": {"batch": 7, "micro": 2, "dtype": "bfloat16", "shard": True},
}
WAYS = ("nccl", "mpi", "host")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """The weights of all ranks and the log, by case and by how the ranks exchange gradients."""
    seed = int(np.random.default_rng(SEED).integers(2**31))
    found = {}
    for way in ("alone", *WAYS):
        top = tmp_path_factory.mktemp(way)
        more = {"shard": False} if way == "alone" else {"gpus": 2, "by": way}
        folders = {top / name: {"seed": seed} | options | more for name, options in CASES.items()}
        for (name, folder), weights in zip(
            zip(CASES, folders, strict=True), mpi.train(1 if way == "alone" else 2, folders), strict=True
        ):
            with (folder / "log.csv").open() as file:
                losses = [float(row["loss"]) for row in csv.DictReader(file)]
            found[way, name] = weights, losses
    return found


@cuda_host.stand_in
@mpi.needs_mpi
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_the_result_is_that_of_one_process(runs: Any, way: str, name: str):
    (first, second), losses = runs[way, name]
    (alone,), expected = runs["alone", name]
    np.testing.assert_allclose(losses, expected, rtol=1e-2 if "mixed" in name else 1e-3)
    rounding = {"rtol": 1e-2, "atol": 2e-3} if "mixed" in name else {"rtol": 1e-3, "atol": 2e-4}
    assert first.keys() == second.keys() == alone.keys()
    for parameter, value in first.items():
        np.testing.assert_array_equal(second[parameter], value, err_msg=parameter)
        np.testing.assert_allclose(value, alone[parameter], **rounding, err_msg=parameter)


@cuda_host.stand_in
@mpi.needs_mpi
@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_the_same_whatever_moves_them(runs: Any, name: str):
    (nccl, _), losses = runs["nccl", name]
    for way in ("mpi", "host"):
        (other, _), theirs = runs[way, name]
        assert losses == theirs
        for parameter, value in nccl.items():
            np.testing.assert_array_equal(other[parameter], value, err_msg=parameter)


@mpi.needs_mpi
def test_a_rank_without_a_gpu(tmp_path: Path):
    done = mpi.job(2, {tmp_path / "one": {"gpus": 1, "by": "host"}})
    assert done.returncode != 0
    words = "ValueError: Trainer: device 'cuda' needs a GPU for each rank, and rank 1 on "
    assert done.stderr.count(words) == 1, done.stderr  # said once, by rank 0
    assert "has none: it sees 1, which other ranks have; 2 ranks run there" in done.stderr


@mpi.needs_mpi
def test_this_mpi_says_whether_it_reads_gpus():
    from mpi4py import MPI

    assert reads_gpus(MPI.__file__) in (True, False)
    assert not reads_gpus(None), "no MPI, no such function"


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (["ab", "ab"], [0, 1]),  # all ranks of a machine see all of its GPUs
        (["a", "b"], [0, 0]),  # a launcher has given each its own
        (["ab", "ab", "cd", "cd"], [0, 1, 0, 1]),
        (["ba", "ab"], [0, 0]),  # CUDA_VISIBLE_DEVICES in another order
        (["abc", "bc"], [0, 0]),
    ],
)
def test_which_gpu_a_rank_takes(seen: list[str], expected: list[int]):
    offers: Any = [{"machine": "node", "gpus": list(gpus), "reason": None} for gpus in seen]
    assert assign("Trainer", offers) == expected


def test_what_is_said_where_there_are_too_few():
    def offer(machine: str, gpus: str, reason: str | None = None) -> Any:
        return {"machine": machine, "gpus": list(gpus), "reason": reason}

    with pytest.raises(ValueError, match="rank 2 on one has none: it sees 2, which other ranks have; 3 ranks run"):
        assign("Trainer", [offer("one", "ab"), offer("one", "ab"), offer("one", "ab"), offer("two", "cd")])
    with pytest.raises(
        ValueError, match=r"^Trainer: device 'cuda'.* rank 1 on two has none: there is no NVIDIA driver"
    ):
        assign("Trainer", [offer("one", "ab"), offer("two", "", "there is no NVIDIA driver")])
