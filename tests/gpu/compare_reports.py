# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the measurements of several report.json of verify.yml side by side, each a column, and the ratio to the first.

python3 tests/gpu/compare_reports.py recipe=results/recipe/report.json max=results/max/report.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIGURES = (
    "completed",
    "failed",
    "duration",
    "output_throughput",
    "output_throughput_per_gpu",
    "request_goodput",
    "mean_ttft_ms",
    "median_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "p99_tpot_ms",
    "mean_e2el_ms",
    "preemptions",
    "kv_cache_usage_max",
    "requests_running_max",
    "requests_waiting_max",
)


def columns(name: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    """Return a column for each point that the report's hosts measured: its heading and its figures."""
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    found = []
    for host in report["hosts"]:
        for measured in host["stages"]["performance"]:
            for point in measured.get("points", []):
                heading = f"{name} {measured.get('name', '')} c{point['concurrency']} n{point['prompts']}"
                figures = {figure: values["mean"] for figure, values in point["summary"].items()}
                found.append((heading, figures))
    return found


def main(arguments: Sequence[str]) -> int:
    """Print the table; return 1 when a report has no measurement."""
    table: list[tuple[str, dict[str, Any]]] = []
    empty = 0
    for argument in arguments:
        name, _equals, path = argument.partition("=")
        found = columns(name, path)
        empty += not found
        table += found
    for heading, _figures in table:
        print(heading)
    for figure in FIGURES:
        values = [figures.get(figure) for _heading, figures in table]
        first = values[0] if values else None
        texts = [
            "-" if value is None else f"{value:,.2f}" + (f" (x{value / first:.2f})" if first else "")
            for value in values
        ]
        print(f"{figure:28}" + "".join(f"{text:>26}" for text in texts))
    return 1 if empty or not table else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
