"""Fail if an object file compiled for one instruction set defines a symbol outside that level's namespace.

A weak symbol (an inline function, a template instance) that several levels define is merged by the linker: one copy,
perhaps the AVX-512 one, would then serve all levels and crash an older processor.
"""

import argparse
import pathlib
import subprocess
import sys


def offenders(nm: str, level: str, objects: list[str]) -> list[str]:
    """Defined global or weak symbols that do not lie in ``nf::<level>``."""
    inside = f"N2nf{len(level)}{level}"  # nested-name in the Itanium mangling: _ZN2nf2v2..., _ZNK2nf2v2..., _ZTVN2nf...
    inside_microsoft = f"@{level}@nf@@"
    found = []
    for path in objects:
        listing = subprocess.run(
            [nm, "--defined-only", "--extern-only", path], check=True, capture_output=True, text=True
        )
        for line in listing.stdout.splitlines():
            fields = line.split()
            if len(fields) < 3 or fields[-2] not in set("TtWwVvBbDdRrGgSsuCi"):
                continue
            name = fields[-1].lstrip("_") if sys.platform == "darwin" else fields[-1]
            if name.startswith(("?", "__real@", "__xmm@", "__ymm@", "__zmm@")):
                fine = inside_microsoft in name or name.startswith(("??_C@", "__"))  # constants may well be merged
            else:
                fine = inside in name.replace("NK2nf", "N2nf") or name.startswith((".", "__asan", "__ubsan"))
            if not fine:
                found.append(f"{pathlib.Path(path).name}: {name}")
    return found


def main() -> int:
    """Command line: check the objects, write the stamp."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", required=True)
    parser.add_argument("--level", required=True)
    parser.add_argument("--stamp", required=True, type=pathlib.Path)
    parser.add_argument("objects", nargs="+")
    options = parser.parse_args()
    leaks = offenders(options.nm, options.level, options.objects)
    if leaks:
        print(
            f"symbols outside nf::{options.level}, the linker may merge them with another level's:", *leaks, sep="\n  "
        )
        return 1
    options.stamp.write_text("ok\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
