"""Checkpoints: one safetensors file with weights, optimizer and progress, so that they cannot disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numformer import files
from numformer.optim import Optimizer
from numformer.train.protocols import Model

_MODEL, _OPTIMIZER = "model/", "optimizer/"


def save_checkpoint(path: str | Path, model: Model, optimizer: Optimizer, progress: dict[str, Any]) -> None:
    """Write a checkpoint; it replaces the last one only when it is whole and on the disk.

    Parameters
    ----------
    path : path
        Of the file.
    model, optimizer
        Whose state to keep.
    progress : dict
        Kept as JSON; has at least "step", the number of steps done.
    """
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    tensors |= {_OPTIMIZER + name: value for name, value in optimizer.state_dict().items()}
    notes = {"optimizer": type(optimizer).__name__, "progress": progress}
    files.write_tensors(Path(path), tensors, {"numformer": json.dumps(notes)})


def load_checkpoint(path: str | Path, model: Model, optimizer: Optimizer) -> dict[str, Any]:
    """Read a checkpoint into a model and its optimizer and return the progress.

    Raises
    ------
    ValueError
        Where the file is damaged, is no checkpoint, or is one of another model or optimizer.
    """
    tensors, metadata = files.read_tensors(Path(path))
    try:
        notes = json.loads(metadata["numformer"])
        kind, progress = notes["optimizer"], dict(notes["progress"])
        int(progress["step"])
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{path}: not a checkpoint of a training run (its metadata has no progress)") from None
    if kind != type(optimizer).__name__:
        raise ValueError(f"{path}: the checkpoint is of {kind}, and the optimizer is {type(optimizer).__name__}")
    before = {name: value.copy() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict({k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)})
        optimizer.load_state_dict(
            {k.removeprefix(_OPTIMIZER): v for k, v in tensors.items() if k.startswith(_OPTIMIZER)}
        )
    except ValueError as error:
        model.load_state_dict(before)
        raise ValueError(f"{path}: {error}") from error
    return progress
