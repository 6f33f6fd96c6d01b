"""Ctrl-C, and the other signals that ask a process to end, between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any


class Terminated(KeyboardInterrupt):
    """A run ended because its process was asked to, by SIGTERM or a closed terminal.

    Parameters
    ----------
    number : int
        Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupt:
    """While entered, the first SIGINT, SIGTERM or SIGHUP only sets `asked`; the second raises at once.

    A SIGHUP that is ignored (nohup) stays so. Outside the main thread no signal can be handled, and it does nothing.

    Parameters
    ----------
    echo : float
        Seconds in which a second signal is taken for the first one: a terminal sends Ctrl-C to the ranks of a job and
        to their launcher, which passes it on.

    Attributes
    ----------
    asked : int
        Number of the first signal; 0 before one.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.asked = 0
        self._echo = echo
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                continue
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def error(self) -> KeyboardInterrupt:
        """Return what is to be raised when all is saved."""
        return KeyboardInterrupt() if self.asked in (0, signal.SIGINT) else Terminated(self.asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since >= self._echo:
            self.asked = number
            raise self.error()
        if not self.asked:
            self.asked, self._since = number, time.monotonic()
