"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops
from numformer.data.windows import IGNORE
from numformer.nn import Context, initial
from numformer.optim import Optimizer
from numformer.train import log
from numformer.train.checkpoint import load_checkpoint, save_checkpoint
from numformer.train.interrupt import Interrupt
from numformer.train.progress import Silent, choose
from numformer.train.protocols import Data, Model

Array = NDArray[Any]
Batch = tuple[Array, ...]


class Trainer:
    """Trains a model: mini-batches, or true batch gradient descent.

    Parameters
    ----------
    model
        Has ``loss``, ``infer_loss``, ``parameters`` and a state dict.
    optimizer : Optimizer
        Of the parameters of the model.
    data
        Samples to train on.
    batch_size : int or None
        Samples a step, drawn by `seed` and step; None takes all of `data` at every step, so that the gradient is that
        of the mean loss over the whole data set.
    steps : int
        How many in all.
    micro_batch : int, optional
        Samples that are in memory at once; their gradients add up, each target with the same weight. By default
        `batch_size`, and 32 for None.
    schedule : callable, optional
        From the step, counted from 0, to the learning rate; that of the optimizer by default.
    validation : optional
        Samples to evaluate on.
    eval_every : int
        Steps between evaluations and checkpoints; 0 is only at the end.
    log_every : int
        Steps between rows of the log.
    out_dir : path, optional
        Where checkpoint.safetensors, log.csv and loss.png go.
    seed : int
        Of the batches and of dropout.
    dtype : dtype, optional
        To compute in; that of the parameters by default.
    config : dict, optional
        Kept in the checkpoint.
    progress : bool or Silent
        Whether to show progress: a bar on a terminal, else lines.
    on_save : callable, optional
        Called after each checkpoint.

    Attributes
    ----------
    history : list of dict
        A row for each step that was logged: step, loss, validation_loss, lr, grad_norm, tokens, seconds.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        data: Data,
        *,
        batch_size: int | None,
        steps: int,
        micro_batch: int | None = None,
        schedule: Callable[[int], float] | None = None,
        validation: Data | None = None,
        eval_every: int = 0,
        log_every: int = 10,
        out_dir: str | Path | None = None,
        seed: int = 0,
        dtype: DTypeLike | None = None,
        config: dict[str, Any] | None = None,
        progress: bool | Silent = True,
        on_save: Callable[[], None] | None = None,
    ) -> None:
        initial.size("Trainer", steps=steps, log_every=log_every)
        if batch_size is not None:
            initial.size("Trainer", batch_size=batch_size)
        if micro_batch is not None:
            initial.size("Trainer", micro_batch=micro_batch)
        if eval_every < 0:
            raise ValueError(f"Trainer: eval_every must be at least 0, got {eval_every}")
        self.model, self.optimizer, self.data, self.validation = model, optimizer, data, validation
        self.batch_size, self.steps = batch_size, steps
        self.micro_batch = micro_batch or batch_size or 32
        self.schedule = schedule
        self.eval_every, self.log_every = eval_every, log_every
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.seed = initial.seed("Trainer", seed)
        self.dtype = None if dtype is None else np.dtype(dtype)
        self.config = config or {}
        self.progress = choose(progress)
        self.on_save = on_save
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._total: int | None = None

    @property
    def checkpoint(self) -> Path | None:
        """Path of the checkpoint."""
        return None if self.out_dir is None else self.out_dir / "checkpoint.safetensors"

    def resume(self) -> int:
        """Continue from the checkpoint in `out_dir` and return the number of steps done."""
        if self.checkpoint is None:
            raise ValueError("Trainer: resume needs out_dir, got None")
        self.step = int(load_checkpoint(self.checkpoint, self.model, self.optimizer)["step"])
        if self.step >= self.steps:
            raise ValueError(f"Trainer: steps must be above the {self.step} of {self.checkpoint}, got {self.steps}")
        return self.step

    def run(self) -> list[dict[str, Any]]:
        """Train and return the history.

        Raises
        ------
        FloatingPointError
            Where the loss is no longer a finite number; the last checkpoint stays.
        KeyboardInterrupt
            After Ctrl-C, once the step is over and the checkpoint written. A second Ctrl-C does not wait.
        """
        if self.out_dir is not None:
            self.out_dir.mkdir(parents=True, exist_ok=True)
        record = log.Log(None if self.out_dir is None else self.out_dir / "log.csv", resume=self.step)
        self.history = record.rows
        self.progress.begin(self.steps, self.step)
        try:
            with Interrupt() as interrupt:
                self._loop(record, interrupt)
        finally:
            self.progress.end()
            record.close()
            if self.out_dir is not None and self.history:
                log.draw(self.history, self.out_dir / "loss.png")
        return self.history

    def _loop(self, record: log.Log, interrupt: Interrupt) -> None:
        start, first, tokens = time.monotonic(), self.step, 0
        done = self.history[-1] if self.history else {"seconds": 0.0, "tokens": 0}
        while self.step < self.steps:
            lr = self.optimizer.lr if self.schedule is None else self.schedule(self.step)
            result = self._gradient(interrupt)
            if result is None:
                break
            loss, count = result
            if not math.isfinite(loss):
                raise FloatingPointError(self._broken(f"the loss is {loss}"))
            try:
                norm = self.optimizer.step(lr)
            except FloatingPointError as error:
                raise FloatingPointError(self._broken(str(error))) from error
            self.step += 1
            tokens += count
            last = self.step == self.steps
            held = None
            if last or (self.eval_every and self.step % self.eval_every == 0):
                held = self.evaluate()
                self._save()
            seconds = time.monotonic() - start
            row = {
                "step": self.step,
                "loss": loss,
                "validation_loss": held,
                "lr": lr,
                "grad_norm": norm,
                "tokens": done["tokens"] + tokens,
                "seconds": round(done["seconds"] + seconds, 3),
            }
            if last or held is not None or self.step % self.log_every == 0 or self.step == 1:
                record.add(row)
            self.progress.step(
                row
                | {
                    "tokens_per_second": tokens / max(seconds, 1e-9),
                    "seconds_left": seconds / (self.step - first) * (self.steps - self.step),
                }
            )
            if interrupt.asked:
                break
        if interrupt.asked and self.step < self.steps:
            self._save()
            raise KeyboardInterrupt

    def _gradient(self, interrupt: Interrupt) -> tuple[float, int] | None:
        """Leave the gradient of one step in the parameters; return the mean loss and how many targets it is over.

        The mean over a batch is the sum over micro-batches of (its share of the targets) x (its mean), so the share
        goes into its backward. None after Ctrl-C between two micro-batches: half a gradient is no step.
        """
        total, loss = 0, 0.0
        if self.batch_size is None:
            total = self._targets_in_data()
        else:
            batch = self.data.draw(self.batch_size, seed=self.seed, step=self.step)
            total = _targets(batch)
        if total == 0:
            raise ValueError("Trainer: there is no target that counts in the batch")
        for first, piece in self._pieces(self.data) if self.batch_size is None else self._slices(batch):
            if first and interrupt.asked:
                for parameter in self.optimizer.parameters:
                    parameter.reset()
                return None
            share = _targets(piece) / total
            if share == 0:
                continue
            value, backward = self.model.loss(piece, ctx=self._context(first))
            loss += share * value
            if not math.isfinite(value):
                break
            backward(share)
        return loss, total

    def _context(self, sample: int) -> Context:
        return Context(seed=self.seed, step=self.step, sample=sample, dtype=self.dtype)

    def _pieces(self, data: Data) -> Iterator[tuple[int, Batch]]:
        """Micro-batches of a whole data set."""
        for first in range(0, len(data), self.micro_batch):
            yield first, data.samples(first, min(first + self.micro_batch, len(data)))

    def _slices(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """Micro-batches of a batch."""
        count = len(batch[0])
        if count <= self.micro_batch:
            yield 0, batch
            return
        for first in range(0, count, self.micro_batch):
            yield first, tuple(array[first : first + self.micro_batch] for array in batch)

    def _targets_in_data(self) -> int:
        if self._total is None:
            self._total = sum(_targets(piece) for _, piece in self._pieces(self.data))
        return self._total

    def evaluate(self) -> float | None:
        """Return the mean loss over all of `validation`, or None without one."""
        if self.validation is None:
            return None
        total, count = 0.0, 0
        for first, piece in self._pieces(self.validation):
            targets = _targets(piece)
            total += targets * self.model.infer_loss(piece, ctx=self._context(first))
            count += targets
        return total / max(count, 1)

    def _save(self) -> None:
        if not math.isfinite(float(ops.global_norm([p.value for p in self.model.parameters()]))):
            raise FloatingPointError(self._broken("a weight is not a finite number"))
        if self.checkpoint is not None:
            progress = {"step": self.step, "steps": self.steps, "seed": self.seed, "config": self.config}
            save_checkpoint(self.checkpoint, self.model, self.optimizer, progress)
            if self.on_save is not None:
                self.on_save()

    def _broken(self, what: str) -> str:
        kept = (
            ""
            if self.checkpoint is None or not self.checkpoint.is_file()
            else f"; the last checkpoint is {self.checkpoint}"
        )
        return f"Trainer: {what} at step {self.step + 1}; try a lower learning rate or clip_norm{kept}"


def _targets(batch: Batch) -> int:
    """How many targets of a batch count."""
    return int(np.count_nonzero(batch[-1] != IGNORE))
