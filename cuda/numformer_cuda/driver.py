"""What the CUDA driver says of the machine, asked through its C interface: no CuPy, and no context on the GPU."""

import ctypes
import sys
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CAPABILITY = (8, 0)
"""The oldest devices that there are kernels for."""

_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76  # of cuDeviceGetAttribute: the compute capability


class Unusable(Exception):
    """Why nothing can run on a GPU here."""


def library() -> Any:
    """Load the driver's library; OSError where there is none."""
    return ctypes.CDLL(LIBRARY)


def text_of(version: int) -> str:
    """Return a version of CUDA as it is written: 13000 is 13.0."""
    return f"{version // 1000}.{version % 1000 // 10}"


def query(runtime: int) -> dict[str, Any]:
    """Return driver and device.

    Parameters
    ----------
    runtime : int
        Version of CUDA that the driver has to support; of the same major version an older one does.

    Raises
    ------
    Unusable
        Where there is no driver, no device, or one of them is too old; the message says which.
    """
    try:
        cuda = library()
    except OSError as error:
        raise Unusable(f"there is no NVIDIA driver ({error})") from None
    version = ctypes.c_int(0)
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        raise Unusable("the NVIDIA driver does not say its version")
    if version.value // 1000 < runtime // 1000:
        raise Unusable(
            f"the NVIDIA driver is too old: it supports CUDA {text_of(version.value)}, and {text_of(runtime)} is needed"
        )
    status = cuda.cuInit(0)
    if status not in (0, _NO_DEVICE):
        raise Unusable(f"the NVIDIA driver cannot be initialised (error {status})")
    count = ctypes.c_int(0)
    if status == _NO_DEVICE or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        raise Unusable("there is a driver, but no NVIDIA GPU that this process may use")
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    if cuda.cuDeviceGet(ctypes.byref(device), 0) != 0 or cuda.cuDeviceGetName(name, len(name), device) != 0:
        raise Unusable("the NVIDIA driver does not give its first device")
    capability = tuple(_attribute(cuda, which, device) for which in (_MAJOR, _MINOR))
    shown = ".".join(map(str, capability))
    device_name = name.value.decode(errors="replace")
    if capability < CAPABILITY:
        needed = ".".join(map(str, CAPABILITY))
        raise Unusable(f"{device_name} is too old: its compute capability is {shown}, and {needed} is needed")
    return {"device": device_name, "capability": shown, "devices": count.value, "driver": text_of(version.value)}


def identities() -> list[str]:
    """Return the UUID of each device that this process sees, of a part of one where it is divided."""
    cuda, count = library(), ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        raise Unusable("the NVIDIA driver does not give its devices")
    found = []
    for number in range(count.value):
        device, uuid = ctypes.c_int(0), (ctypes.c_ubyte * 16)()
        if cuda.cuDeviceGet(ctypes.byref(device), number) != 0 or cuda.cuDeviceGetUuid_v2(uuid, device) != 0:
            raise Unusable(f"the NVIDIA driver does not say which device {number} is")
        found.append(bytes(uuid).hex())
    return found


def _attribute(cuda: Any, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int(0)
    if cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device) != 0:
        raise Unusable("the NVIDIA driver does not say what its device can do")
    return value.value
