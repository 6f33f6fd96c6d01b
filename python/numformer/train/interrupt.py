"""Ctrl-C, and the other signals that ask a process to end, between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
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
    """

    def __init__(self) -> None:
        self.asked = False
        self._number = signal.SIGINT
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
        return KeyboardInterrupt() if self._number == signal.SIGINT else Terminated(self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._number = signal.Signals(number)
        if self.asked:
            raise self.error()
        self.asked = True
