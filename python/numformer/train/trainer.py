"""The training loop."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numformer import files, ops, profiling
from numformer.data.windows import IGNORE
from numformer.nn import Context, initial
from numformer.nn.context import compute_dtype
from numformer.ops.memory import device_of
from numformer.optim import Average, Optimizer
from numformer.packed import Packed
from numformer.train import checkpoint, events, log
from numformer.train.interrupt import Interrupt
from numformer.train.loss_scale import LossScale
from numformer.train.parallel import Ranks, join
from numformer.train.progress import Silent, choose
from numformer.train.protocols import Data, Model
from numformer.train.record import Record
from numformer.train.rehearsal import Rehearsal, rehearse
from numformer.train.speed import Speed

Array = NDArray[Any]
Batch = tuple[Array | Packed, ...]

SKIPS = 10
"""Steps that may be skipped one after the other; after more of them something is wrong with the weights."""


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
        Where checkpoint.safetensors, log.csv, loss.png and samples.jsonl go.
    seed : int
        Of the batches and of dropout.
    dtype : dtype, optional
        To compute in; that of the parameters by default. "bfloat16" and "float16" are mixed precision: products and
        what goes from layer to layer in 16 bits, weights, gradients of weights and updates in float32.
    loss_scale : LossScale, optional
        Of float16, where a new one is the default; no other dtype has any. A step whose gradients overflow because of
        it changes nothing and is counted in `skipped`. Its value is a column of the log.
    config : dict, optional
        Kept in the checkpoint.
    progress : bool or Silent
        Whether to show progress: a bar on a terminal, else lines.
    on_save : callable, optional
        Called before each checkpoint, to write the weights of now.
    on_best : callable, optional
        Called before the checkpoint of an evaluation that is better than all before it, to write these weights.
    best : str
        What is compared: "validation_loss", or the name of one of `metrics`.
    keep : int
        Checkpoints that stay in `out_dir`: the newest, and checkpoint-STEP.safetensors before it.
    keep_best : bool
        Whether the checkpoint of the best evaluation stays too, as checkpoint-best.safetensors.
    patience : int, optional
        Evaluations one after the other that are no better than the best, after which the run ends.
    ema : float, optional
        Decay of an exponential moving average of the weights (:class:`numformer.optim.Average`), which is what is
        evaluated and what `on_save` and `on_best` find in the model; training goes on with the weights themselves.
    nan : {"stop", "skip"}
        What becomes of a step whose loss or gradient is not finite: the run ends, or the step changes nothing; the
        run ends after 10 of these one after the other too. To skip costs a pass over the gradients where the
        optimizer does not clip.
    checkpoint_activations : bool
        Blocks keep their inputs only and run forward once more in their backward: memory of one block's activations
        instead of all blocks', for a third more time; not a bit of the result changes.
    sample : callable, optional
        From the step to a text that shows what the model can do; kept in samples.jsonl and shown.
    sample_every : int
        Steps between samples; 0 is none.
    tensorboard : bool
        Whether log and samples go to `out_dir`/tensorboard too; needs the extra "tensorboard".
    parallel : bool or Ranks, optional
        Whether the processes that a launcher of MPI started train one model together, each on its share of every batch
        (data-parallel, over mpi4py). By default they do where there are several; True needs mpi4py also for one. All
        give the same arguments; rank 0 writes and speaks.
    shard_optimizer : bool
        Whether each of several ranks keeps a part of the optimizer's state only (ZeRO, stage 1).
    device : {"cpu", "cuda"}, optional
        Where to have the weights and what is kept of them, and to compute; where they are by default. "cuda" needs
        `numformer_cuda`; of several ranks each takes a GPU of its own.

    Attributes
    ----------
    history : list of dict
        A row for each step that was logged: step, loss, validation_loss, lr, grad_norm, tokens, seconds, metrics.
    best_value : float or None
        The best evaluation so far.
    average : Average or None
        Of the weights, with `ema`.
    skipped : int
        Steps that changed nothing, of this run and those it resumed.
    ranks : Ranks
        Who trains together; has ``rank``, ``size`` and ``first``.
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
        keep: int = 2,
        keep_best: bool = False,
        patience: int | None = None,
        ema: float | None = None,
        nan: str = "stop",
        checkpoint_activations: bool = False,
        loss_scale: LossScale | None = None,
        sample: Callable[[int], str] | None = None,
        sample_every: int = 0,
        tensorboard: bool = False,
        parallel: bool | Ranks | None = None,
        shard_optimizer: bool = False,
        device: str | None = None,
    ) -> None:
        initial.size("Trainer", log_every=log_every, keep=keep)
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
        for name, value in (("eval_every", eval_every), ("sample_every", sample_every)):
            if value < 0:
                raise ValueError(f"Trainer: {name} must be at least 0, got {value}")
        if sample_every and sample is None:
            raise ValueError("Trainer: sample_every needs sample, got None")
        if tensorboard:
            events.library()
            if out_dir is None:
                raise ValueError("Trainer: tensorboard needs out_dir, got None")
        self.metrics = dict(metrics or {})
        if taken := [name for name in self.metrics if name in (*log.COLUMNS, *log.SCALE)]:
            raise ValueError(f"Trainer: metrics must have names of their own, got {taken[0]!r}")
        if best != "validation_loss" and best not in self.metrics:
            raise ValueError(f"Trainer: best must be 'validation_loss' or one of metrics, got {best!r}")
        if patience is not None:
            initial.size("Trainer", patience=patience)
            if best == "validation_loss" and validation is None:
                raise ValueError("Trainer: patience needs validation, or a metric as best, got neither")
        if nan not in ("stop", "skip"):
            raise ValueError(f"Trainer: nan must be 'stop' or 'skip', got {nan!r}")
        self.model, self.optimizer, self.data, self.validation = model, optimizer, data, validation
        self.batch_size, self.steps = batch_size, steps
        self.micro_batch = micro_batch or batch_size or 32
        self.schedule = schedule
        self.eval_every, self.log_every = eval_every, log_every
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.seed = initial.seed("Trainer", seed)
        self.dtype = None if dtype is None else compute_dtype("Trainer", dtype)
        if loss_scale is not None and self.dtype != np.float16:
            raise ValueError(f"Trainer: loss_scale is for dtype float16, got {self.dtype}")
        self.loss_scale = LossScale() if loss_scale is None and self.dtype == np.float16 else loss_scale
        self.config = config or {}
        if isinstance(parallel, Ranks):
            self.ranks = parallel
        elif parallel not in (None, True, False):
            raise TypeError(f"Trainer: parallel must be a bool, Ranks or None, got {type(parallel).__name__}")
        else:
            self.ranks = Ranks() if parallel is False else join(ask=parallel is True)
        self.progress = choose(progress if self.ranks.first else False)
        self.on_save, self.on_best, self.best = on_save, on_best, best
        self.best_value: float | None = None
        self.keep, self.keep_best, self.patience, self.nan = keep, keep_best, patience, nan
        self.average = None if ema is None else Average(optimizer.parameters, decay=ema)
        self.skipped = 0
        self._skips = 0  # one after the other
        self.checkpoint_activations = checkpoint_activations
        self.sample, self.sample_every, self.tensorboard = sample, sample_every, tensorboard
        self._waited = 0  # evaluations since the best
        self._continued = False  # whether the checkpoints in out_dir are of this run
        self._done: dict[str, Any] = {"tokens": 0, "seconds": 0.0}
        self.max_seconds = max_seconds
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._total: int | None = None
        self.shard_optimizer = shard_optimizer
        if device is not None:
            self._move(device)
        self._check_alike()
        self._exchange = self.ranks.exchange(model.parameters(), optimizer, shard=shard_optimizer)

    def _move(self, device: str) -> None:
        self.ranks.take_device("Trainer", device)
        for parameter in self.model.parameters():
            parameter.to(device)
        self.optimizer.to(device)
        if self.average is not None:
            self.average.to(device)

    def _check_alike(self) -> None:
        """Check that all ranks were given the same."""
        names = ("batch_size", "steps", "micro_batch", "eval_every", "max_seconds", "seed", "dtype", "nan", "patience")
        parameters = [(p.name, p.value.shape, str(p.value.dtype)) for p in self.model.parameters()]
        self.ranks.alike(
            "Trainer",
            model=f"{len(parameters)} parameters, {zlib.crc32(repr(parameters).encode()):08x}",
            optimizer=type(self.optimizer).__name__,
            clip_norm=self.optimizer.clip_norm,
            data=len(self.data),
            validation=None if self.validation is None else len(self.validation),
            metrics=sorted(self.metrics),
            ema=self.average is not None,
            out_dir="none" if self.out_dir is None else "given",
            shard_optimizer=self.shard_optimizer,
            **{name: getattr(self, name) for name in names},
        )

    @property
    def checkpoint(self) -> Path | None:
        """Path of the checkpoint."""
        return None if self.out_dir is None else self.out_dir / checkpoint.NAME

    def resume(self) -> int:
        """Continue from the checkpoint in `out_dir` and return the number of steps done.

        What follows is what would have followed without a stop, to the bit: weights, state of the optimizer, log
        (but for the seconds), best value. Where the newest checkpoint is damaged, a warning says so and the one before
        it is taken.

        Raises
        ------
        FileNotFoundError
            Where there is none.
        ValueError
            Where none is whole, or it is of another model, optimizer or seed.
        """
        if self.checkpoint is None:
            raise ValueError("Trainer: resume needs out_dir, got None")
        found = checkpoint.kept(self.checkpoint) if self.checkpoint.parent.is_dir() else []
        for path in found or [self.checkpoint]:
            try:
                progress = checkpoint.load_checkpoint(path, self.model, self.optimizer, average=self.average)
                break
            except files.DamagedError as error:
                if path == found[-1]:
                    raise
                warnings.warn(f"{error}; the checkpoint before it is taken", stacklevel=2)
        if progress.get("seed", self.seed) != self.seed:
            raise ValueError(f"Trainer: seed must be {progress['seed']}, that of {path}, got {self.seed}")
        self.step = int(progress["step"])
        self._done = {name: progress.get(name, value) for name, value in self._done.items()}
        self.skipped, self._skips = progress.get("skipped", (0, 0))
        if self.loss_scale is not None and "loss_scale" in progress:
            self.loss_scale.load_state_dict(progress["loss_scale"])
        if progress.get("best", {}).get("of") == self.best:
            self.best_value = float(progress["best"]["value"])
            self._waited = int(progress["best"].get("waited", 0))
        if self.steps is not None and self.step >= self.steps:
            raise ValueError(f"Trainer: steps must be above the {self.step} of {path}, got {self.steps}")
        self.ranks.alike("Trainer", step=self.step)  # a folder that not all ranks see may have another run's
        self._continued = True
        return self.step

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Have the average of the weights in the model while entered; nothing changes without one."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def run(self) -> list[dict[str, Any]]:
        """Train and return the history.

        Raises
        ------
        FloatingPointError
            Where the loss is no longer a finite number; the last checkpoint stays.
        KeyboardInterrupt
            After Ctrl-C, once the step is over and the checkpoint written; `Terminated`, which is one, after SIGTERM or
            SIGHUP. A second signal does not wait.
        OSError
            Where a file cannot be written; the last checkpoint stays.

        Notes
        -----
        Of several ranks all raise where all have the same reason; an exception of one of them ends the whole job.
        """
        with self.ranks.together(self._kept):
            record = self._open()
        self.history = record.rows
        self.progress.begin(self.steps, self.step)
        echo = 1.0 if self.ranks.size > 1 else 0.0
        try:
            with self.ranks.together(self._kept), Interrupt(echo) as interrupt, self._rounded():
                self.ranks.spread(self.model.parameters())
                self._loop(record, interrupt)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to hear of
                self._draw()
            raise
        else:
            self._draw()
        finally:
            self.progress.end()
            record.close()
        return self.history

    def _open(self) -> Record:
        """Return the record of the run; its files are those of rank 0."""
        folder = self.out_dir if self.ranks.first else None
        if folder is not None and self.checkpoint is not None:
            folder.mkdir(parents=True, exist_ok=True)
            files.sweep(self.checkpoint)
        extra = (*(log.SCALE if self.loss_scale is not None else ()), *self.metrics)
        return Record(folder, self.step, extra, events=self.tensorboard)

    @contextlib.contextmanager
    def _rounded(self) -> Iterator[None]:
        """Have matrices rounded once a step, by the optimizer, where computation is in 16 bits."""
        parameters = self.model.parameters()
        for parameter in parameters:
            parameter.keep(self.dtype)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.keep(None)

    def _draw(self) -> None:
        if self.out_dir is not None and self.history and self.ranks.first:
            log.draw(self.history, self.out_dir / "loss.png")

    def dry_run(self) -> Rehearsal:
        """Make a step or two and a piece of an evaluation, and say which memory and time the whole run will take.

        No file is written; the model has been trained by these steps, so it is for nothing else.
        """
        with self._rounded():
            return rehearse(self)

    def _loop(self, record: Record, interrupt: Interrupt) -> None:
        start, first, done = time.monotonic(), self.step, dict(self._done)
        speed = Speed(counts=type(self.progress) is not Silent)
        over = stop = False
        while not over and not stop:
            lr = float(self.optimizer.lr if self.schedule is None else self.schedule(self.step))
            scale = None if self.loss_scale is None else self.loss_scale.value
            result = speed.step(
                functools.partial(self._update, lr, interrupt), lambda result: result[1] if result else 0
            )
            if result is None:
                stop = True
                break
            loss, count, norm = result
            self.step += 1
            self._done["tokens"] += count
            seconds = time.monotonic() - start
            late = self.max_seconds is not None and seconds >= self.max_seconds
            if self.max_seconds is not None:
                late = bool(self.ranks.most(late and self.ranks.first)[0])
            over = self.step == self.steps or late
            held, measured, better, evaluated = None, {}, False, False
            if over or (self.eval_every and self.step % self.eval_every == 0):
                self._check_weights()
                with self.averaged():
                    held, evaluated = self.evaluate(), True
                    measured = self._measure()
                better = self._judge(measured.get(self.best, held))
                over = over or (self.patience is not None and self._waited >= self.patience)
            seconds = time.monotonic() - start
            self._done["seconds"] = round(done["seconds"] + seconds, 3)
            row = {
                "step": self.step,
                "loss": loss,
                "validation_loss": held,
                "lr": lr,
                "grad_norm": norm,
                **self._done,
                **({} if self.loss_scale is None else {"loss_scale": scale, "skipped": self.skipped}),
                **measured,
            }
            if evaluated or self.step % self.log_every == 0 or self.step == 1:
                record.add(row)
            sampled = self.sample_every and self.step % self.sample_every == 0
            if self.sample is not None and sampled and self.ranks.first:
                with self.averaged():
                    text = self.sample(self.step)
                record.say(self.step, text)
                self.progress.say(self.step, text)
            if evaluated:
                self._save(record, better)
            self.progress.step(
                row
                | {
                    "tokens_per_second": speed.tokens_per_second,
                    "share": speed.share,
                    "seconds_left": 0.0 if over else self._left(seconds, self.step - first),
                    "metrics": measured,
                }
            )
            stop = self._asked(interrupt)
        if stop and not over:
            self._save(record)
            raise interrupt.error()

    def _update(self, lr: float, interrupt: Interrupt) -> tuple[float, int, float | None] | None:
        """Make one step; return loss, number of targets and norm of the gradient, or None as :meth:`_gradient`."""
        result = self._gradient(interrupt)
        if result is None:
            return None
        loss, count = result
        norm, parameters, scaler = None, self.optimizer.parameters, self.loss_scale
        scale = 1.0 if scaler is None else 1.0 / scaler.value
        waits = device_of(loss) != "cpu"  # of a GPU loss and norm are asked for once the whole step is on its way
        step = None
        try:
            if not waits and not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss}")
            check = self.nan == "skip" or scaler is not None
            step = self.optimizer.launch(lr, grad_scale=scale, loss=loss if waits else None, check=check)
            try:
                norm = step.finish()
            finally:
                loss = step.loss if waits else loss
        except FloatingPointError as error:
            for parameter in parameters:
                parameter.reset()
            self.skipped += 1
            if scaler is not None and math.isfinite(loss) and scaler.update(finite=False):
                return loss, count, None  # what it is there for
            self._skips += 1
            if self.nan == "stop" or self._skips > SKIPS:
                before = f", and {self._skips - 1} steps before it were skipped" if self._skips > 1 else ""
                raise FloatingPointError(self._broken(f"{error}{before}")) from error
        else:
            self._skips = 0
            if scaler is not None:
                scaler.update(finite=True)
            if self.average is not None:
                self.average.update()
        return loss, count, norm

    def _left(self, seconds: float, steps: int) -> float:
        """How long the rest takes, when so many steps took so long."""
        left = math.inf if self.steps is None else seconds / steps * (self.steps - self.step)
        return left if self.max_seconds is None else min(left, max(0.0, self.max_seconds - seconds))

    def _asked(self, interrupt: Interrupt) -> bool:
        """Whether this rank or another was asked to end."""
        asked = self.ranks.most(interrupt.asked)[0]
        if asked:  # and if not, a signal may have come meanwhile
            interrupt.asked = asked
        return asked != 0

    def _gradient(self, interrupt: Interrupt) -> tuple[Any, int] | None:
        """Leave the gradient of one step in the parameters; return the mean loss and how many targets it is over.

        The mean over a batch is the sum over micro-batches of (its share of the targets) x (its mean), so the share
        goes into its backward. The micro-batches of all ranks are those of one batch. None after Ctrl-C between two
        micro-batches: half a gradient is no step.
        """
        batch = None
        if self.batch_size is not None:
            batch = self.data.draw(self.batch_size, seed=self.seed, step=self.step)
            if (prepare := getattr(self.data, "prepare", None)) is not None:
                prepare(self.batch_size, seed=self.seed, step=self.step + 1)
        total = self._targets_in_data() if batch is None else _targets(batch)
        if total == 0:
            raise ValueError("Trainer: there is no target that counts in the batch")
        loss = 0.0
        rounds = self._rounds(len(self.data) if batch is None else len(batch[0]))
        for number, (first, stop) in enumerate(rounds, 1):
            if number > 1 and self._asked(interrupt):
                for parameter in self.optimizer.parameters:
                    parameter.reset()
                return None
            if first == stop or not _may_be_finite(loss):
                continue
            piece = self.data.samples(first, stop) if batch is None else _cut(batch, first, stop)
            share = _targets(piece) / total
            if share == 0:
                continue
            value, backward = self.model.loss(piece, ctx=self._context(first))
            loss += share * value
            if _may_be_finite(value):
                if number == len(rounds):
                    self._exchange.begin()
                backward(share if self.loss_scale is None else share * self.loss_scale.value)
        self._exchange.finish()  # first: other ranks, or their GPUs, may be waiting for the gradients of this one
        return loss if self._waits_late() else self.ranks.sum(loss)[0], total

    def _waits_late(self) -> bool:
        """Whether a model on a GPU may leave its loss there: no other process needs it meanwhile."""
        return self.ranks.size == 1 and device_of(self.optimizer.parameters[0].value) != "cpu"

    def _context(self, sample: int) -> Context:
        return Context(
            seed=self.seed,
            step=self.step,
            sample=sample,
            dtype=self.dtype,
            recompute=self.checkpoint_activations,
            wait=not self._waits_late(),
        )

    def _rounds(self, count: int) -> list[tuple[int, int]]:
        """First and last + 1 of the micro-batches of this rank's share of `count` samples; as many on each rank."""
        start, stop = self.ranks.share(count)
        ends = range(0, self.ranks.largest_share(count), self.micro_batch)
        return [(min(start + end, stop), min(start + end + self.micro_batch, stop)) for end in ends]

    def _pieces(self, data: Data) -> Iterator[tuple[int, Batch]]:
        """Micro-batches of this rank's share of a whole data set."""
        for first, stop in self._rounds(len(data)):
            if first < stop:
                yield first, data.samples(first, stop)

    def _targets_in_data(self) -> int:
        if self._total is None:
            self._total = round(self.ranks.sum(sum(_targets(piece) for _, piece in self._pieces(self.data)))[0])
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
        total, whole = self.ranks.sum(total, count)
        return total / max(whole, 1)

    def _measure(self) -> dict[str, float]:
        """Return the metrics; rank 0 measures."""
        return dict(json.loads(self.ranks.told(lambda: json.dumps({k: float(f()) for k, f in self.metrics.items()}))))

    def _judge(self, value: float | None) -> bool:
        """Take note of an evaluation; return whether it is the best."""
        sign = -1 if self.best == "validation_loss" else 1
        if value is None:
            return False
        if self.best_value is None or sign * value > sign * self.best_value:
            self.best_value, self._waited = value, 0
            return True
        self._waited += 1
        return False

    def _check_weights(self) -> None:
        if not math.isfinite(float(ops.global_norm([p.value for p in self.model.parameters()]))):
            raise FloatingPointError(self._broken("a weight is not a finite number"))

    def _save(self, record: Record, better: bool = False) -> None:
        """Write a checkpoint; `better` says whether its evaluation is the best.

        The log and the weights to use come first: a run that is killed between two files resumes before all of them
        and writes them again.
        """
        self._check_weights()
        record.flush()
        state = {} if self.checkpoint is None else self.optimizer.state_dict()
        if self.ranks.first:
            self._write(state, better)
        self._continued = True
        self.ranks.wait()  # so that none ends, and with it the job, before all is written

    def _write(self, state: dict[str, Array], better: bool) -> None:
        with self.averaged():
            # Before the first evaluation the newest weights are the best there are.
            if self.on_best is not None and (better or self.best_value is None):
                self.on_best()
            if self.on_save is not None and self.checkpoint is not None:
                self.on_save()
        if self.checkpoint is None:
            return
        progress = {
            "step": self.step,
            "steps": self.steps,
            "seed": self.seed,
            "skipped": [self.skipped, self._skips],
            "config": self.config,
            **self._done,
        }
        if self.loss_scale is not None:
            progress["loss_scale"] = self.loss_scale.state_dict()
        if self.best_value is not None:
            progress["best"] = {"of": self.best, "value": self.best_value, "waited": self._waited}
        checkpoint.save_checkpoint(
            self.checkpoint,
            self.model,
            self.optimizer,
            progress,
            state=state,
            average=self.average,
            keep=self.keep if self._continued else 1,
            best=better and self.keep_best,
        )

    def _broken(self, what: str) -> str:
        return f"Trainer: {what} at step {self.step + 1}; try a lower learning rate or clip_norm{self._kept()}"

    def _kept(self) -> str:
        """Say where the last checkpoint is."""
        there = self.checkpoint is not None and self.checkpoint.is_file()
        return f"; the last checkpoint is {self.checkpoint}" if there else ""


profiling.trace(
    Trainer, ("_gradient", "evaluate", "_save"), lambda trainer, method: f"Trainer.{method.removeprefix('_')}"
)


def _may_be_finite(x: Any) -> bool:
    """Whether a number is finite, as far as is known without waiting for a GPU."""
    return device_of(x) != "cpu" or math.isfinite(x)


def _targets(batch: Batch) -> int:
    """How many targets of a batch count."""
    targets = batch[-1]
    return int(np.count_nonzero((targets.values if isinstance(targets, Packed) else targets) != IGNORE))


def _cut(batch: Batch, first: int, stop: int) -> Batch:
    """Return some samples of a batch."""
    return batch if stop - first == len(batch[0]) else tuple(array[first:stop] for array in batch)
