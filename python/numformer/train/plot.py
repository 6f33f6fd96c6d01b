"""Several runs beside each other: a table, and a picture of their logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numformer import files
from numformer.train import log

Rows = list[dict[str, Any]]
AXES = {"step": "step", "tokens": "tokens", "seconds": "seconds of training"}


def read_run(path: Path) -> Rows:
    """Read the log of a run from its folder, or the file itself.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    ValueError
        Where it is something else, or empty.
    """
    file = path / "log.csv" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, so this is not the folder of a run")
    rows = log.read(file)
    if not rows:
        raise ValueError(f"{file}: the log has no rows yet")
    return rows


def names(paths: list[Path]) -> list[str]:
    """Return a name for each run: the last part of its path, or all of it where others have the same."""
    short = [path.name if path.is_dir() else path.parent.name or path.name for path in map(Path.absolute, paths)]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def table(runs: Mapping[str, Rows]) -> list[str]:
    """Return lines that compare runs: steps, last and best losses, tokens a second."""
    width = max(len("run"), *map(len, runs))
    lines = [
        f"{'run':{width}}  {'steps':>8}  {'loss':>8}  {'validation':>10}  {'best':>8}  {'at step':>8}  {'tokens/s':>9}"
    ]
    for name, rows in runs.items():
        tail = [row["loss"] for row in rows[-10:]]
        held = [(row["validation_loss"], row["step"]) for row in rows if row["validation_loss"] is not None]
        best = min(held, default=None)
        rate = rows[-1]["tokens"] / max(rows[-1]["seconds"], 1e-9)
        lines.append(
            f"{name:{width}}  {rows[-1]['step']:8,}  {sum(tail) / len(tail):8.4f}  "
            + (f"{held[-1][0]:10.4f}  {best[0]:8.4f}  {best[1]:8,}" if best else f"{'-':>10}  {'-':>8}  {'-':>8}")
            + f"  {rate:9,.0f}"
        )
    return lines


def draw(runs: Mapping[str, Rows], path: Path, *, x: str = "step") -> None:
    """Draw losses, metrics and learning rates of runs into one picture.

    Parameters
    ----------
    runs : mapping
        From names to the rows of logs.
    path : path
        Of the picture; its ending says which format, and none is PNG.
    x : {"step", "tokens", "seconds"}
        What runs along the axis.

    Raises
    ------
    ImportError
        Where matplotlib is not installed.
    ValueError
        Where `x` is something else, or matplotlib knows no such format.
    """
    if x not in AXES:
        raise ValueError(f"plot: x must be {', '.join(AXES)}, got {x!r}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs the package matplotlib: pip install 'numformer[plot]'") from error
    kind = path.suffix[1:].lower() or "png"
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        raise ValueError(f"plot: {path} must end like a picture, .png, .svg or .pdf, got {path.suffix!r}")
    known = log.COLUMNS + log.SCALE
    metrics = dict.fromkeys(k for rows in runs.values() for row in rows for k in row if k not in known)
    panels = ["loss", "lr", *metrics]
    figure = Figure(figsize=(7 + 5 * (len(panels) - 1), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        for index, (name, rows) in enumerate(runs.items()):
            color = f"C{index}"
            if panel == "loss":
                _line(axes, rows, x, "loss", color=color, linewidth=0.6, alpha=0.6)
                _line(axes, rows, x, "validation_loss", color=color, marker="o", markersize=3, linewidth=1.2)
                axes.plot([], [], color=color, label=name)  # one entry for both lines
            else:
                _line(axes, rows, x, panel, color=color, marker="" if panel == "lr" else "o", markersize=3)
        axes.set_xlabel(AXES[x])
        axes.set_ylabel({"loss": "loss (nats a token); dots: validation", "lr": "learning rate"}.get(panel, panel))
        axes.grid(alpha=0.3)
        if panel == "loss":
            axes.legend()
    files.replace(path, lambda beside: figure.savefig(beside, format=kind, dpi=150))


def _line(axes: Any, rows: Rows, x: str, y: str, **style: Any) -> None:
    points = [(row[x], row[y]) for row in rows if row.get(y) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
