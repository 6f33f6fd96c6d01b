"""Errors of CUDA get their name where they surface: where one waits, copies, or asks for memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cupy

from numformer_cuda import DeviceError

CUDA: Any = cupy.cuda.runtime.CUDARuntimeError


def device_error(error: Exception) -> DeviceError:
    """Return CuPy's error by our name."""
    return DeviceError(f"the GPU reports an error, perhaps of an earlier call: {error}")


@contextmanager
def named() -> Iterator[None]:
    """Raise what goes wrong inside by its name."""
    try:
        yield
    except CUDA as error:
        raise device_error(error) from error
