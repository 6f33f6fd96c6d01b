"""``numformer profile``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import typer

import numformer as nf
from numformer.profiling import ceilings


def run(*, target: str, arguments: list[str], out: Path, trace: Path | None, capacity: int, app: typer.Typer) -> None:
    """Run it, print a table and write the page, also where it ends with an error or Ctrl-C."""
    commands = {name for name in _names(app) if name not in ("profile", "bench", "explain")}
    script = Path(target)
    if target not in commands and not script.is_file():
        known = ", ".join(sorted(commands))
        raise ValueError(f"profile: {target} is no file, and no command that can be profiled ({known})")
    for path in (out, trace):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"profile: {path.absolute().parent} is not a folder to write {path.name} into")
    p = nf.profile(capacity)
    code: Any = 0
    try:
        with p:
            if target in commands:
                app(args=[target, *arguments], prog_name="numformer", standalone_mode=True)
            else:
                _script(script, arguments)
    except SystemExit as ended:
        code = ended.code
    finally:
        _write(p, out, trace, " ".join([target, *arguments]))
    if code not in (0, None):
        if isinstance(code, str):
            typer.echo(code, err=True)
            code = 1
        raise typer.Exit(code)


def _names(app: typer.Typer) -> list[str]:
    return [str(command.name or getattr(command.callback, "__name__", "")) for command in app.registered_commands]


def _script(script: Path, arguments: list[str]) -> None:
    """Run a file as ``python FILE ARGUMENTS`` does: its folder comes first on the path."""
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, path


def _write(p: nf.profile, out: Path, trace: Path | None, title: str) -> None:
    top = ceilings.find(p.recording.threads)
    typer.echo("\n" + p.table(ceilings=top))
    p.report(out, title=f"numformer profile: {title}", ceilings=top)
    typer.echo(f"wrote {out}")
    if trace is not None:
        p.save(trace)
        typer.echo(f"wrote {trace}")
