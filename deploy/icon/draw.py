#!/usr/bin/env python3
"""Draws the icon of Fingerpost: a signpost with two arms. Writes fingerpost.svg and fingerpost.png beside this file.

Both come from the shapes below. The PNG has a palette and is not compressed, so each run writes the same bytes,
whatever library is installed. With `--check` nothing is written; exit status 1 if a file would change.
"""

import struct
import sys
import zlib
from pathlib import Path

SIZE = 64
FINE = 8  # Samples per pixel and axis.
BACKGROUND, WOOD, POINTER = "#1d5f6b", "#f7f3e8", "#f2b33d"
# Polygons on a square of 64, the last one on top.
SHAPES = [
    (WOOD, [(29, 8), (35, 8), (35, 58), (29, 58)]),
    (POINTER, [(14, 13), (45, 13), (55, 21), (45, 29), (14, 29)]),
    (WOOD, [(50, 33), (22, 33), (12, 40), (22, 47), (50, 47)]),
]
STEPS = 8  # Of each ramp from the background to a colour.


def inside(shape, x, y):
    crossings = False
    for (ax, ay), (bx, by) in zip(shape, shape[1:] + shape[:1]):
        if (ay > y) != (by > y) and x < (bx - ax) * (y - ay) / (by - ay) + ax:
            crossings = not crossings
    return crossings


def sample(x, y):
    for colour, shape in reversed(SHAPES):
        if inside(shape, x, y):
            return colour
    return BACKGROUND


def rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def ramp(colour):
    return [
        bytes((low * (STEPS - 1 - step) + high * step) // (STEPS - 1) for low, high in zip(rgb(BACKGROUND), rgb(colour)))
        for step in range(STEPS)
    ]


def png():
    rows = b""
    for y in range(SIZE):
        indexes = []
        for x in range(SIZE):
            seen = {WOOD: 0, POINTER: 0}
            for i in range(FINE):
                for j in range(FINE):
                    colour = sample(x + (i + 0.5) / FINE, y + (j + 0.5) / FINE)
                    if colour in seen:
                        seen[colour] += 1
            colour = max(seen, key=seen.get)
            step = (seen[WOOD] + seen[POINTER]) * (STEPS - 1) // FINE**2
            indexes.append(step + (STEPS if colour == POINTER else 0))
        rows += b"\0" + bytes(a << 4 | b for a, b in zip(indexes[::2], indexes[1::2]))
    stored = b"\x78\x01"
    stored += b"\1" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows + struct.pack(">I", zlib.adler32(rows))

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", SIZE, SIZE, 4, 3, 0, 0, 0)
    palette = b"".join(ramp(WOOD) + ramp(POINTER))
    parts = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", stored), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def svg():
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}">', "<title>Fingerpost</title>"]
    lines.append(f'<rect width="{SIZE}" height="{SIZE}" fill="{BACKGROUND}"/>')
    for colour, shape in SHAPES:
        lines.append(f'<polygon fill="{colour}" points="{" ".join(f"{x},{y}" for x, y in shape)}"/>')
    return ("\n".join(lines) + "\n</svg>\n").encode()


def main():
    changed = False
    for name, data in (("fingerpost.svg", svg()), ("fingerpost.png", png())):
        path = Path(__file__).parent / name
        if not path.exists() or path.read_bytes() != data:
            changed = True
            if "--check" not in sys.argv:
                path.write_bytes(data)
    return int(changed and "--check" in sys.argv)


sys.exit(main())
