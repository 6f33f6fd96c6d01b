"""``numformer plot``."""

from __future__ import annotations

from pathlib import Path

import typer

from numformer.train import plot


def run(*, runs: list[Path], out: Path, x: str) -> None:
    """Print a table of runs and draw them."""
    logs = dict(zip(plot.names(runs), map(plot.read_run, runs), strict=True))
    if len(logs) < len(runs):
        raise ValueError("plot: a run is named twice")
    for line in plot.table(logs):
        typer.echo(line)
    plot.draw(logs, out, x=x)
    typer.echo(f"wrote {out}")
