"""numformer on a GPU: the same functions, on CuPy's arrays (experimental).

`numformer` imports this package when a call has an array on a GPU; nothing has to be imported here for that. Results
are arrays of CuPy's pool, everything runs on CuPy's current stream, and nothing waits for the GPU but what has to: a
number that Python asks for, an array that is copied to the processor, and :func:`synchronize`.
"""

from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import numformer

from numformer_cuda import driver

__all__ = ["DeviceError", "__version__", "status", "synchronize"]

try:
    __version__ = metadata.version("numformer-cuda")
except metadata.PackageNotFoundError:  # in the source tree
    __version__ = numformer.__version__

CUDA = 12040
"""The oldest version of CUDA that the kernels are compiled with, where the native module does not say its own."""


class DeviceError(RuntimeError):
    """Something that was computed on the GPU failed, perhaps in an earlier call: calls do not wait for their result.

    Memory that does not suffice is a MemoryError instead, of the call that asked for it.
    """


def status() -> dict[str, Any]:
    """Return whether this package is usable here, which device and versions there are, and if it is not, the reason.

    Neither CuPy is imported nor a context made on the GPU to find out.

    Returns
    -------
    dict
        "usable", "version" and "reason", which is None where it is usable; "device", "capability", "devices",
        "driver" and "runtime" as far as they are known.
    """
    found: dict[str, Any] = {"usable": False, "reason": None, "version": __version__}
    if __version__ != numformer.__version__:
        reason = f"numformer-cuda {__version__} goes with numformer {__version__}, and this is {numformer.__version__}"
        return found | {"reason": reason}
    if find_spec("cupy") is None:
        return found | {"reason": "CuPy is not installed (pip install 'numformer[cuda]')"}
    try:
        runtime = getattr(import_module("numformer_cuda._core"), "runtime_version", 0) or CUDA
    except ImportError as error:
        return found | {"reason": f"its native module cannot be loaded: {error}"}
    found["runtime"] = driver.text_of(runtime)
    try:
        found |= driver.query(runtime)
    except driver.Unusable as error:
        return found | {"reason": str(error)}
    return found | {"usable": True}


def synchronize() -> None:
    """Wait until all that was launched on the current stream is done.

    Raises
    ------
    DeviceError
        Where something of it failed.
    """
    from numformer_cuda import arrays, errors

    with errors.named():
        arrays.namespace.cuda.get_current_stream().synchronize()
