# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws docs/docsite/rst/images/profiles.svg, what more requests at once give and cost, from tests/gpu/RESULTS.md.

PYTHONPATH=.cache/collections .venv/bin/python tools/profile_curves.py

Every figure is read from the tables there. A unit test holds the committed picture to what this makes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tests" / "gpu" / "RESULTS.md"
PICTURE = ROOT / "docs" / "docsite" / "rst" / "images" / "profiles.svg"
WIDTH, HEIGHT = 760, 470
LEFT, RIGHT, TOP, BOTTOM = 70, 740, 40, 410
X_RANGE, Y_RANGE = (5.0, 200.0), (60.0, 8000.0)
SHORT = "| requests at once | mean TPOT, TP 1"
X_TICKS, Y_TICKS = (5, 10, 20, 50, 100, 200), (100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Point:
    """One measurement: requests at once, mean time of an output token in ms, output tokens/s of a GPU."""

    label: str
    tpot_ms: float
    tokens_s: float


@dataclass(frozen=True)
class Curve:
    """Measurements of one kind of server; C(below) has the labels stand below their points."""

    name: str
    colour: str
    points: Sequence[Point]
    below: bool = False


def table(text: str, heading: str, corner: str) -> list[list[str]]:
    """Return the rows below a heading of the table whose first row begins with C(corner), as cells without marks."""
    section = text.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = section[section.index(corner) :].split("\n\n", 1)[0].splitlines()
    rows = [[cell.strip().replace("*", "") for cell in line.strip("| ").split("|")] for line in lines]
    return [row for row in rows if not set(row[0]) <= {"-"} or row[0] == ""]


def numbers(cell: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", cell)]


def row(rows: Sequence[Sequence[str]], name: str) -> Sequence[str]:
    """Return the cells beside the first one that begins with a name."""
    return next(cells[1:] for cells in rows if cells[0].startswith(name))


def curves(text: str) -> list[Curve]:
    """Return what is drawn, by the text of RESULTS.md."""
    latency = table(text, "## Latency at TP 1", "| requests at once")
    single = [Point(cells[0], numbers(cells[1])[0], numbers(cells[5])[0]) for cells in latency[1:]]
    wave = table(text, "### The same in a server", "| | `FLASH_ATTN`")
    single.append(
        Point(
            "125",
            numbers(row(wave, "mean TPOT")[1])[0],
            numbers(row(wave, "output tokens/s of the whole wave")[1])[0],
        )
    )
    sustained = table(text, "## Sustained throughput with a tokenizer of visible words", "| | `recipe`")
    without = [numbers(row(sustained, name)[1])[0] for name in ("mean TPOT", "output tokens/s a GPU")]
    one_host = "## On one host: `recipe`, `max_throughput`, and FlashInfer at TP 2"
    host = table(text, one_host, "| | `recipe`")
    tpot, rate = row(host, "mean TPOT"), row(host, "output tokens/s a GPU")
    pairs = [(numbers(tpot[column])[0], numbers(rate[column])[0]) for column in range(3)]
    pair = [Point(cells[0], numbers(cells[2])[0], numbers(cells[7])[0]) for cells in table(text, one_host, SHORT)[1:]]
    return [
        Curve("TP 1, with what makes servers faster", "#1b6ca8", single),
        Curve("recipe, TP 1", "#8a8a8a", [Point("104", *pairs[0])], below=True),
        Curve(
            "max_throughput, TP 2, without what makes servers faster", "#d98a1f", [Point("806", *without)], below=True
        ),
        Curve("max_throughput, TP 2, with it", "#2a7f3f", [*pair, Point("786", *pairs[2])]),
    ]


def place(value: float, span: tuple[float, float], start: float, end: float) -> float:
    """Return where a value stands on a logarithmic axis from start to end."""
    share = (math.log(value) - math.log(span[0])) / (math.log(span[1]) - math.log(span[0]))
    return round(start + share * (end - start), 1)


def x_of(point: Point) -> float:
    return place(1000 / point.tpot_ms, X_RANGE, LEFT, RIGHT)


def y_of(point: Point) -> float:
    return place(point.tokens_s, Y_RANGE, BOTTOM, TOP)


def axes() -> list[str]:
    """Return grid, ticks and titles."""
    lines = []
    for tick in X_TICKS:
        x = place(tick, X_RANGE, LEFT, RIGHT)
        lines.append(f'<path d="M{x} {TOP}V{BOTTOM}" class="grid"/>')
        lines.append(f'<text x="{x}" y="{BOTTOM + 18}" text-anchor="middle">{tick}</text>')
    for tick in Y_TICKS:
        y = place(tick, Y_RANGE, BOTTOM, TOP)
        lines.append(f'<path d="M{LEFT} {y}H{RIGHT}" class="grid"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:,}</text>')
    middle = (LEFT + RIGHT) // 2
    lines.append(
        f'<text x="{middle}" y="{BOTTOM + 42}" text-anchor="middle">output tokens/s that one request gets'
        " (1000 / mean TPOT in ms)</text>"
    )
    lines.append(f'<text x="{LEFT}" y="{TOP - 14}">output tokens/s of a GPU; the numbers are requests at once</text>')
    return lines


def drawn(curve: Curve, number: int) -> list[str]:
    """Return a curve, its labels and its line of the legend."""
    spots = [(x_of(point), y_of(point), point.label) for point in curve.points]
    lines = []
    if len(spots) > 1:
        path = "L".join(f"{x} {y}" for x, y, _label in spots)
        lines.append(f'<path d="M{path}" fill="none" stroke="{curve.colour}" stroke-width="2"/>')
    for x, y, label in spots:
        lines.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{curve.colour}"/>')
        lines.append(f'<text x="{x + 8}" y="{y + (18 if curve.below else -8)}">{label}</text>')
    y = BOTTOM - 74 + 20 * number
    lines.append(f'<circle cx="{LEFT + 16}" cy="{y}" r="5" fill="{curve.colour}"/>')
    lines.append(f'<text x="{LEFT + 28}" y="{y + 4}">{curve.name}</text>')
    return lines


def picture(text: str) -> str:
    """Return the picture, by the text of RESULTS.md."""
    body = axes()
    for number, curve in enumerate(curves(text)):
        body += drawn(curve, number)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
            ' font-family="sans-serif" font-size="13" fill="#222">',
            "<title>Output tokens per second of a GPU against those that one request gets, measured on H200</title>",
            "<style>.grid{stroke:#ddd}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(RESULTS.read_text(encoding="utf-8")), encoding="utf-8")
