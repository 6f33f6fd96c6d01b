"""The second half of a layer call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numformer import profiling
from numformer.nn import naming


class Backward:
    """A backward pass that runs once and then holds nothing.

    Parameters
    ----------
    function : callable
        Called as ``function(saved, *gradients, **options)``. It takes the arrays out of `saved` with :func:`take`, so
        that each lives no longer than the function needs it.
    saved : list
        What the forward pass kept.
    again : callable, optional
        Makes the layer's result once more, with the same bits, from what is in `saved` anyway and for much less than a
        product costs. A layer that needs the result in its own backward can keep this instead; see :func:`value`.
    """

    __slots__ = ("_function", "_saved", "again")

    def __init__(self, function: Callable[..., Any], saved: list[Any], again: Callable[[], Any] | None = None) -> None:
        self._function: Callable[..., Any] | None = function
        self._saved: list[Any] | None = saved
        self.again = again

    def __call__(self, *gradients: Any, **options: Any) -> Any:
        """Return the gradients of the inputs; RuntimeError the second time."""
        function, saved = self._function, self._saved
        if function is None:
            raise RuntimeError("backward: it has run already; call the layer again for another one")
        self._function = self._saved = self.again = None
        return function(saved, *gradients, **options)


profiling.trace(Backward, ("__call__",), naming.backward_label)


def take(saved: list[Any]) -> tuple[Any, ...]:
    """Empty the list and return what was in it."""
    items = tuple(saved)
    saved.clear()
    return items


def value(kept: Any) -> Any:
    """Return an array that was kept, or make it again where what makes it was kept instead."""
    return kept() if callable(kept) else kept


def chain(saved: list[Any], gradient: Any = 1.0) -> Any:
    """Run backward what ran forward one after the other: the function of a :class:`Backward`."""
    while saved:
        gradient = saved.pop()(gradient)
    return gradient
