"""Several ranks train what one process trains, and lose nothing when one of them is lost."""

import csv
import json
from pathlib import Path
from typing import Any

import mpi
import numpy as np
import pytest
from conftest import SEED
from numformer import files
from processes import python

pytestmark = mpi.needs_mpi

# Weights of two runs whose gradients are added up in another order, in float32, after up to nine steps.
CLOSE = {"rtol": 1e-3, "atol": 2e-4}


def equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], **CLOSE, err_msg=name)


def log(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(file)]


def checkpoint(folder: Path) -> dict[str, Any]:
    return files.read_tensors(folder / "checkpoint.safetensors", sealed=True)[0]


@pytest.fixture
def seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


# 6 samples among 4 ranks are 2, 2, 1, 1; 3 leave one rank with none; micro-batches of 1 are 2 rounds and 1.
CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "plain": {},
        "uneven, accumulated, sharded": {"batch": 5, "micro": 1, "shard": True, "ema": 0.9},
        "all of the data at each step": {"batch": None, "micro": 7, "steps": 3},
    },
    4: {
        "accumulated": {"batch": 6, "micro": 1},
        "fewer samples than ranks, sharded": {"batch": 3, "shard": True},
        "whole matrices": {"optimizer": "Adafactor", "shard": True},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[int, str], list[dict[str, Any]]]]:
    """All cases, on one process and on several ranks."""
    top, seed = tmp_path_factory.mktemp("runs"), int(np.random.default_rng(SEED).integers(2**31))
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for ranks, cases in CASES.items():
        folders = {top / f"{ranks} {name}": {"seed": seed} | options for name, options in cases.items()}
        found |= {(ranks, n): w for n, w in zip(cases, mpi.train(ranks, folders), strict=True)}
    alone = {
        top / f"alone {name}": {"seed": seed} | options | {"shard": False}
        for cases in CASES.values()
        for name, options in cases.items()
    }
    names = [name for cases in CASES.values() for name in cases]
    found |= {(1, name): weights for name, weights in zip(names, mpi.train(1, alone), strict=True)}
    return top, found


@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks, cases in CASES.items() for name in cases])
def test_the_result_is_that_of_one_process(runs: Any, ranks: int, name: str):
    top, found = runs
    several, (alone,) = found[ranks, name], found[1, name]
    for weights in several[1:]:
        equal(weights, several[0])
    close(several[0], alone)
    rows, others = log(top / f"{ranks} {name}"), log(top / f"alone {name}")
    assert len(rows) == len(others) == CASES[ranks][name].get("steps", 6)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys() and row["tokens"] == other["tokens"]
        np.testing.assert_allclose([*row.values()], [*other.values()], rtol=1e-3)
    whole, theirs = checkpoint(top / f"{ranks} {name}"), checkpoint(top / f"alone {name}")
    assert {k: v.shape for k, v in whole.items()} == {k: v.shape for k, v in theirs.items()}


def test_two_runs_have_the_same_bits_and_each_rank_a_part_of_the_state(tmp_path: Path, seed: int):
    options = {"seed": seed, "batch": 7, "micro": 2}
    kinds = ({"shard": False}, {"shard": True})
    first, again = (
        mpi.train(2, {tmp_path / f"{name}{number}": options | kind for number, kind in enumerate(kinds)})
        for name in ("first", "again")
    )
    for number in (0, 1):
        equal(first[number][0], again[number][0])
        equal(checkpoint(tmp_path / f"first{number}"), checkpoint(tmp_path / f"again{number}"))
        assert log(tmp_path / f"first{number}") == log(tmp_path / f"again{number}")
    close(first[0][0], first[1][0])
    tensors = checkpoint(tmp_path / "first1")
    whole = sum(v.nbytes for k, v in tensors.items() if k.startswith(("optimizer/m.", "optimizer/v.")))
    held = [json.loads((tmp_path / f"first1/rank{rank}.json").read_text())["state"] for rank in (0, 1)]
    assert sum(held) == whole and max(held) < 0.52 * whole


def test_bfloat16_with_a_sharded_optimizer(tmp_path: Path, seed: int):
    """Matrices that are rounded once a step are those that all ranks gathered, not the piece that this rank updated."""
    options = {"seed": seed, "batch": 7, "micro": 2, "dtype": "bfloat16"}
    kinds = {"whole": {}, "sharded": {"shard": True}, "float32": {"dtype": None}}
    runs = mpi.train(2, {tmp_path / name: options | kind for name, kind in kinds.items()})
    (whole, other), (sharded, second), (exact, _) = runs
    equal(whole, other)
    equal(sharded, second)
    close(sharded, whole)
    ((alone,),) = mpi.train(1, {tmp_path / "alone": options})
    close(sharded, alone)
    assert all(value.dtype == np.float32 for value in sharded.values()), "the weights themselves are not rounded"
    apart = [max(np.abs(run[name] - whole[name]).max() for name in whole) for run in (exact, sharded)]
    assert apart[0] > 10 * apart[1], "it was computed in bfloat16"


def test_a_run_goes_on_with_other_ranks(tmp_path: Path, seed: int):
    """2 ranks, then 4, then 1, each with what the ones before it left."""
    folder, options = tmp_path / "parts", {"seed": seed}
    mpi.train(2, {folder: options | {"steps": 3, "shard": True}})
    mpi.train(4, {folder: options | {"steps": 6, "shard": True, "resume": True}})
    (last,), (alone,) = mpi.train(
        1, {folder: options | {"steps": 9, "resume": True}, tmp_path / "whole": options | {"steps": 9}}
    )
    close(last, alone)
    assert [row["step"] for row in log(folder)] == [*range(1, 10)]


def test_a_rank_that_is_killed_ends_the_job(tmp_path: Path, seed: int):
    """The last checkpoint is whole, and what follows it has the bits of a run that was left alone."""
    options = {"seed": seed, "shard": True, "eval_every": 2}
    done = mpi.job(2, {tmp_path / "killed": options | {"trouble": "kill", "at": 5, "who": 1}})
    assert done.returncode != 0 and done.stderr + done.stdout
    assert not list(tmp_path.glob("killed/rank*"))
    resumed, alone = mpi.train(2, {tmp_path / "killed": options | {"resume": True}, tmp_path / "alone": options})
    equal(resumed[0], alone[0])
    equal(checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "alone"))
    assert log(tmp_path / "killed") == log(tmp_path / "alone")


def test_an_exception_on_one_rank_ends_the_job(tmp_path: Path, seed: int):
    done = mpi.job(2, {tmp_path: {"seed": seed, "eval_every": 2, "trouble": "raise", "at": 3, "who": 1}})
    assert done.returncode != 0
    for part in ("LookupError: the disk with the data is gone", "checkpoint.safetensors", "rank 1 of 2 failed"):
        assert part in done.stderr, done.stderr
    assert not list(tmp_path.glob("rank*")) and checkpoint(tmp_path)


def test_what_all_ranks_find_is_said_once(tmp_path: Path, seed: int):
    """A loss that is NaN on one rank is NaN on all: none of them waits for another."""
    options = {"seed": seed, "broken": 2}
    done = mpi.job(4, {tmp_path / "skip": options | {"nan": "skip"}, tmp_path / "stop": options | {"eval_every": 1}})
    assert done.returncode != 0
    assert done.stderr.count("FloatingPointError: Trainer: the loss is nan at step 3") == 1, done.stderr
    assert "failed, which ends the job" not in done.stderr
    assert {path.read_text() for path in tmp_path.glob("stop/step*")} == {"2"}
    assert len(log(tmp_path / "skip")) == 6


def test_a_signal_to_one_rank_saves_on_all(tmp_path: Path, seed: int):
    options = {"seed": seed, "shard": True}
    done = mpi.job(2, {tmp_path / "asked": options | {"trouble": "terminate", "at": 3, "who": 1}})
    assert done.returncode != 0 and "SIGTERM" in done.stderr, done.stderr
    assert "failed, which ends the job" not in done.stderr
    # The signal came in the fourth step, after which all ranks saved.
    assert [(tmp_path / f"asked/step{rank}").read_text() for rank in (0, 1)] == ["4", "4"]
    resumed, alone = mpi.train(2, {tmp_path / "asked": options | {"resume": True}, tmp_path / "alone": options})
    equal(resumed[0], alone[0])


def test_the_launcher_of_another_mpi_is_found_out():
    done = python("from numformer.train.parallel import join; join()", MV2_COMM_WORLD_RANK="0", MV2_COMM_WORLD_SIZE="3")
    assert "ConnectionError: MVAPICH started 3 processes, and the MPI that mpi4py has found sees 1" in done.stderr


def test_settings_must_be_the_same(tmp_path: Path):
    code = """
import sys, numpy as np
from numformer import models, optim, train
from numformer.data import Windows
from numformer.train.parallel import join
gpt = models.GPT(models.GPTConfig(vocab_size=5, context=4, layers=1, heads=1, width=4), rng=0)
train.Trainer(gpt, optim.SGD(gpt.parameters()), Windows(np.arange(50) % 5, 4), batch_size=2, steps=3 + join().rank)
"""
    done = mpi.run(2, "-c", code)
    assert done.returncode != 0
    assert "steps must be the same on all ranks, got 3 on rank 0 and 4 on rank 1" in done.stderr
    assert done.stderr.count("Traceback") == 1, done.stderr


def test_the_command(tmp_path: Path):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    options = "--steps 4 --layers 1 --heads 2 --width 8 --context 16 --batch 3 --quiet --shard-optimizer --out"
    done = mpi.run(2, "-m", "numformer", "train", text, *options.split(), out)
    assert done.returncode == 0, done.stderr
    for part in ("parameters, ", "trained for", f"wrote {out / 'log.csv'}"):
        assert done.stdout.count(part) == 1, done.stdout
    assert (out / "checkpoint.safetensors").is_file() and (out / "model.safetensors").is_file()
    done = mpi.run(2, "-m", "numformer", "train", tmp_path / "absent.txt")
    assert done.returncode == 2
    assert done.stderr.count("absent.txt: No such file or directory") == 1, done.stderr
