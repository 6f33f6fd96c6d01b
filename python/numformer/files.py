"""Files that are whole or absent: written beside, flushed to the disk, then renamed; tensors have a checksum."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHECKSUM = "crc32"
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


class DamagedError(ValueError):
    """A file that is cut short, altered, or of another format."""


def replace(path: Path, write: Callable[[Path], None], ready: Callable[[Path], None] | None = None) -> None:
    """Let `write` make a file beside `path`, then put it in its place; on an error nothing of it stays.

    Parameters
    ----------
    path : path
        Of the file.
    write : callable
        Writes the file whose path it is given.
    ready : callable, optional
        Called with that path when all of the file is on the disk and before it gets its name.
    """
    beside = _beside(path)
    try:
        write(beside)
        _flush(beside)
        if ready is not None:
            ready(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":
        _flush(path.parent)  # the new name itself


def link(source: Path, target: Path) -> None:
    """Give a file a second name, in the place of what had it; a copy where the file system has no links."""
    beside = _beside(target)
    try:
        beside.unlink(missing_ok=True)
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)
            _flush(beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)  # os.replace leaves it where both names are of one file already


def sweep(path: Path) -> None:
    """Remove what processes that were killed left beside `path`."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""

    def write(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    replace(path, write)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
    ready: Callable[[Path], None] | None = None,
) -> None:
    """Write a safetensors file, with a checksum of all that is in it among its metadata.

    The arrays are written from where they are, without a copy.

    Raises
    ------
    OSError
        Where it cannot be written; the message has the path, and what was there before is untouched.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.name not in _NAMES:
            raise TypeError(f"{path}: {name} must have a dtype of safetensors, got {array.dtype}")
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": {**metadata, CHECKSUM: checksum(arrays, metadata)}}
    offset = 0
    for name in order:
        array = arrays[name]
        end = offset + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name in order:
                file.write(_bytes(arrays[name]))

    try:
        replace(path, write, ready)
    except OSError as error:
        # A failing write names no file.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def checksum(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> str:
    """Return the CRC-32, in hexadecimal, of metadata, names, dtypes, shapes and the CRC-32 of each tensor's bytes."""
    parts: list[Any] = [sorted((name, text) for name, text in metadata.items() if name != CHECKSUM)]

    def part(name: str) -> list[Any]:
        array = np.asarray(tensors[name], order="C")
        return [name, array.dtype.name, list(array.shape), zlib.crc32(_bytes(array))]

    if sum(array.nbytes for array in tensors.values()) < 2**24:
        parts += map(part, sorted(tensors))
    else:
        from concurrent.futures import ThreadPoolExecutor  # for large files only

        with ThreadPoolExecutor() as pool:  # zlib lets go of the interpreter's lock
            parts += pool.map(part, sorted(tensors))
    return f"{zlib.crc32(json.dumps(parts).encode()):08x}"


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def read_tensors(path: Path, *, sealed: bool = False, mapped: bool = False) -> tuple[dict[str, Array], dict[str, str]]:
    """Read a safetensors file and its metadata.

    Parameters
    ----------
    path : path
        Of the file.
    sealed : bool
        Whether it must have a checksum; files of others have none.
    mapped : bool
        Whether the tensors are read-only views of the file instead of copies: what is not looked at costs nothing.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    DamagedError
        A ValueError: the file is cut short, or its checksum, where it has one, is not that of what it holds.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            tensors = _map(path, names) if mapped else {name: file.get_tensor(name) for name in names}
            metadata = dict(file.metadata() or {})
    except DamagedError:
        raise
    except (SafetensorError, ValueError) as error:  # ValueError: NumPy has no array of such a shape
        raise DamagedError(f"{path}: damaged or cut short, not a whole safetensors file ({error})") from error
    expected = metadata.pop(CHECKSUM, None)
    if (sealed or expected is not None) and expected != (found := checksum(tensors, metadata)):
        raise DamagedError(f"{path}: damaged, its checksum is {found} and should be {expected}")
    return tensors, metadata


def _map(path: Path, names: list[str]) -> dict[str, Array]:
    """Map a file whose header was found to be right: offsets fit the shapes, lie within the file and do not overlap."""
    import ml_dtypes

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        every = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)[8 + length :]
    kinds = {theirs: ours for ours, theirs in _NAMES.items()}
    tensors = {}
    for name in names:
        kind, (begin, end) = header[name]["dtype"], header[name]["data_offsets"]
        if kind not in kinds:
            raise DamagedError(f"{path}: {name} has the dtype {kind}, which is none of {', '.join(kinds)}")
        dtype = np.dtype(ml_dtypes.bfloat16 if kind == "BF16" else kinds[kind])
        tensors[name] = every[begin:end].view(dtype).reshape(header[name]["shape"])
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, without its tensors; DamagedError where it is no whole file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise DamagedError(f"{path}: damaged or cut short, not a whole safetensors file ({error})") from error
