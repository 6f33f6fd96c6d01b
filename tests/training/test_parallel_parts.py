"""What ranks are made of, without any: launchers' variables, shares, buckets, threads, divided optimizers."""

from typing import Any

import numpy as np
import pytest
from numformer import optim
from numformer.data import Windows
from numformer.models import GPT, GPTConfig
from numformer.nn import Parameter
from numformer.train import Trainer
from numformer.train.parallel import Launch, Ranks, launched
from numformer.train.parallel.buckets import LINE, plan
from numformer.train.parallel.threads import fair
from processes import answer, python


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, Launch("Open MPI", 1, 4)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, Launch("MPICH", 3, 4)),
        ({"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2"}, Launch("MVAPICH", 0, 2)),
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "2"}, Launch("Flux", 0, 2)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, Launch("SLURM", 5, 8)),
        # A batch script runs once, whatever the number of tasks that it may start.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
        # mpirun inside such a job has the last word.
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "2",
                "OMPI_COMM_WORLD_RANK": "7",
                "OMPI_COMM_WORLD_SIZE": "8",
            },
            Launch("Open MPI", 7, 8),
        ),
    ],
)
def test_launchers_are_understood(environment: dict[str, str], expected: Launch | None):
    assert launched(environment) == expected


@pytest.mark.parametrize("variables", [("", "2"), ("two", "2"), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_variables_that_make_no_sense(variables: tuple[str, str]):
    with pytest.raises(ValueError, match="PMI_RANK and PMI_SIZE"):
        launched(dict(zip(("PMI_RANK", "PMI_SIZE"), variables, strict=True)))


def test_shares_are_fair_and_whole(rng: np.random.Generator):
    for count, size in [(0, 3), (2, 5), *rng.integers(1, 60, (20, 2))]:
        ranks = [Ranks() for _ in range(size)]
        for number, rank in enumerate(ranks):
            rank.rank, rank.size = number, int(size)
        shares = [rank.share(int(count)) for rank in ranks]
        assert [i for first, last in shares for i in range(first, last)] == [*range(count)]
        lengths = [last - first for first, last in shares]
        assert max(lengths) - min(lengths) <= 1 and max(lengths) == ranks[0].largest_share(int(count))


@pytest.mark.parametrize("whole", [False, True])
def test_buckets_hold_each_number_once(rng: np.random.Generator, whole: bool):
    for itemsize in (4, 8):
        ranks = int(rng.integers(1, 9))
        sizes = [int(n) for n in rng.integers(0, 5000, 40)]
        plans = plan(sizes, itemsize, ranks, whole=whole, limit=30_000)
        assert sorted(i for one in plans for i in one.members) == [*range(len(sizes))]
        line = LINE // itemsize
        for one in plans:
            assert len(one.cuts) == ranks + 1 and list(one.cuts) == sorted(one.cuts) and one.cuts[0] == 0
            assert all(start % line == 0 for start in (*one.starts, *one.cuts))
            ends = [start + sizes[i] for start, i in zip(one.starts, one.members, strict=True)]
            assert all(end <= start for end, start in zip(ends, (*one.starts[1:], one.cuts[-1]), strict=True))
            assert sum(sizes[i] for i in one.members) * itemsize <= 30_000 or len(one.members) == 1
            if whole:
                inner = set(one.cuts)
                assert not any(start < cut < end for cut in inner for start, end in zip(one.starts, ends, strict=True))
            else:
                assert len(set(np.diff(one.cuts))) == 1
        if not whole:  # buckets go in the order in which gradients are complete
            assert [i for one in plans for i in one.members] == [*range(len(sizes))]


def test_whole_parameters_are_spread_evenly():
    plans = plan([100, 700, 100, 300, 200], 4, 2, whole=True)
    assert np.diff(plans[0].cuts).tolist() == [704, 112 * 2 + 304 + 208] or sum(np.diff(plans[0].cuts)) == 1440


def test_threads_are_shared():
    every, low, high = frozenset(range(8)), frozenset(range(4)), frozenset(range(4, 8))
    assert fair(every, [every] * 2, 8) == 4
    assert fair(every, [every] * 3, 8) == 2
    assert fair(every, [every] * 16, 8) == 1
    assert fair(low, [low, high], 4) == 4  # bound to halves by the launcher
    assert fair(low, [low, low, high, high], 4) == 2
    assert fair(every, [every] * 2, 3) == 1  # a quota of 3 for all
    assert fair(frozenset(), [frozenset()] * 2, 6) == 3  # where the system does not tell


class Fake:
    """Those who share an optimizer's state, one after the other in one process."""

    def __init__(self, rank: int, size: int, whole: bool) -> None:
        self.rank, self.size, self.by_parameter = rank, size, whole
        self.owned: list[int] = []

    def piece(self, parameter: Parameter) -> slice:
        count = parameter.value.size
        if self.by_parameter:
            self.owned.append(count)
            return slice(0, count if len(self.owned) % self.size == self.rank else 0)
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def norm(self, mine: float) -> float:
        return mine

    def whole(self, mine: Any, shape: tuple[int, ...]) -> Any:
        return mine

    def spread(self) -> None:
        pass


KINDS = ["GradientDescent", "SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Lion", "Adafactor"]


@pytest.mark.parametrize("kind", KINDS)
def test_divided_optimizers_do_what_whole_ones_do(rng: np.random.Generator, kind: str):
    """Each rank updates its pieces, and only these; together they are what one optimizer makes of it all."""
    shapes, ranks = [(7, 5), (13,), (3, 4, 2)], 3
    start = [rng.standard_normal(shape) for shape in shapes]
    gradients = [[rng.standard_normal(shape) for shape in shapes] for _ in range(3)]

    def made() -> tuple[list[Parameter], optim.Optimizer]:
        parameters = [Parameter(value.copy(), f"p{i}") for i, value in enumerate(start)]
        return parameters, getattr(optim, kind)(optim.decay_groups(parameters, 0.1), lr=0.05)

    def step(parameters: list[Parameter], optimizer: optim.Optimizer, given: list[Any]) -> None:
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.pending = 1
            parameter.add(gradient)
        optimizer.step()

    whole, optimizer = made()
    several = [made() for _ in range(ranks)]
    for rank, (_, theirs) in enumerate(several):
        theirs.shard(Fake(rank, ranks, not theirs.elementwise))
    for given in gradients:
        step(whole, optimizer, given)
        for parameters, theirs in several:
            step(parameters, theirs, given)
    for index, parameter in enumerate(whole):
        changed = [parameters[index].value != start[index] for parameters, _ in several]
        assert (np.sum(changed, axis=0) == 1).all()  # each number by one rank
        together = sum(np.where(mine, p[index].value, 0.0) for mine, (p, _) in zip(changed, several, strict=True))
        np.testing.assert_allclose(together, parameter.value, rtol=1e-13)
    state, pieces = optimizer.state_dict(), [theirs.state_dict() for _, theirs in several]
    for name, array in state.items():
        if name not in ("steps", "updates"):
            together = np.concatenate([piece[name].reshape(-1) for piece in pieces])
            np.testing.assert_allclose(together, array.reshape(-1), rtol=1e-13)
    _, theirs = made()
    theirs.shard(Fake(1, ranks, not theirs.elementwise))
    theirs.load_state_dict(state)
    for name, array in pieces[1].items():
        np.testing.assert_allclose(theirs.state_dict()[name], array, rtol=1e-13)
    if theirs.slots:
        name = f"{theirs.slots[0]}.p0"
        with pytest.raises(ValueError, match=rf"{name} must have shape"):
            theirs.load_state_dict(state | {name: state[name].reshape(-1)[:3]})
    with pytest.raises(ValueError, match="divided already"):
        theirs.shard(Fake(1, ranks, False))


def trainer(**options: Any) -> Trainer:
    gpt = GPT(GPTConfig(vocab_size=5, context=4, layers=1, heads=1, width=4), rng=0)
    data = Windows(np.arange(50) % 5, 4)
    return Trainer(gpt, optim.SGD(gpt.parameters()), data, batch_size=2, steps=2, progress=False, **options)


def test_one_process_needs_no_mpi():
    code = """
    import sys
    sys.modules["mpi4py"] = None
    import numpy as np
    from numformer import models, optim, train
    from numformer.data import Windows
    gpt = models.GPT(models.GPTConfig(vocab_size=5, context=4, layers=1, heads=1, width=4), rng=0)
    data = Windows(np.arange(50) % 5, 4)
    trainer = train.Trainer(gpt, optim.SGD(gpt.parameters()), data, batch_size=2, steps=2, progress=False,
                            shard_optimizer=True)
    print(len(trainer.run()), trainer.ranks.size, [name for name in sys.modules if "mpi4py." in name])
    """
    assert answer(code) == "2 1 []"


def test_several_processes_without_mpi4py_are_told_what_to_install():
    code = """
    import sys
    sys.modules["mpi4py"] = None
    from numformer.train.parallel import join
    join()
    """
    done = python(code, PMI_RANK="1", PMI_SIZE="4")
    assert "MPICH started 4 processes (this is 1)" in done.stderr and "pip install 'numformer[mpi]'" in done.stderr


def test_processes_may_train_each_for_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "4")
    assert trainer(parallel=False).ranks.size == 1
    ranks = Ranks()
    assert trainer(parallel=ranks).ranks is ranks
    with pytest.raises(TypeError, match="Trainer: parallel"):
        trainer(parallel="mpi")
