"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import ops, profiling
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
    steps : int or None
        How many in all; None for as many as `max_seconds` has room for.
    micro_batch : int, optional
        Samples that are in memory at once; their gradients add up, each target with the same weight. By default
        `batch_size`, and 32 for None.
    schedule : callable, optional
        From the step, counted from 0, to the learning rate; that of the optimizer by default.
    validation : optional
        Samples to evaluate on.
    metrics : mapping, optional
        From a name to a function that measures the model, larger is better; called at each evaluation, a column of
        the log each.
    eval_every : int
        Steps between evaluations and checkpoints; 0 is only at the end.
    max_seconds : float, optional
        The step that passes it is the last one of this run.
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
    on_best : callable, optional
        Called after the checkpoint of an evaluation that is better than all before it, to keep these weights.
    best : str
        What is compared: "validation_loss", or the name of one of `metrics`.

    Attributes
    ----------
    history : list of dict
        A row for each step that was logged: step, loss, validation_loss, lr, grad_norm, tokens, seconds, metrics.
    best_value : float or None
        The best evaluation so far.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        data: Data,
        *,
        batch_size: int | None,
        steps: int | None,
        micro_batch: int | None = None,
        schedule: Callable[[int], float] | None = None,
        validation: Data | None = None,
        metrics: Mapping[str, Callable[[], float]] | None = None,
        eval_every: int = 0,
        max_seconds: float | None = None,
        log_every: int = 10,
        out_dir: str | Path | None = None,
        seed: int = 0,
        dtype: DTypeLike | None = None,
        config: dict[str, Any] | None = None,
        progress: bool | Silent = True,
        on_save: Callable[[], None] | None = None,
        on_best: Callable[[], None] | None = None,
        best: str = "validation_loss",
    ) -> None:
        initial.size("Trainer", log_every=log_every)
        if steps is not None:
            initial.size("Trainer", steps=steps)
        elif max_seconds is None:
            raise ValueError("Trainer: steps or max_seconds must be given, got None for both")
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"Trainer: max_seconds must be above 0, got {max_seconds}")
        if batch_size is not None:
            initial.size("Trainer", batch_size=batch_size)
        if micro_batch is not None:
            initial.size("Trainer", micro_batch=micro_batch)
        if eval_every < 0:
            raise ValueError(f"Trainer: eval_every must be at least 0, got {eval_every}")
        self.metrics = dict(metrics or {})
        if taken := [name for name in self.metrics if name in log.COLUMNS]:
            raise ValueError(f"Trainer: metrics must have names of their own, got {taken[0]!r}")
        if best != "validation_loss" and best not in self.metrics:
            raise ValueError(f"Trainer: best must be 'validation_loss' or one of metrics, got {best!r}")
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
        self.on_save, self.on_best, self.best = on_save, on_best, best
        self.best_value: float | None = None
        self.max_seconds = max_seconds
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
        progress = load_checkpoint(self.checkpoint, self.model, self.optimizer)
        self.step = int(progress["step"])
        if progress.get("best", {}).get("of") == self.best:
            self.best_value = float(progress["best"]["value"])
        if self.steps is not None and self.step >= self.steps:
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
        path = None if self.out_dir is None else self.out_dir / "log.csv"
        record = log.Log(path, resume=self.step, extra=tuple(self.metrics))
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
        over = False
        while not over:
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
            seconds = time.monotonic() - start
            over = self.step == self.steps or (self.max_seconds is not None and seconds >= self.max_seconds)
            held, measured, evaluated = None, {}, False
            if over or (self.eval_every and self.step % self.eval_every == 0):
                held, evaluated = self.evaluate(), True
                measured = {name: float(measure()) for name, measure in self.metrics.items()}
                self._save(measured.get(self.best, held))
            seconds = time.monotonic() - start
            row = {
                "step": self.step,
                "loss": loss,
                "validation_loss": held,
                "lr": lr,
                "grad_norm": norm,
                "tokens": done["tokens"] + tokens,
                "seconds": round(done["seconds"] + seconds, 3),
                **measured,
            }
            if evaluated or self.step % self.log_every == 0 or self.step == 1:
                record.add(row)
            self.progress.step(
                row
                | {
                    "tokens_per_second": tokens / max(seconds, 1e-9),
                    "seconds_left": 0.0 if over else self._left(seconds, self.step - first),
                    "metrics": measured,
                }
            )
            if interrupt.asked:
                break
        if interrupt.asked and not over:
            self._save()
            raise KeyboardInterrupt

    def _left(self, seconds: float, steps: int) -> float:
        """How long the rest takes, when so many steps took so long."""
        left = math.inf if self.steps is None else seconds / steps * (self.steps - self.step)
        return left if self.max_seconds is None else min(left, max(0.0, self.max_seconds - seconds))

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

    def _save(self, value: float | None = None) -> None:
        """Write a checkpoint; `value` is that of its evaluation."""
        if not math.isfinite(float(ops.global_norm([p.value for p in self.model.parameters()]))):
            raise FloatingPointError(self._broken("a weight is not a finite number"))
        sign = -1 if self.best == "validation_loss" else 1
        better = value is not None and (self.best_value is None or sign * value > sign * self.best_value)
        if better:
            self.best_value = value
        if self.checkpoint is not None:
            progress = {"step": self.step, "steps": self.steps, "seed": self.seed, "config": self.config}
            if self.best_value is not None:
                progress["best"] = {"of": self.best, "value": self.best_value}
            save_checkpoint(self.checkpoint, self.model, self.optimizer, progress)
            if self.on_save is not None:
                self.on_save()
        # Before the first evaluation the newest weights are the best there are.
        if self.on_best is not None and (better or self.best_value is None):
            self.on_best()

    def _broken(self, what: str) -> str:
        kept = (
            ""
            if self.checkpoint is None or not self.checkpoint.is_file()
            else f"; the last checkpoint is {self.checkpoint}"
        )
        return f"Trainer: {what} at step {self.step + 1}; try a lower learning rate or clip_norm{kept}"


profiling.trace(
    Trainer, ("_gradient", "evaluate", "_save"), lambda trainer, method: f"Trainer.{method.removeprefix('_')}"
)


def _targets(batch: Batch) -> int:
    """How many targets of a batch count."""
    return int(np.count_nonzero(batch[-1] != IGNORE))
