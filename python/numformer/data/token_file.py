"""Files of tokens, for corpora that are larger than memory: written as they come, read where they are."""

from __future__ import annotations

import errno
import json
import mmap
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from numformer import files
from numformer.files import DamagedError

Array = NDArray[Any]

SUFFIX = ".tokens"
_KIND = "numformer tokens 1"
_BLOCK = 1 << 20
_LARGEST = 2**63 - 1


class TokenFile:
    """Tokens of documents one after another, in a file that is mapped and not read.

    It is a safetensors file: `tokens` are unsigned integers of 8, 16 or 32 bits, by the size of the vocabulary;
    `documents` the places where documents begin, and the total. Its metadata have the vocabulary and checksums.
    Opening reads the header and the places and believes neither before they are checked; tokens are checked when they
    are used, and all of them by :meth:`verify`.

    Parameters
    ----------
    path : path
        Of the file. Nobody may cut it while it is open: the system ends a process that reads a page that is gone.

    Attributes
    ----------
    tokens : (total,) array
        Read-only, as the file has it.
    documents : (documents + 1,) array of int64
        Document i is ``tokens[documents[i] : documents[i + 1]]``.
    vocab_size : int
        Tokens are below it.
    end : int or None
        The token at the end of each document, where there is one.
    tokenizer : str or None
        What tokenizer.json of the vocabulary holds.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    DamagedError
        A ValueError: the file is cut, altered, or something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        tensors, metadata = files.read_tensors(self.path, mapped=True)
        try:
            text = metadata["numformer"]
            notes = json.loads(text)
            if not isinstance(notes, dict) or notes["kind"] != _KIND:
                raise ValueError("it is of another kind")
            tokens, documents = tensors["tokens"], tensors["documents"]
            if metadata["seal"] != _seal(text, tokens.dtype.name, tokens.shape, documents.shape):
                raise ValueError("its header was altered")
            self._check(tokens, documents, notes)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise DamagedError(f"{self.path}: damaged, or no file of tokens ({why})") from None
        self.tokens = tokens
        self.documents = documents.view(np.int64)
        self.vocab_size, self.end, self.tokenizer = notes["vocab_size"], notes["end"], notes["tokenizer"]
        self._sums = notes["crc32"]
        self._mapping, self._offset = _mapping(tokens)

    @staticmethod
    def _check(tokens: Array, documents: Array, notes: Mapping[str, Any]) -> None:
        size, end = notes["vocab_size"], notes["end"]
        if not _whole(size) or not 1 <= size <= 2**32:
            raise ValueError(f"vocab_size is {size!r:.30}")
        if end is not None and not (_whole(end) and 0 <= end < size):
            raise ValueError(f"end is {end!r:.30}, and the vocabulary has {size} tokens")
        if not isinstance(notes["tokenizer"], str | None):
            raise ValueError("its tokenizer is no text")
        sums = notes["crc32"]
        if not isinstance(sums, dict) or not all(_whole(sums[name]) for name in ("tokens", "documents")):
            raise ValueError("it has no checksums")
        if tokens.dtype != token_dtype(size) or tokens.ndim != 1:
            raise ValueError(f"tokens are {tokens.dtype} of shape {tokens.shape}, and the vocabulary has {size}")
        if documents.dtype != np.uint64 or documents.ndim != 1 or not len(documents):
            raise ValueError(f"documents are {documents.dtype} of shape {documents.shape}")
        if documents[0] != 0 or documents[-1] != len(tokens):
            raise ValueError(
                f"documents run from {documents[0]} to {documents[-1]}, and there are {len(tokens)} tokens"
            )
        for first in range(0, len(documents) - 1, _BLOCK):
            piece = documents[first : first + _BLOCK + 1]
            if (piece[1:] < piece[:-1]).any():
                raise ValueError("a document begins before the one in front of it")

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.documents) - 1

    def __getitem__(self, index: int) -> Array:
        """Return the tokens of a document, a view of the file."""
        number = range(len(self))[index]
        return self.tokens[self.documents[number] : self.documents[number + 1]]

    def advise(self, start: int, stop: int) -> None:
        """Have the system read these tokens from the disk, without waiting for them."""
        if self._mapping is None:
            return
        first = (self._offset + start * self.tokens.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
        last = min(self._offset + stop * self.tokens.itemsize, len(self._mapping))
        if first < last:
            self._mapping.madvise(mmap.MADV_WILLNEED, first, last - first)

    def verify(self, progress: Callable[[int], None] | None = None) -> None:
        """Read all of the file and compare its checksums.

        Parameters
        ----------
        progress : callable, optional
            Called with the bytes that were read so far.

        Raises
        ------
        DamagedError
            A ValueError: a token or a place is not what was written.
        """
        done = 0
        for name, values in (("tokens", self.tokens), ("documents", self.documents)):
            bytes_of, total = values.view(np.uint8), 0
            for first in range(0, len(bytes_of), 8 * _BLOCK):
                piece = bytes_of[first : first + 8 * _BLOCK]
                total = zlib.crc32(piece.data, total)
                done += len(piece)
                if progress is not None:
                    progress(done)
            if total != self._sums[name]:
                raise DamagedError(
                    f"{self.path}: damaged, the checksum of its {name} is {total:08x} and should be "
                    f"{self._sums[name]:08x}"
                )


def _mapping(array: Array) -> tuple[mmap.mmap | None, int]:
    """Return the mapping that an array is a view of, where the system takes advice on it, and the place in it."""
    base: Any = array
    while isinstance(base, np.ndarray):
        whole, base = base, base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
        return None, 0
    # `whole` ends where the file ends, wherever it begins.
    end = whole.__array_interface__["data"][0] + whole.nbytes
    return base, len(base) - (end - array.__array_interface__["data"][0])


def is_token_file(path: str | Path) -> bool:
    """Whether a file is one of tokens, whole or not: by its name, or as it begins like none of text."""
    path = Path(path)
    if path.suffix == SUFFIX:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(9)
    return len(begin) == 9 and begin[7] == 0 and begin[8:] == b"{"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint8, uint16 and uint32 that holds the tokens of a vocabulary."""
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32)


def write_tokens(
    path: str | Path,
    documents: Iterable[Array | tuple[Array, bool]],
    *,
    vocab_size: int,
    end: int | None = None,
    tokenizer: str | None = None,
) -> tuple[int, int]:
    """Write documents as they come; memory does not grow with them. The file appears when it is whole.

    Parameters
    ----------
    path : path
        Of the file.
    documents : iterable of integer arrays
        Tokens of a document each, or pieces of documents: (tokens, whether the document ends with them). Documents
        without tokens are left out.
    vocab_size : int
        Tokens are below it, up to 2**32.
    end : int, optional
        A token that is put behind each document.
    tokenizer : str, optional
        What tokenizer.json of the vocabulary holds.

    Returns
    -------
    documents, tokens : int
        How many were written.

    Raises
    ------
    TypeError, ValueError
        For tokens that are no integers, or out of range.
    OSError
        Where it cannot be written; what was there before stays.
    """
    path = Path(path)
    if not _whole(vocab_size) or not 1 <= vocab_size <= 2**32:
        raise ValueError(f"write_tokens: vocab_size must be between 1 and 2**32, got {vocab_size}")
    if end is not None and not (_whole(end) and 0 <= end < vocab_size):
        raise ValueError(f"write_tokens: end must be in [0, {vocab_size}), got {end}")
    notes = {"kind": _KIND, "vocab_size": vocab_size, "end": end, "tokenizer": tokenizer}
    room = len(_header(notes, _LARGEST, _LARGEST, 2**32 - 1, 2**32 - 1))  # the counts are known at the end only
    counts: tuple[int, int] = (0, 0)

    def write(beside: Path) -> None:
        nonlocal counts
        with beside.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as starts:
            file.write(b"\0" * room)
            body = _Body(file, starts, token_dtype(vocab_size), vocab_size, end)
            for item in documents:
                body.add(*(item if isinstance(item, tuple) else (item, True)))
            counts = body.close()
            file.seek(0)
            file.write(_header(notes, counts[1], counts[0] + 1, body.sum, body.places.sum, room))

    try:
        files.replace(path, write)
    except OSError as error:
        if error.filename is not None:  # of a file that is read
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    return counts


class _Sink:
    """A file that is written in order, with the checksum of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sum = 0

    def write(self, data: Any) -> None:
        self.sum = zlib.crc32(data, self.sum)
        self.file.write(data)


class _Body:
    """Tokens into one file, the places where documents begin into another, which is copied behind it."""

    def __init__(
        self, file: BinaryIO, starts: BinaryIO, dtype: np.dtype[Any], vocab_size: int, end: int | None
    ) -> None:
        self._file, self._starts = _Sink(file), _Sink(starts)
        self._dtype, self._vocab_size = dtype, vocab_size
        self._end = None if end is None else np.array([end], dtype).tobytes()
        self._places = array("Q", [0])
        self._total = self._begin = self._documents = 0

    @property
    def sum(self) -> int:
        """Checksum of the tokens."""
        return self._file.sum

    @property
    def places(self) -> _Sink:
        """Where documents begin."""
        return self._starts

    def add(self, ids: Array, over: bool) -> None:
        """Take tokens, and note whether the document ends with them."""
        ids = np.asarray(ids)
        if ids.size and ids.dtype.kind not in "iu":
            raise TypeError(f"write_tokens: documents must hold integers, got {ids.dtype}")
        if ids.ndim != 1:
            raise ValueError(f"write_tokens: a document must have shape (tokens,), got {ids.shape}")
        if ids.size:
            if not 0 <= int(ids.min()) <= int(ids.max()) < self._vocab_size:
                raise ValueError(
                    f"write_tokens: tokens must be in [0, {self._vocab_size}), got {ids.min()} to {ids.max()} in "
                    f"document {self._documents}"
                )
            self._file.write(ids.astype(self._dtype).data)
            self._total += len(ids)
        if over and self._total > self._begin:
            if self._end is not None:
                self._file.write(self._end)
                self._total += 1
            self._documents, self._begin = self._documents + 1, self._total
            self._places.append(self._total)
            if len(self._places) >= _BLOCK // 8:
                self._spill()

    def _spill(self) -> None:
        self._starts.write(self._places.tobytes())
        self._places = array("Q")

    def close(self) -> tuple[int, int]:
        """End the last document and copy the places; return how many documents and tokens there are."""
        self.add(np.zeros(0, self._dtype), True)
        self._spill()
        out, places = self._file.file, self._starts.file
        out.write(b"\0" * (-self._total * self._dtype.itemsize % 8))  # so that the places are aligned
        places.seek(0)
        while piece := places.read(_BLOCK):
            out.write(piece)
        return self._documents, self._total


def _header(
    notes: Mapping[str, Any], tokens: int, places: int, sum_tokens: int, sum_places: int, room: int = 0
) -> bytes:
    """Return all in front of the tokens, filled up to `room` bytes: its length, then JSON, as safetensors has it."""
    dtype = token_dtype(notes["vocab_size"])
    end = tokens * dtype.itemsize
    gap = -end % 8
    text = json.dumps({**notes, "crc32": {"tokens": sum_tokens, "documents": sum_places}}, separators=(",", ":"))
    header: dict[str, Any] = {
        "__metadata__": {"numformer": text, "seal": _seal(text, dtype.name, (tokens,), (places,))},
        "tokens": {"dtype": f"U{8 * dtype.itemsize}", "shape": [tokens], "data_offsets": [0, end]},
        "documents": {"dtype": "U64", "shape": [places], "data_offsets": [end + gap, end + gap + 8 * places]},
    }
    if gap:
        header["padding"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
    body = json.dumps(header, separators=(",", ":")).encode()
    body = body.ljust(max(room - 8, -(-len(body) // 8) * 8))
    return len(body).to_bytes(8, "little") + body


def _seal(text: str, dtype: str, tokens: tuple[int, ...], places: tuple[int, ...]) -> str:
    return f"{zlib.crc32(json.dumps([text, dtype, list(tokens), list(places)]).encode()):08x}"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
