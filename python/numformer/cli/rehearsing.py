"""``numformer train --dry-run``: what a rehearsal found, in words."""

from __future__ import annotations

import math

import typer

from numformer.train import Trainer


def run(trainer: Trainer) -> None:
    """Make a step or two and say which memory and time the run will take; nothing is written."""
    found = trainer.dry_run()
    share = "" if found.share is None else f", {found.share:.0%} of this machine's peak"
    typer.echo(f"dry run: {found.parameters:,} parameters")
    typer.echo(
        f"a step: {found.seconds:.4g} s, {found.tokens:,} tokens, {found.tokens / found.seconds:,.0f} tokens/s{share}"
    )
    memory = f"memory: {_size(found.pool_bytes)} of arrays at most"
    if found.resident_bytes:
        memory += f", {_size(found.resident_bytes)} of the whole process"
    typer.echo(memory)
    if found.evaluation_seconds:
        often = "" if found.evaluations is None else f", {found.evaluations:,} of them"
        typer.echo(f"an evaluation: {found.evaluation_seconds:.4g} s{often}")
    disk = f"on disk: {_size(found.checkpoint_bytes)} a checkpoint, {trainer.keep} of them"
    typer.echo(disk + (", and the best one" if trainer.keep_best else ""))
    steps = "" if found.steps is None else f" for {found.steps:,} steps"
    total = "no end in sight" if math.isinf(found.total_seconds) else f"about {_clock(found.total_seconds)}{steps}"
    typer.echo(f"in all: {total}; nothing was written")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _clock(seconds: float) -> str:
    whole = math.ceil(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
