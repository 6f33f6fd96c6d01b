"""``numformer info``."""

from __future__ import annotations


def run() -> None:
    """Print a table of ``numformer.info()``."""
    from rich.console import Console
    from rich.table import Table

    import numformer as nf

    table = Table(title="numformer", show_header=False)
    for name, value in nf.info().items():
        table.add_row(str(name), ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
    Console().print(table)
