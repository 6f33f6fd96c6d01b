"""Running several ranks: where mpiexec is, and the job that they do (`python mpi.py CASES` is one of them)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).parent
# Both only matter to Open MPI: more ranks than processors, and the root of a container.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def launcher() -> str | None:
    """The mpiexec of this environment, else of the system."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.is_file() else shutil.which("mpiexec")


def missing() -> str:
    """Why there are no ranks here; empty where there are."""
    if find_spec("mpi4py") is None:
        return "mpi4py is not installed (extra mpi)"
    return "" if launcher() else "there is no mpiexec (extra mpi)"


needs_mpi = pytest.mark.skipif(bool(missing()), reason=missing() or "there is MPI")


def command(ranks: int, *arguments: object) -> list[str]:
    return [str(launcher()), "-n", str(ranks), sys.executable, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, **OPEN_MPI, "OMP_NUM_THREADS": "1"}


def run(ranks: int, *arguments: object, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a Python of so many ranks and wait for it."""
    return subprocess.run(
        command(ranks, *arguments), env=environment(), timeout=timeout, capture_output=True, text=True, check=False
    )


def job(ranks: int, cases: dict[Path, dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Train on so many ranks, one folder after another; 1 is this Python without a launcher."""
    arguments = __file__, json.dumps({str(folder): options for folder, options in cases.items()})
    if ranks > 1:
        return run(ranks, *arguments)
    argv = [sys.executable, *arguments]
    return subprocess.run(argv, env=environment(), timeout=120, capture_output=True, text=True, check=False)


def train(ranks: int, cases: dict[Path, dict[str, Any]]) -> list[list[dict[str, np.ndarray[Any, Any]]]]:
    """Train on so many ranks and return for each case the weights that each rank has in the end."""
    done = job(ranks, cases)
    assert done.returncode == 0, done.stderr
    return [[dict(np.load(folder / f"rank{rank}.npz")) for rank in range(ranks)] for folder in cases]


class Trouble:
    """Data of which one rank, or each, makes trouble at a step."""

    def __init__(self, data: Any, kind: str, step: int, rank: int | None) -> None:
        self.data, self.kind, self.step, self.rank = data, kind, step, rank

    def __len__(self) -> int:
        return len(self.data)

    def samples(self, start: int, stop: int) -> Any:
        return self.data.samples(start, stop)

    def draw(self, count: int, *, seed: int, step: int) -> Any:
        if step == self.step and self.rank is not None:
            if self.kind == "raise":
                raise LookupError("the disk with the data is gone")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}[self.kind])
        return self.data.draw(count, seed=seed, step=step)


def work(folder: Path, options: dict[str, Any]) -> None:
    if "gpus" not in options:
        return train_one(folder, options)
    import gpu
    import gpu_nccl
    import gpu_twin
    from numformer.train.parallel import buckets, transport

    with gpu.standing_in(gpu_twin.core, devices=options["gpus"]):
        if options["by"] == "nccl":
            sys.modules["cupy.cuda.nccl"] = gpu_nccl.library()
        if options["by"] == "mpi":
            transport.reads_gpus = lambda library: True
        buckets.plan.__kwdefaults__["limit"] = 4 << 10  # so that there are many, in all orders
        train_one(folder, options)
    assert (gpu_nccl.calls["bytes"] > 0) == (options["by"] == "nccl")
    return None


def train_one(folder: Path, options: dict[str, Any]) -> None:
    from numformer import optim
    from numformer.data import Windows
    from numformer.models import GPT, GPTConfig
    from numformer.ops.memory import on_host
    from numformer.train import Trainer

    config = GPTConfig(vocab_size=19, context=8, layers=2, heads=2, width=16, dropout=0.1)
    seed = options.get("seed", 0)
    gpt = GPT(config, rng=np.random.Generator(np.random.Philox(seed)))
    tokens = np.random.Generator(np.random.Philox(seed + 1)).integers(0, 19, 400)
    kind = getattr(optim, options.get("optimizer", "AdamW"))
    # Gradients that are nothing but rounding (those of the keys' bias) must not become steps of the size of lr.
    eps = {"eps": 1e-4} if kind is optim.AdamW else {}
    optimizer = kind(optim.decay_groups(gpt.parameters(), 0.1), lr=0.01, clip_norm=0.5, **eps)
    data: Any = Windows(tokens[:300], 8)
    trainer = Trainer(
        gpt,
        optimizer,
        data,
        batch_size=options.get("batch", 6),
        micro_batch=options.get("micro"),
        steps=options.get("steps", 6),
        validation=Windows(tokens[300:], 8),
        metrics={"size": lambda: float(sum(np.abs(on_host(p.value)).sum() for p in gpt.parameters()))},
        eval_every=options.get("eval_every", 0),
        log_every=1,
        out_dir=folder,
        seed=seed,
        ema=options.get("ema"),
        nan=options.get("nan", "stop"),
        progress=True,
        shard_optimizer=options.get("shard", False),
        dtype=options.get("dtype"),
        device="cuda" if "gpus" in options else None,
    )
    rank = trainer.ranks.rank
    if trouble := options.get("trouble"):
        at, who = options["at"], options["who"]
        trainer.data = Trouble(data, trouble, at, rank if who == rank else None)
    if options.get("broken") == rank:
        trainer.model = Broken(gpt)
    if options.get("resume"):
        trainer.resume()
    try:
        trainer.run()
    finally:
        (folder / f"step{rank}").write_text(str(trainer.step))
    gpt.to("cpu")
    np.savez(folder / f"rank{rank}.npz", **gpt.state_dict())
    held = sum(array.nbytes for arrays in optimizer._state.values() for array in arrays)
    (folder / f"rank{rank}.json").write_text(json.dumps({"history": trainer.history, "state": held}))


class Broken:
    """A model whose loss is NaN on this rank."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def loss(self, batch: Any, *, ctx: Any) -> tuple[float, Any]:
        value, backward = self.model.loss(batch, ctx=ctx)
        return (float("nan") if ctx.step == 2 else value), backward


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.modules["matplotlib"] = None  # type: ignore[assignment] - a picture of the loss takes its time
    for path, case in json.loads(sys.argv[1]).items():
        work(Path(path), case)
