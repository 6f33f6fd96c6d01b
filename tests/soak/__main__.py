"""Runs all rounds, or one in a process of its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where pytest finds what tests share, too

from soak.table import main

main()
