"""Draw docs/images/kernel_*.svg. The numbers in the drawings are read from csrc/kernels; a test compares the files.

Usage: python3 tools/draw_kernels.py [--out docs/images]
"""

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "kernels"
A, B, C, P, EMPTY, INK = "#cfe3f7", "#fbe0b5", "#cdebc9", "#e6d4f2", "#f2f2f2", "#222222"


def constant(file: str, name: str) -> list[int]:
    """Return the values that a kernel file gives a constant, one for each instruction set that has its own."""
    text = (KERNELS / file).read_text(encoding="utf-8")
    found = re.findall(rf"constexpr int(?:64_t)? {name} = (\d+);", text)
    if not found:
        raise SystemExit(f"{file} has no constant {name}")
    return [int(value) for value in found]


ROWS = constant("tile.hpp", "kTileRows")[0]  # with 32 registers
VECTORS = constant("tile.hpp", "kTileVectors")[0]
COLUMNS = VECTORS * 16  # of float32, 16 lanes a register
DEPTH = constant("matmul.cpp", "kDepthElements")[0]
BLOCK_ROWS = constant("matmul.cpp", "kBlockRows")[0]
KEYS = constant("attention_softmax.hpp", "kBlockKeys")[0]
STRIPS = constant("attention.hpp", "kStripsOfBlock")[0]


class Drawing:
    """An SVG that is put together from boxes, lines and words."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="14" fill="{INK}" role="img">',
            f"<title>{title}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def box(self, x: float, y: float, w: float, h: float, fill: str, *, line: float = 1, dash: bool = False) -> None:
        """Add a rectangle."""
        style = f'stroke="{INK}" stroke-width="{line}"' if line else ""
        dashes = ' stroke-dasharray="4 3"' if dash else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" {style}{dashes}/>')

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> None:
        """Add words, a line for each line of theirs."""
        weight = ' font-weight="bold"' if bold else ""
        for i, line in enumerate(words.split("\n")):
            line = line.replace("&", "&amp;").replace("<", "&lt;")
            self.parts.append(f'<text x="{x:g}" y="{y + 18 * i:g}" text-anchor="{anchor}"{weight}>{line}</text>')

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Add an arrow."""
        self.parts.append(
            f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, width: float = 1, dash: bool = False) -> None:
        """Add a line."""
        dashes = ' stroke-dasharray="4 3"' if dash else ""
        self.parts.append(f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{INK}" stroke-width="{width}"{dashes}/>')

    def svg(self) -> str:
        """Return the file."""
        return "\n".join([*self.parts, "</svg>", ""])


def tile() -> str:
    """One step of the register tile."""
    d = Drawing(640, 424, "A step of the register tile: one row of B times one column of A is added to all sums")
    cell, lane_width, x0, y0 = 18, 112, 190, 96
    d.text(x0, 24, f"row k of B: {VECTORS} registers of 16 floats", bold=True)
    for v in range(VECTORS):
        d.box(x0 + v * (lane_width * 2 - 20), 34, lane_width * 2 - 28, 26, B)
        d.text(
            x0 + v * (lane_width * 2 - 20) + lane_width - 14, 52, f"load b[{16 * v}..{16 * v + 15}]", anchor="middle"
        )
    d.text(16, 60, "column k of A:")
    d.text(16, 78, "broadcast, one by one")
    for i in range(ROWS):
        y = y0 + i * cell
        d.box(100, y, 30, cell - 3, A)
        for v in range(VECTORS):
            d.box(x0 + v * (lane_width * 2 - 20), y, lane_width * 2 - 28, cell - 3, C)
        if i in (0, ROWS - 1):
            d.arrow(134, y + 8, x0 - 4, y + 8)
            d.text(92, y + 13, f"a[{i}]", anchor="end")
    bottom = y0 + ROWS * cell
    d.text(x0, bottom + 18, f"sums: {ROWS} x {VECTORS} registers, all of them in the processor", bold=True)
    d.text(
        16,
        bottom + 40,
        f"Registers: {ROWS * VECTORS} sums + {VECTORS} of B + 1 broadcast = {ROWS * VECTORS + VECTORS + 1} of 32.\n"
        f"A step is {VECTORS} loads, {ROWS} broadcasts and {ROWS * VECTORS} multiply-adds of 16 lanes.",
    )
    return d.svg()


def blocks() -> str:
    """How matmul cuts its operands."""
    d = Drawing(640, 470, "Blocks of matmul: depth, rows of A, panels of B, tiles of the output")
    # B above, A left, the output in the corner.
    ax, ay, aw, ah = 60, 220, 150, 190
    bx, by, bw, bh = 290, 40, 300, 120
    cx, cy, cw, ch = bx, ay, bw, ah
    d.box(ax, ay, aw, ah, EMPTY)
    d.box(bx, by, bw, bh, EMPTY)
    d.box(cx, cy, cw, ch, EMPTY)
    d.text(ax, ay - 44, "A (M x K)", bold=True)
    d.text(bx, by - 12, "B (K x N)", bold=True)
    d.text(cx + cw, cy - 8, "output (M x N)", bold=True, anchor="end")
    depth_x, depth_w, depth_h = 50, 50, 40
    d.box(ax + depth_x, ay, depth_w, 120, A)  # block of rows, this depth
    d.box(ax + depth_x, ay + 40, depth_w, 12, "#7fb2e5")  # rows of a tile
    d.box(bx, by + 40, 200, depth_h, B)  # a chunk
    for i in range(1, 10):
        d.line(bx + 20 * i, by + 40, bx + 20 * i, by + 40 + depth_h)
    d.box(bx + 80, by + 40, 20, depth_h, "#efb654")  # a panel
    d.box(cx, cy, 200, 120, C)
    d.box(cx + 80, cy + 40, 20, 12, "#6fbf68")  # a tile
    d.line(ax + depth_x + depth_w, ay + 46, cx + 80, cy + 46, dash=True)
    d.line(bx + 90, by + 40 + depth_h, cx + 90, cy + 40, dash=True)
    d.text(ax + depth_x + depth_w / 2, ay - 10, f"{DEPTH} deep", anchor="middle")
    d.text(bx + 208, by + 66, f"{DEPTH} deep")
    d.text(ax - 8, ay + 50, f"{ROWS}", anchor="end")
    d.text(ax - 8, ay + 72, "rows", anchor="end")
    d.text(bx + 90, by + 22, f"panel: {COLUMNS} columns", anchor="middle")
    d.text(cx + 108, cy + 51, f"tile {ROWS} x {COLUMNS}")
    d.text(ax - 44, ay + ah + 22, f"block: at most {BLOCK_ROWS} rows")
    d.text(cx, cy + ah + 22, "chunk: as many panels as fill 3/4 of L2")
    d.text(cx, cy + ah + 42, "each thread has columns, or rows, of its own")
    return d.svg()


def attention() -> str:
    """Which scores attention computes, and in which pieces: 1024 queries and keys, causal, to scale."""
    queries, count = STRIPS * ROWS, 2 * KEYS
    d = Drawing(640, 560, "Blocks of attention: a strip of queries meets a block of keys")
    x0, y0, size = 150, 44, 320
    scale = size / count
    d.text(x0, 18, f"{count} keys, in blocks of {KEYS}", bold=True)
    d.text(12, y0 + 16, f"{count} queries,", bold=True)
    d.text(12, y0 + 34, f"in blocks\nof {queries}:\n{STRIPS} strips\nof {ROWS}")
    d.box(x0, y0, size, size, EMPTY)
    for query in range(0, count, ROWS):
        rows = min(ROWS, count - query)
        reach = min(count, -(-(query + rows) // COLUMNS) * COLUMNS)  # whole panels up to the last query's last key
        d.box(x0, y0 + query * scale, reach * scale, rows * scale, P, line=0)
    for query in range(queries, count, queries):
        d.line(x0, y0 + query * scale, x0 + size, y0 + query * scale, width=0.5)
    d.line(x0 + KEYS * scale, y0, x0 + KEYS * scale, y0 + size, width=1)
    d.box(x0, y0, size, size, "none")
    d.text(x0 + size - 8, y0 + 24, "never computed", anchor="end")
    strip = 6 * queries + 3 * ROWS
    d.box(x0, y0 + strip * scale, KEYS * scale, ROWS * scale, "#8e5bb5")
    d.line(x0, y0 + (strip + ROWS) * scale, 86, 402, dash=True)
    d.line(x0 + KEYS * scale, y0 + (strip + ROWS) * scale, 470, 402, dash=True)
    # The strip, enlarged.
    panels = KEYS // COLUMNS
    d.box(86, 402, 384, 36, P)
    for i in range(1, panels):
        d.line(86 + 384 / panels * i, 402, 86 + 384 / panels * i, 438, width=0.5)
    d.text(78, 425, f"{ROWS}", anchor="end")
    d.text(482, 416, f"a strip of scores:\n{panels} panels of {COLUMNS}")
    kib = ROWS * KEYS * 4 // 1024
    d.text(
        86,
        464,
        f"1. S = Q K^T, a tile of {ROWS} x {COLUMNS} at a time: {ROWS} x {KEYS} floats are {kib} KiB, in L1\n"
        "2. a row's new maximum m', P = 2^(S - m') and its sum; what was summed\n"
        "\u2003\u2009before is multiplied by 2^(m - m')\n"
        "3. O += P V, by the same tile; V is read where it lies\n"
        "After the last block O is divided by the row's sum.",
    )
    return d.svg()


DRAWINGS = {"kernel_tile.svg": tile, "kernel_blocks.svg": blocks, "kernel_attention.svg": attention}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the kernels from their constants.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out = parser.parse_args().out
    for name, draw in DRAWINGS.items():
        (out / name).write_text(draw(), encoding="utf-8")
