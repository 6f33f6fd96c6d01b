"""Time for memory: a block that keeps its inputs only, and runs forward once more in its backward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from numformer.nn.backward import Backward, take

Call = TypeVar("Call", bound=Callable[..., Any])


def recomputable(call: Call) -> Call:
    """Let the ``__call__`` of a module obey `Context.recompute`.

    The second forward pass has the bits of the first: kernels are deterministic, and dropout draws its masks by where
    they are. So gradients do not change (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
    """

    @functools.wraps(call)
    def run(module: Any, *inputs: Any, ctx: Any = None, **options: Any) -> Any:
        if ctx is None or not ctx.recompute:
            return call(module, *inputs, ctx=ctx, **options)
        again = functools.partial(call, module, *inputs, ctx=replace(ctx, recompute=False), **options)
        parameters = list(module.named_parameters().values())
        before = [parameter.pending for parameter in parameters]
        y = again()[0]
        uses = [(p, p.pending - count) for p, count in zip(parameters, before, strict=True)]
        return y, Backward(_backward, [again, uses])

    return run  # type: ignore[return-value]


def _backward(saved: list[Any], *gradients: Any, **options: Any) -> Any:
    again, uses = take(saved)
    for parameter, count in uses:  # they are counted again
        parameter.pending -= count
    backward = again()[1]
    del again
    return backward(*gradients, **options)
