"""Capsules of DLPack made by hand, from the structures that its page describes: honest ones and others."""

import ctypes
from typing import Any

import numpy as np

_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_api.PyCapsule_GetName.restype = ctypes.c_char_p
_api.PyCapsule_GetName.argtypes = [ctypes.py_object]
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]

CODES = {"i": 0, "u": 1, "f": 2, "V": 4, "c": 5, "b": 6}
IS_COPIED = 2  # bit 0 is that of memory that may only be read


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", DELETER))


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


class Producer:
    """Something that has `__dlpack__`; `deleted` counts how often its memory was given back.

    `changes` overwrites fields of the structures: those of the tensor, "major", "flags", and lists for "shape" and
    "strides" (None: no strides).
    """

    def __init__(self, array: Any, *, versioned: bool = True, device: Any = (1, 0), **changes: Any) -> None:
        self.array, self.versioned, self.device, self.deleted = array, versioned, device, 0
        kind = "V" if array.dtype.name == "bfloat16" else array.dtype.kind
        fields: dict[str, Any] = {
            "data": array.ctypes.data,
            "device_type": 1,
            "device_id": 0,
            "ndim": array.ndim,
            "code": CODES[kind],
            "bits": array.itemsize * 8,
            "lanes": 1,
            "shape": list(array.shape),
            "strides": [s // array.itemsize for s in array.strides],
            "byte_offset": 0,
        }
        outer = {"major": 1, "minor": 0, "flags": 0} if versioned else {}
        outer |= {name: changes.pop(name) for name in list(changes) if name in outer}
        fields |= changes
        for name in ("shape", "strides"):
            values = fields.pop(name)
            setattr(self, f"_{name}", None if values is None else (ctypes.c_int64 * max(1, len(values)))(*values))
        tensor = DLTensor(**fields)
        for name in ("shape", "strides"):
            values = getattr(self, f"_{name}")
            if values is not None:
                setattr(tensor, name, ctypes.cast(values, ctypes.POINTER(ctypes.c_int64)))
        self._deleter = DELETER(self._count)
        structure = ManagedVersioned if versioned else Managed
        self._managed = structure(tensor=tensor, deleter=self._deleter, **outer)

    def _count(self, pointer: int) -> None:
        self.deleted += 1

    @property
    def name(self) -> bytes:
        return b"dltensor_versioned" if self.versioned else b"dltensor"

    def capsule(self) -> Any:
        return _api.PyCapsule_New(ctypes.addressof(self._managed), self.name, None)

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        return self.capsule()


def name_of(capsule: Any) -> bytes:
    return _api.PyCapsule_GetName(capsule)


def flags_of(capsule: Any) -> int:
    """Those of a capsule of version 1."""
    return int(ManagedVersioned.from_address(_api.PyCapsule_GetPointer(capsule, b"dltensor_versioned")).flags)


class Old(Producer):
    """From before version 1: knows no options."""

    def __init__(self, array: Any, **changes: Any) -> None:
        super().__init__(array, versioned=False, **changes)

    def __dlpack__(self) -> Any:
        return self.capsule()


def address(array: Any) -> int:
    return np.asarray(array).ctypes.data
