"""What a run will take, told by a step or two of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numformer.profiling import memory
from numformer.train.interrupt import Interrupt
from numformer.train.speed import counted

if TYPE_CHECKING:
    from numformer.train.trainer import Trainer

_LONG = 20.0
"""Seconds of a first step that is not made twice: what it loses to a cold start is little beside them."""


@dataclass(frozen=True)
class Rehearsal:
    """Memory and time of a run.

    Parameters
    ----------
    parameters : int
        How many weights are trained.
    tokens : int
        Targets of the step that was timed.
    seconds : float
        Of that step.
    share : float or None
        Of the machine's multiply-add ceiling; None where a profile was on.
    steps : int or None
        Still to do; None where the clock ends the run.
    evaluations : int or None
        To come in them.
    evaluation_seconds : float
        Of one of these, as one micro-batch of it tells; metrics are not measured.
    total_seconds : float
        Of the steps and evaluations to come, without what metrics and the writing of checkpoints take.
    pool_bytes, resident_bytes : int
        The most that the pool of arrays, and the process as the system sees it, had so far; 0 where it does not tell.
    checkpoint_bytes : int
        Of one checkpoint, about.
    """

    parameters: int
    tokens: int
    seconds: float
    share: float | None
    steps: int | None
    evaluations: int | None
    evaluation_seconds: float
    total_seconds: float
    pool_bytes: int
    resident_bytes: int
    checkpoint_bytes: int


def rehearse(trainer: Trainer) -> Rehearsal:
    """Make a step, and where that is short a second one, and a piece of an evaluation."""
    done = trainer.step
    tokens, seconds, share = _step(trainer)
    if trainer.ranks.most(seconds < _LONG)[0] and trainer.step != trainer.steps:
        tokens, seconds, share = _step(trainer)
    evaluation = _evaluation(trainer)
    steps = None if trainer.steps is None else trainer.steps - done
    every = trainer.eval_every
    times = None if steps is None else max(1, (done + steps) // every - done // every if every else 1)
    total = math.inf if steps is None or times is None else steps * seconds + times * evaluation
    if trainer.max_seconds is not None:
        total = min(total, trainer.max_seconds)
    parts = [trainer.model.state_dict(), trainer.optimizer.state_dict()]
    if trainer.average is not None:
        parts.append(trainer.average.state_dict())
    return Rehearsal(
        parameters=sum(p.value.size for p in trainer.model.parameters()),
        tokens=tokens,
        seconds=seconds,
        share=share,
        steps=steps,
        evaluations=times,
        evaluation_seconds=evaluation,
        total_seconds=total,
        pool_bytes=memory.pool_peak(),
        resident_bytes=memory.resident_peak(),
        checkpoint_bytes=sum(array.nbytes for part in parts for array in part.values()),
    )


def _step(trainer: Trainer) -> tuple[int, float, float | None]:
    """Make a step; return its targets, its seconds and its share of the machine's ceiling."""
    lr = float(trainer.optimizer.lr if trainer.schedule is None else trainer.schedule(trainer.step))
    interrupt = Interrupt()  # never entered: Ctrl-C ends this at once
    start = time.perf_counter()
    result, least = counted(lambda: trainer._update(lr, interrupt))
    seconds = time.perf_counter() - start
    assert result is not None
    trainer.step += 1
    return result[1], seconds, None if least is None else least / seconds


def _evaluation(trainer: Trainer) -> float:
    """Return how long an evaluation takes."""
    held = trainer.validation
    if held is None or not len(held):
        return 0.0
    count = min(trainer.micro_batch, len(held))
    batch = held.samples(0, count)
    start = time.perf_counter()
    with trainer.averaged():
        trainer.model.infer_loss(batch)
    return (time.perf_counter() - start) * trainer.ranks.largest_share(len(held)) / count
