"""Documents out of files of any size: read, cut and turned into tokens piece by piece."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from numformer.data.pairs import grows, most_of_gzip

Array = NDArray[Any]
Piece = tuple[str, bool]
"""A piece of a document, and whether the document ends with it."""

SPLITS = ("file", "line", "separator", "jsonl")
_CHUNK = 1 << 20
_PIECE = 1 << 16
_LINE = 1 << 28
"""The longest line of a JSON lines file, in characters: it is one value, so it cannot be read in pieces."""
_BATCH = 1 << 20
"""Characters that are turned into tokens at once."""


def read_documents(
    paths: Iterable[str | Path],
    *,
    split: str = "file",
    separator: str = "<|endoftext|>",
    progress: Callable[[int], None] | None = None,
) -> Iterator[Piece]:
    """Read UTF-8 files, gzip too, as pieces of documents; memory does not grow with them.

    Parameters
    ----------
    paths : paths
        Of the files, one after the other.
    split : {"file", "line", "separator", "jsonl"}
        What a document is: a file, a line, what is between lines that are `separator`, or the string "text" of a JSON
        object on a line. Line ends around documents are no part of them; documents of white space only are left out.
    separator : str
        Such a line.
    progress : callable, optional
        Called with the number of bytes that were read on, compressed ones where the file is.

    Raises
    ------
    OSError
        Where a file cannot be read; the message names it.
    ValueError
        Where a file is not UTF-8, is a gzip file that is damaged or grows more than a hundredfold, or has a line that
        is no JSON object with a text.
    """
    if split not in SPLITS:
        raise ValueError(f"read_documents: split must be {', '.join(SPLITS)}, got {split!r}")
    if "\n" in separator:
        raise ValueError("read_documents: separator must be one line")
    for path in map(Path, paths):
        fragments = _fragments(path, progress)
        if split == "line":
            fragments = _by_line(fragments)
        elif split == "separator":
            fragments = _between(fragments, separator)
        elif split == "jsonl":
            fragments = _values(fragments, path)
        yield from _trimmed(fragments)


def _fragments(path: Path, progress: Callable[[int], None] | None) -> Iterator[Piece]:
    """Decode a file; the last fragment, which may be empty, ends it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
        first, before = True, 0
        while True:
            try:
                chunk = stream.read(_CHUNK)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: a damaged gzip file ({error})") from error
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                byte, place = error.object[error.start], done - waiting + error.start
                raise ValueError(f"{path}: not UTF-8 text (byte {byte:#04x} at position {place})") from None
            done += len(chunk)
            if packed and done > (most := most_of_gzip(raw.tell())):
                raise grows(str(path), most)
            if progress is not None:
                progress(raw.tell() - before)
                before = raw.tell()
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            yield text, not chunk
            if not chunk:
                return


def _by_line(fragments: Iterator[Piece]) -> Iterator[Piece]:
    """Make each line a document."""
    for text, over in fragments:
        *whole, rest = text.split("\n")
        for line in whole:
            yield line, True
        yield rest, over


def _lines(fragments: Iterator[Piece], longest: int) -> Iterator[Piece]:
    """Give whole lines with their ends, and those that are longer than `longest` in pieces; (line, whether it ends)."""
    held = ""
    for text, over in fragments:
        held += text
        *whole, held = held.split("\n")
        for line in whole:
            yield line + "\n", True
        if over or len(held) > longest:
            if held:
                yield held, over
            held = ""


def _between(fragments: Iterator[Piece], separator: str) -> Iterator[Piece]:
    """Make what is between two separators a document."""
    begins = True  # whether this is the beginning of a line
    for line, ends in _lines(fragments, max(_PIECE, len(separator) + 2)):
        if begins and ends and line.removesuffix("\n").removesuffix("\r") == separator:
            yield "", True
        else:
            yield line, False
        begins = ends
    yield "", True


def _values(fragments: Iterator[Piece], path: Path) -> Iterator[Piece]:
    """Make the text of each line's object a document."""
    for number, (line, ends) in enumerate(_lines(fragments, _LINE), 1):
        if not ends:
            raise ValueError(f"{path}: line {number} has more than {_LINE:,} characters")
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error})") from None
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise ValueError(f'{path}: line {number} is no object with a string "text"')
        yield text, True


def _trimmed(fragments: Iterator[Piece]) -> Iterator[Piece]:
    """Take line ends away around documents, and leave out those of white space only."""
    begun, kept = False, []
    for text, over in fragments:
        if not begun:
            kept.append(text)
            if text.isspace() or not text:
                if over:
                    kept = []
                continue
            text, kept, begun = "".join(kept).lstrip("\r\n"), [], True
        else:
            text = "".join([*kept, text])
            kept = []
        inner = text.rstrip("\r\n")
        if over:
            yield inner, True
            begun = False
        else:
            kept = [text[len(inner) :]]  # line ends that may be the last
            yield inner, False


def cut(pieces: Iterable[Piece], *, size: int = _PIECE) -> Iterator[Piece]:
    """Cut and join pieces to about `size` characters, at places where that changes no token.

    That is before a space between two letters or digits: no rule that byte-level byte-pair encoders split words by
    (those of GPT-2, GPT-4, Llama 3) has such a place within a word. In a text without one for 16 pieces, between any
    two characters.
    """
    held = ""
    for text, over in pieces:
        held += text
        while len(held) > 2 * size:
            place = _place(held, size)
            if place == 0 and len(held) < 16 * size and not over:
                break  # more text may have one
            place = place or size
            yield held[:place], False
            held = held[place:]
        if over:
            yield held, True
            held = ""


def _place(text: str, begin: int) -> int:
    """Find the first place to cut from `begin` on, 0 where there is none."""
    place = text.find(" ", begin, len(text) - 1)
    while place > 0 and not (text[place - 1].isalnum() and text[place + 1].isalnum()):
        place = text.find(" ", place + 1, len(text) - 1)
    return max(place, 0)


def joins(encode: Callable[[Sequence[str]], list[Array]]) -> bool:
    """Whether an encoder gives pieces of a text the tokens that they have in it; one that begins each text does not."""
    whole, *parts = encode(["one of 2 words", "one", " of 2", " words"])
    return np.array_equal(whole, np.concatenate(parts))


def encode_documents(
    pieces: Iterable[Piece], encode: Callable[[Sequence[str]], list[Array]]
) -> Iterator[tuple[Array, bool]]:
    """Turn pieces of documents into tokens, many at a time.

    Parameters
    ----------
    pieces : iterable of (str, bool)
        From :func:`read_documents`.
    encode : callable
        From texts to their tokens, without beginnings and ends. Where it does not give pieces of a text the tokens that
        they have in it, documents are encoded whole, and the longest one must fit into memory.
    """
    pieces = cut(pieces) if joins(encode) else _whole(pieces)
    texts: list[str] = []
    ends: list[bool] = []
    count = 0
    for text, over in pieces:
        texts.append(text)
        ends.append(over)
        count += len(text) + 1
        if count >= _BATCH:
            yield from zip(encode(texts), ends, strict=True)
            texts, ends, count = [], [], 0
    if texts:
        yield from zip(encode(texts), ends, strict=True)


def _whole(pieces: Iterable[Piece]) -> Iterator[Piece]:
    parts: list[str] = []
    for text, over in pieces:
        parts.append(text)
        if over:
            yield "".join(parts), True
            parts = []
