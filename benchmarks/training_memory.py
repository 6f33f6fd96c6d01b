"""Peak memory of training GPT-2 124M (AdamW, clipping) beside PyTorch eager, in 16 bits beside its autocast, each in a
process of its own.

The peak is that of the whole process, as the system sees it: interpreter, libraries, weights, gradients, optimizer,
activations. What a process held with its library imported, before there was a model, is reported beside.
"""

import json
import pathlib
import subprocess
import sys

# GPT-2 124M: positions, batch.
CASES = [(512, 1), (512, 4), (64, 4)]
STEPS = 4
AIM = 0.8
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-2}
SIDES = ("numformer", "torch")


def run(threads: list[int], folder: pathlib.Path, dtype: str = "float32") -> pathlib.Path:
    """Measure each case on the largest number of threads."""
    from benchmarks import common

    count = max(threads)
    rows = []
    subject = "training_memory" if dtype == "float32" else f"training_memory_{dtype}"
    print(f"\n{subject}: GPT-2 124M, {count} threads; MiB")
    print(f"{'case':14}" + "".join(f"{side:>12}{'imported':>10}" for side in SIDES) + f"{'ratio':>8}{'aim':>6}")
    for length, batch in CASES:
        measured = {side: _measure(side, length, batch, count, dtype) for side in SIDES}
        losses = [measured[side]["loss"] for side in SIDES]
        if abs(losses[0] - losses[1]) > TOLERANCE[dtype] * abs(losses[1]):
            raise RuntimeError(f"the losses of the last step differ: {losses}")
        ratio = measured["numformer"]["peak"] / measured["torch"]["peak"]
        rows.append({"positions": length, "batch": batch, "threads": count, **measured, "ratio": ratio, "aim": AIM})
        cells = "".join(f"{m['peak'] / 2**20:12.0f}{m['imported'] / 2**20:10.0f}" for m in measured.values())
        verdict = "met" if ratio <= AIM else "above"
        print(f"{f'T {length}, B {batch}':14}{cells}{ratio:8.2f}{AIM:6.2f} {verdict}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{subject}.json"
    path.write_text(json.dumps({"machine": common.machine(), "results": rows}, indent=1) + "\n")
    return path


def _measure(side: str, length: int, batch: int, threads: int, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.training_memory", side, str(length), str(batch), str(threads)]
    command.append(dtype)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _peak() -> int:
    """Bytes. Not getrusage's: that begins with what the process that started this one held."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def train(side: str, length: int, batch: int, threads: int, dtype: str) -> dict[str, float]:
    """Train for some steps in this process; only the library of `side` is imported."""
    import numpy as np

    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 50257, (2, batch, length))
    return (_numformer if side == "numformer" else _torch)(ids, targets, length, threads, dtype)


def _config(length: int):  # type: ignore[no-untyped-def]
    from numformer.models import GPTConfig

    return GPTConfig(vocab_size=50257, context=length, layers=12, heads=12, width=768)


def _numformer(ids, targets, length: int, threads: int, dtype: str) -> dict[str, float]:  # type: ignore[no-untyped-def]
    import numformer as nf
    from numformer import nn
    from numformer.models import GPT
    from numformer.nn.context import compute_dtype
    from numformer.optim import AdamW, decay_groups

    imported = _peak()
    nf.set_num_threads(threads)
    model = GPT(_config(length), rng=0)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-4, clip_norm=1.0)
    narrow = None if dtype == "float32" else compute_dtype("training_memory", dtype)
    for parameter in model.parameters():
        parameter.keep(narrow)
    loss = 0.0
    for _ in range(STEPS):
        loss, backward = model.loss((ids, targets), ctx=nn.Context(dtype=narrow))
        backward()
        optimizer.step()
    return {"peak": _peak(), "imported": imported, "loss": loss}


def _torch(ids, targets, length: int, threads: int, dtype: str) -> dict[str, float]:  # type: ignore[no-untyped-def]
    import torch
    from numformer.models import GPT

    from benchmarks.torch_gpt import TorchGPT
    from benchmarks.torch_peer import TorchStep

    imported = _peak()
    torch.set_num_threads(threads)
    config = _config(length)
    model = TorchGPT(config).copy(GPT(config, rng=0).state_dict())  # 0.5 GB for a moment, well below the peak
    autocast = None if dtype == "float32" else getattr(torch, dtype)
    step = TorchStep(model, lr=1e-4, weight_decay=0.1, clip_norm=1.0, autocast=autocast)
    pair = torch.from_numpy(ids), torch.from_numpy(targets)
    loss = 0.0
    for _ in range(STEPS):
        loss = step(*pair)
    return {"peak": _peak(), "imported": imported, "loss": loss}


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])))
