"""The record of a run: a CSV file, and a picture of it."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, TextIO

from numformer import files

SCALE = ("loss_scale", "skipped")
"""What float16 adds: the scale that a step was made with, and how many steps changed nothing so far."""

COLUMNS = ("step", "loss", "validation_loss", "lr", "grad_norm", "tokens", "seconds")


class Log:
    """Rows in memory and, with a path, in a CSV file.

    Parameters
    ----------
    path : Path, optional
        Of the file; an old one is replaced, or, to `resume`, continued after the row of that step.
    resume : int
        Steps that were done before.
    extra : tuple of str
        Columns after the usual ones.
    """

    def __init__(self, path: Path | None, resume: int = 0, extra: tuple[str, ...] = ()) -> None:
        self.rows: list[dict[str, Any]] = []
        self._file: TextIO | None = None
        if path is None:
            return
        if resume and path.is_file():
            self.rows = [row for row in read(path) if row["step"] <= resume]
        columns = COLUMNS + extra

        def write(beside: Path) -> None:
            with beside.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(self.rows)

        files.replace(path, write)  # so that a run that is killed here loses nothing
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore")

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)
        if self._file is not None:
            self._writer.writerow({k: "" if v is None else v for k, v in row.items()})
            self._file.flush()

    def flush(self) -> None:
        """Return when all rows are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log; a last line that was cut is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    reader = csv.DictReader(lines)
    if list(reader.fieldnames or [])[: len(COLUMNS)] != list(COLUMNS):
        raise ValueError(f"{path}: not the log of a training run (its first line is not {','.join(COLUMNS)})")
    try:
        return [
            {k: None if v == "" else int(v) if k in ("step", "tokens", "skipped") else float(v) for k, v in row.items()}
            for row in reader
        ]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not the log of a training run ({error})") from error


def draw(rows: list[dict[str, Any]], path: Path) -> bool:
    """Draw the losses over the steps, and metrics beside them; False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = [name for name in dict.fromkeys(k for r in rows for k in r) if name not in COLUMNS + SCALE]
    figure = Figure(figsize=(7 + 5 * len(names), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1 + len(names), 1)
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], linewidth=0.8, label="training")
    held = [(r["step"], r["validation_loss"]) for r in rows if r["validation_loss"] is not None]
    if held:
        axes.plot(*zip(*held, strict=True), marker="o", markersize=3, label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    for number, name in enumerate(names, 2):
        axes = figure.add_subplot(1, 1 + len(names), number)
        measured = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        if measured:
            axes.plot(*zip(*measured, strict=True), marker="o", markersize=3)
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    files.replace(path, lambda beside: figure.savefig(beside, format="png", dpi=150))
    return True
