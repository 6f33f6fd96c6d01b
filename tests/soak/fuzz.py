"""Fuzzes one target, guided by coverage: ``python -m tests.soak.fuzz TARGET --seconds 60``. Needs atheris.

A finding ends it with a traceback, and the input is written to ``build/fuzz/TARGET``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["numformer"]):
    import numformer.data
    import numformer.files
    import numformer.models
    import numformer.train.checkpoint  # noqa: F401

from soak import targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    chosen = parser.parse_args()
    place = Path("build/fuzz") / chosen.target
    (place / "corpus").mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(targets.seeds(chosen.target)):
        (place / "corpus" / f"seed-{number:04d}").write_bytes(data)
        targets.TARGETS[chosen.target](data)
    options = [f"-max_total_time={chosen.seconds}", "-timeout=10", "-rss_limit_mb=4096", "-max_len=4096"]
    options += [f"-artifact_prefix={place}/", "-print_final_stats=1", "-close_fd_mask=0"]
    atheris.Setup([sys.argv[0], *options, str(place / "corpus")], targets.TARGETS[chosen.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
