"""Named stretches of time: the user's own, and calls of layers, which name themselves.

While no profile is on, nothing here runs: the methods of layers are wrapped when a profile begins to record, and put
back when it ends.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from numformer import _core

Label = Callable[[Any, str], str]


class Device(Protocol):
    """Who measures on another device while a profile is on, and names ranges there."""

    def begin(self) -> None:
        """Record from now on; what was recorded is forgotten."""
        ...

    def end(self) -> list[str]:
        """Record no longer and return the lines of a table."""
        ...

    def push(self, label: str) -> None:
        """Begin a range."""
        ...

    def pop(self) -> None:
        """End the innermost range."""
        ...


_lock = threading.RLock()
_device: Device | None = None
_on = False
_traced: list[tuple[weakref.ref[type], tuple[str, ...], Label]] = []
_originals: list[tuple[type, str, Any]] = []
_cleanups: list[Callable[[], None]] = []
_innermost = threading.local()  # the object whose method made the innermost range of a thread


class range:
    """A named stretch of time, for profiles; ranges nest. Without a profile it does nothing.

    Parameters
    ----------
    label : str
        Its name. A range that has one name for each of many steps ("step 1", "step 2") makes as many lines.

    Raises
    ------
    TypeError
        If `label` is not a string.

    Examples
    --------
    >>> import numpy as np, numformer as nf
    >>> with nf.profile() as p, nf.profile.range("warm"):
    ...     _ = nf.softmax(np.ones(8))
    >>> p.records()["layer"].tolist()
    ['warm']
    """

    __slots__ = ("_label", "_token")

    def __init__(self, label: str) -> None:
        if not isinstance(label, str):
            raise TypeError(f"profile.range: label must be a str, got {type(label).__name__}")
        self._label = label
        self._token = -1

    def __enter__(self) -> range:
        if _on:
            self._token = _enter(self._label)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token >= 0:
            _leave(self._token)
            self._token = -1


def trace(cls: type, methods: tuple[str, ...], label: Label, *, cleanup: Callable[[], None] | None = None) -> None:
    """Make calls of a class's methods ranges while a profile is on.

    Parameters
    ----------
    cls : type
        Only methods that it defines itself are wrapped; those of its bases belong to the bases.
    methods : tuple of str
        Their names.
    label : callable
        From the object and the name of the method to the label of the range.
    cleanup : callable, optional
        Called when the profile ends.
    """
    with _lock:
        _traced.append((weakref.ref(cls), methods, label))
        if cleanup is not None and cleanup not in _cleanups:
            _cleanups.append(cleanup)
        if _on:
            _wrap(cls, methods, label)


def watch(device: Device) -> None:
    """Have another device measured too, from now on and in profiles to come."""
    global _device
    with _lock:
        _device = device
        if _on:
            device.begin()


def _enter(label: str) -> int:
    if _device is not None:
        _device.push(label)
    return _core.profile_enter(label)


def _leave(token: int) -> None:
    _core.profile_leave(token)
    if _device is not None:
        _device.pop()


def _wrap(cls: type, methods: tuple[str, ...], label: Label) -> None:
    for name in methods:
        function = cls.__dict__.get(name)
        if callable(function):
            _originals.append((cls, name, function))
            setattr(cls, name, _with_range(function, name, label))


def _with_range(function: Any, name: str, label: Label) -> Any:
    @functools.wraps(function)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        outer = getattr(_innermost, "owner", None)
        if outer is self:  # a method that calls another of its own object: one range
            return function(self, *arguments, **options)
        _innermost.owner = self
        token = _enter(label(self, name))
        try:
            return function(self, *arguments, **options)
        finally:
            _leave(token)
            _innermost.owner = outer

    return call


def begin() -> None:
    """Name layers from now on."""
    global _on
    with _lock:
        if _on:
            return
        _on = True
        clear()
        _traced[:] = [entry for entry in _traced if entry[0]() is not None]
        for reference, methods, label in _traced:
            cls = reference()
            if cls is not None:
                _wrap(cls, methods, label)


def clear() -> None:
    """Forget what was measured on another device."""
    if _device is not None:
        _device.begin()


def end() -> list[str]:
    """Put the methods back; return the table of what was measured on another device, line by line."""
    global _on
    with _lock:
        _on = False
        while _originals:
            setattr(*_originals.pop())
        for cleanup in _cleanups:
            cleanup()
        return [] if _device is None else _device.end()
