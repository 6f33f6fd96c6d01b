"""Small calls of all kinds under a tool that watches memory, and what it says of our code.

``python -m tests.soak.watched`` makes the calls; ``python -m tests.soak.watched REPORT`` reads what valgrind or
LeakSanitizer wrote of that, and fails where a stack in it goes through numformer: Python's own leaks are not ours.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

OURS = re.compile(r"csrc/|_core\.cpython|\(in .*numformer|\bnf::")
# Records of functions, made once when the module is imported, are held until the process ends.
ONCE = re.compile(r"PyInit__core|pybind11_init__core|pybind11_exec__core")


def calls() -> None:
    """Call each kind with each array."""
    import numformer as nf

    from soak import rounds

    nf.set_pool_limit(0)  # freed at once, so that a use after it is seen
    arrays = rounds.small_arrays(0)
    for kind in rounds.small_kinds(arrays):
        for same_dtype in arrays:
            for x in same_dtype:
                kind(x)
    print("all calls were made")


def blocks(text: str) -> list[str]:
    """Return the stacks of a report that go through our code."""
    lines = [re.sub(r"^==\d+==\s?", "", line) for line in text.splitlines()]
    found = re.split(r"\n\s*\n", "\n".join(lines))
    stacks = [block for block in found if re.search(r"^\s+(#\d|at 0x|by 0x)", block, re.MULTILINE)]
    return [stack for stack in stacks if OURS.search(stack) and not ONCE.search(stack)]


if __name__ == "__main__":
    if len(sys.argv) == 1:
        calls()
    else:
        report = Path(sys.argv[1]).read_text(errors="replace")
        bad = blocks(report)
        print(*bad[:20], f"{len(bad)} reports of numformer's code", sep="\n\n")
        # Whether it was a report at all: each tool says how it ended.
        ended = re.search(r"ERROR SUMMARY|LeakSanitizer|no leaks", report)
        sys.exit(1 if bad or not ended else 0)
