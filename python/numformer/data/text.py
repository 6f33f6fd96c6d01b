"""Text as bytes: 256 tokens, no vocabulary to learn, every text can be said."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint8]


def to_tokens(text: str) -> Tokens:
    """Return the UTF-8 bytes of a text."""
    return np.frombuffer(text.encode("utf-8"), np.uint8)


def to_text(tokens: NDArray[Any]) -> str:
    """Return the text of UTF-8 bytes; what is no UTF-8 becomes the replacement character."""
    return bytes(np.asarray(tokens, np.uint8)).decode("utf-8", errors="replace")


def read_files(paths: Iterable[str | Path]) -> Tokens:
    """Read UTF-8 text files, one after the other.

    Raises
    ------
    OSError
        Where a file cannot be read; the message names it.
    ValueError
        Where a file is empty or not UTF-8.
    """
    parts = []
    for path in map(Path, paths):
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: not UTF-8 text (byte {data[error.start]:#04x} at position {error.start})"
            ) from None
        if not text.strip():
            raise ValueError(f"{path}: there is no text in it")
        parts.append(np.frombuffer(data, np.uint8))
    if not parts:
        raise ValueError("read_files: at least one file is needed")
    return np.concatenate(parts)


def builtin_text() -> str:
    """Return the English reference that every CPython carries: the topics of pydoc, in the order of their names."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n"


def split(tokens: Tokens, *, validation: float = 0.1) -> tuple[Tokens, Tokens]:
    """Cut off the end of a text for validation.

    Parameters
    ----------
    tokens : array
        The text.
    validation : float
        Share of it, above 0 and below 1.
    """
    if not 0 < validation < 1:
        raise ValueError(f"split: validation must be above 0 and below 1, got {validation}")
    cut = len(tokens) - max(1, round(len(tokens) * validation))
    return tokens[:cut], tokens[cut:]
