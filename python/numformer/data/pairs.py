"""Pairs of sentences from files, and what was wrong with their lines."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

EMPTY = "empty lines"
NO_UTF8 = "not UTF-8"
ONE_SIDE = "a side is missing"
COLUMNS = "more than two columns"
NO_PARTNER = "lines that the other file lacks"
TOO_LONG = "longer than the model"

_GROWTH, _FREE = 100, 2**24  # text shrinks to a third or a tenth


def most_of_gzip(compressed: int) -> int:
    """Return how many bytes of text a gzip file of this size may hold; far more than that is no text."""
    return max(_FREE, _GROWTH * compressed)


def grows(name: str, most: int) -> ValueError:
    """Return the error for a file that holds more."""
    return ValueError(f"{name}: a gzip file that grows more than {_GROWTH}-fold, to over {most:,} bytes, is refused")


@dataclass
class Report:
    """What became of the lines of a file, or of two side by side.

    Parameters
    ----------
    name : str
        Of the file or files.
    lines : int
        How many there were.
    problems : dict
        The numbers of the lines that are left out, counted from 1, for each reason.
    """

    name: str
    lines: int
    problems: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, line: int) -> None:
        """Leave out a line."""
        self.problems.setdefault(reason, []).append(line)

    @property
    def used(self) -> int:
        """How many lines are used."""
        return self.lines - sum(map(len, self.problems.values()))

    def __str__(self) -> str:
        """Say it in one line; of each reason at most five line numbers."""
        said = []
        for reason, numbers in self.problems.items():
            some = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
            said.append(f"{len(numbers):,} {reason} (line{'s' if len(numbers) > 1 else ''} {some})")
        left_out = f"; left out: {'; '.join(said)}" if said else ""
        return f"{self.name}: {self.used:,} of {self.lines:,} pairs used{left_out}"

    def judge(self, on_bad: str) -> None:
        """Raise ValueError for a file that is not taken as it is: with "error" any line left out, else all of them."""
        if on_bad == "error" and self.problems:
            raise ValueError(f"{self}; the file is refused")
        if not self.used:
            raise ValueError(f"{self}; there is nothing to use")


@dataclass
class ParallelText:
    """Sentences and their translations, with the lines that they come from."""

    sources: list[str]
    targets: list[str]
    lines: list[int]
    report: Report

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.sources)

    def select(self, indices: Iterable[int]) -> ParallelText:
        """Return some of the pairs; the report stays that of all."""
        chosen = list(indices)
        return ParallelText(
            [self.sources[i] for i in chosen],
            [self.targets[i] for i in chosen],
            [self.lines[i] for i in chosen],
            self.report,
        )


def read_lines(path: str | Path) -> list[bytes]:
    r"""Return the lines of a file without their ends; gzip is known by its first bytes.

    Only "\n" and "\r\n" end a line: other characters that Unicode calls line breaks would shift one file against
    another.

    Raises
    ------
    ValueError
        Where a gzip file is damaged or cut short, or grows more than a hundredfold.
    """
    return split_lines(Path(path).read_bytes(), str(path))


def split_lines(data: bytes, name: str) -> list[bytes]:
    """Do the same with bytes; errors call them by their name."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = _decompress(data, name)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name}: a damaged gzip file ({error})") from error
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _decompress(data: bytes, name: str) -> bytes:
    """Decompress; ValueError for a file that holds far more than text of its size would."""
    most = most_of_gzip(len(data))
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise grows(name, most)
    return text


def read_pairs(path: str | Path, *, on_bad: str = "skip") -> ParallelText:
    """Read pairs from one file: source, a tab, target, on each line.

    Parameters
    ----------
    path : path
        UTF-8, perhaps compressed by gzip.
    on_bad : {"skip", "error"}
        Whether lines that are no pair are left out and reported, or the file is refused.

    Raises
    ------
    ValueError
        Where the file is refused or has no pair at all; the message counts and numbers the lines.
    """
    _check(on_bad)
    rows = []
    for line in read_lines(path):
        source, tab, rest = line.partition(b"\t")
        target, more, _ = rest.partition(b"\t")
        rows.append((source, target if tab else b"", COLUMNS if more else None))
    text = _pairs(rows, Report(str(path), len(rows)))
    text.report.judge(on_bad)
    return text


def read_parallel(
    source: str | Path, target: str | Path, *, on_bad: str = "skip", truncate: bool = False
) -> ParallelText:
    """Read pairs from two files, line by line.

    Parameters
    ----------
    source, target : path
        UTF-8, perhaps compressed by gzip.
    on_bad : {"skip", "error"}
        Whether lines that are no pair are left out and reported, or the files are refused.
    truncate : bool
        Take files of different lengths up to the end of the shorter one. They are refused otherwise, because a line
        that is missing somewhere shifts all after it.

    Raises
    ------
    ValueError
        Where the files are refused or have no pair at all; the message counts and numbers the lines.
    """
    _check(on_bad)
    ours, theirs = read_lines(source), read_lines(target)
    common = min(len(ours), len(theirs))
    if len(ours) != len(theirs) and not truncate:
        raise ValueError(
            f"read_parallel: the files must have as many lines as each other, got {len(ours):,} in {source} and "
            f"{len(theirs):,} in {target}; truncate takes the first {common:,}"
        )
    report = Report(f"{source}, {target}", max(len(ours), len(theirs)))
    text = _pairs([(a, b, None) for a, b in zip(ours, theirs, strict=False)], report)
    text.report.judge(on_bad)  # before the lines that were known to be cut off are added to it
    for line in range(common + 1, report.lines + 1):
        report.add(NO_PARTNER, line)
    return text


def _check(on_bad: str) -> None:
    if on_bad not in ("skip", "error"):
        raise ValueError(f"pairs: on_bad must be 'skip' or 'error', got {on_bad!r}")


def _pairs(rows: list[tuple[bytes, bytes, str | None]], report: Report) -> ParallelText:
    """Decode the rows that are pairs and report the others."""
    text = ParallelText([], [], [], report)
    for line, (source, target, problem) in enumerate(rows, 1):
        try:
            ours, theirs = source.decode("utf-8").strip(), target.decode("utf-8").strip()
        except UnicodeDecodeError:
            report.add(NO_UTF8, line)
            continue
        if problem is None and not (ours and theirs):
            problem = ONE_SIDE if ours or theirs else EMPTY
        if problem is not None:
            report.add(problem, line)
            continue
        text.sources.append(ours)
        text.targets.append(theirs)
        text.lines.append(line)
    return text
