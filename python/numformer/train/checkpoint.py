"""Checkpoints: one safetensors file with weights, optimizer and progress, so that they cannot disagree."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numformer import files
from numformer.ops.memory import on_host
from numformer.optim import Average, Optimizer
from numformer.train.protocols import Model, Remembers

NAME = "checkpoint.safetensors"
BEST = "checkpoint-best.safetensors"
_MODEL, _OPTIMIZER, _AVERAGE, _MEMORY = "model/", "optimizer/", "average/", "memory/"


def save_checkpoint(
    path: str | Path,
    model: Model,
    optimizer: Optimizer,
    progress: dict[str, Any],
    *,
    state: Mapping[str, Any] | None = None,
    average: Average | None = None,
    keep: int = 1,
    best: bool = False,
) -> None:
    """Write a checkpoint; it replaces the last one only when it is whole and on the disk.

    Parameters
    ----------
    path : path
        Of the file.
    model, optimizer
        Whose state to keep; with that which a model carries from step to step, where it has a ``training_memory``.
    progress : dict
        Kept as JSON; has at least "step", the number of steps done.
    state : mapping, optional
        That of the optimizer, where it was gathered already.
    average : Average, optional
        Average of the weights, kept too.
    keep : int
        Checkpoints that stay: this one and those before it, which have their step in their name.
    best : bool
        Give it a second name too, checkpoint-best.safetensors; no disk is needed for that until the next one.

    Raises
    ------
    OSError
        Where it cannot be written; those that are there are untouched.
    """
    path = Path(path)
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    tensors |= {_OPTIMIZER + name: value for name, value in (state or optimizer.state_dict()).items()}
    if average is not None:
        tensors |= {_AVERAGE + name: value for name, value in average.state_dict().items()}
    if isinstance(model, Remembers):
        memory = model.training_memory(int(progress["step"]))
        tensors |= {_MEMORY + name: value for name, value in memory.items()}
    tensors = {name: on_host(value) for name, value in tensors.items()}
    notes = {"optimizer": type(optimizer).__name__, "progress": progress}
    step = int(progress["step"])

    def ready(beside: Path) -> None:
        if best:
            files.link(beside, path.with_name(BEST))
        before = _step(path) if keep > 1 else None
        if before is not None and before < step:
            files.link(path, path.with_name(f"{path.stem}-{before:08d}{path.suffix}"))

    files.write_tensors(path, tensors, {"numformer": json.dumps(notes)}, ready)
    # What is not older than this one is of a run that was given up.
    stay = [old for old, number in _numbered(path) if number < step][: keep - 1]
    for old, _ in _numbered(path):
        if old not in stay:
            old.unlink(missing_ok=True)


def kept(path: Path) -> list[Path]:
    """Return the checkpoints that there are, the newest first."""
    return [found for found in (path, *(old for old, _ in _numbered(path))) if found.is_file()]


def _numbered(path: Path) -> list[tuple[Path, int]]:
    """Older checkpoints and their steps, the newest first."""
    pattern = re.compile(re.escape(path.stem) + r"-(\d{8,})" + re.escape(path.suffix))
    found = [(old, int(match[1])) for old in path.parent.iterdir() if (match := pattern.fullmatch(old.name))]
    return sorted(found, key=lambda item: -item[1])


def _step(path: Path) -> int | None:
    """Return the step of a checkpoint, None where there is none or it cannot be read."""
    try:
        return int(json.loads(files.read_metadata(path)["numformer"])["progress"]["step"])
    except (OSError, KeyError, ValueError, TypeError, RecursionError):
        return None


def load_checkpoint(
    path: str | Path, model: Model, optimizer: Optimizer, *, average: Average | None = None
) -> dict[str, Any]:
    """Read a checkpoint into a model and its optimizer and return the progress.

    Parameters
    ----------
    path : path
        Of the file.
    model, optimizer
        Whose state to set.
    average : Average, optional
        Average of the weights, whose state to set too.

    Raises
    ------
    ValueError
        Where the file is damaged (`files.DamagedError`), is no checkpoint, or is one of another model or optimizer;
        nothing was changed.
    """
    tensors, metadata = files.read_tensors(Path(path), sealed=True)
    try:
        notes = json.loads(metadata["numformer"])
        kind, progress = notes["optimizer"], dict(notes["progress"])
        int(progress["step"])
    except (KeyError, ValueError, TypeError, RecursionError):
        raise ValueError(f"{path}: not a checkpoint of a training run (its metadata has no progress)") from None
    if kind != type(optimizer).__name__:
        raise ValueError(f"{path}: the checkpoint is of {kind}, and the optimizer is {type(optimizer).__name__}")
    parts = {
        prefix: {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in (_MODEL, _OPTIMIZER, _AVERAGE, _MEMORY)
    }
    if parts[_MEMORY] and not isinstance(model, Remembers):
        raise ValueError(f"{path}: the checkpoint has a memory, and the model has none")
    if bool(parts[_AVERAGE]) != (average is not None):
        has, wanted = ("an", "none is") if average is None else ("no", "one is")
        raise ValueError(f"{path}: the checkpoint has {has} average of the weights, and {wanted} asked for")
    before = {name: value.copy() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(parts[_MODEL])
        optimizer.load_state_dict(parts[_OPTIMIZER])
        if average is not None:
            average.load_state_dict(parts[_AVERAGE])
        if isinstance(model, Remembers):
            model.load_training_memory(parts[_MEMORY])
    except ValueError as error:
        model.load_state_dict(before)
        raise ValueError(f"{path}: {error}") from error
    return progress
