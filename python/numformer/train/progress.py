"""What a training run says while it runs."""

from __future__ import annotations

import sys
import time
from typing import Any


class Silent:
    """Says nothing."""

    def begin(self, steps: int | None, done: int) -> None:
        """Begin a run; nobody knows the number of steps of one that ends by the clock."""

    def step(self, row: dict[str, Any]) -> None:
        """Say that a step is over.

        `row` is that of the log, with tokens_per_second, seconds_left and share, that of the machine's ceiling or None.
        """

    def say(self, step: int, text: str) -> None:
        """Show a sample of text."""

    def end(self) -> None:
        """End the run, however it went."""


class Lines(Silent):
    """A plain line now and then, for logs and pipes."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.steps: int | None = 0
        self._next = 0.0

    def begin(self, steps: int | None, done: int) -> None:
        """Note the number of steps."""
        self.steps = steps

    def step(self, row: dict[str, Any]) -> None:
        """Print a line after each evaluation, at the end, and when the last one is old."""
        now = time.monotonic()
        if now < self._next and not _evaluation(row) and row["step"] != self.steps:
            return
        self._next = now + self.seconds
        of = "" if self.steps is None else f"/{self.steps}"
        left = _clock(row["seconds_left"])
        print(
            f"step {row['step']}{of}  loss {row['loss']:.4f}{_evaluation(row)}  {_speed(row)}  {left} left",
            flush=True,
        )

    def say(self, step: int, text: str) -> None:
        """Print it."""
        print(_sample(step, text), flush=True)


class Bar(Silent):
    """A bar with loss, learning rate, tokens a second, share of the machine's ceiling and the time left.

    The training thread draws it, twice a second.
    """

    def begin(self, steps: int | None, done: int) -> None:
        """Draw it."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._validation = ""
        self._next = 0.0
        self._steps = steps
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            auto_refresh=False,
        )
        self._task = self._progress.add_task("training", total=steps, completed=done, numbers="")
        self._progress.start()

    def step(self, row: dict[str, Any]) -> None:
        """Draw it again, when it is time."""
        self._validation = _evaluation(row) or self._validation
        now = time.monotonic()
        if now < self._next and row["step"] != self._steps:
            return
        self._next = now + 0.5
        numbers = f"loss {row['loss']:.4f}{self._validation}  {_speed(row)}  {_clock(row['seconds_left'])} left"
        self._progress.update(self._task, completed=row["step"], numbers=numbers, refresh=True)

    def say(self, step: int, text: str) -> None:
        """Print it above the bar."""
        self._progress.console.print(_sample(step, text), markup=False, emoji=False, highlight=False)

    def end(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def choose(progress: bool | Silent) -> Silent:
    """Return who speaks: a bar on a terminal, else lines; nobody for False."""
    if isinstance(progress, Silent):
        return progress
    if not progress:
        return Silent()
    return Bar() if sys.stdout.isatty() else Lines()


def _evaluation(row: dict[str, Any]) -> str:
    """What was measured at this step."""
    loss = row.get("validation_loss")
    said = "" if loss is None else f"  validation {loss:.4f}"
    return said + "".join(f"  {name} {value:.2f}" for name, value in row.get("metrics", {}).items())


def _speed(row: dict[str, Any]) -> str:
    """Learning rate, tokens a second, and how much of the machine that is."""
    share = row.get("share")
    of = "" if share is None else f"  {share:.0%} of peak"
    return f"lr {row['lr']:.2e}  {row['tokens_per_second']:,.0f} tokens/s{of}"


def _sample(step: int, text: str) -> str:
    return f"-- sample after step {step}\n{text}\n--"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
