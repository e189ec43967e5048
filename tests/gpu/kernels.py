# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums the GPU's kernels in PyTorch traces: how much of the time it was busy, and with what.

python3 tests/gpu/kernels.py TRACE_FOLDER
"""

from __future__ import annotations

import collections
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

SHOWN = 26
# Of a kernel made of templates the outermost say nothing: what they run does.
WRAPPERS = re.compile(r"^void |cutlass::device_kernel<|flash::enable_sm90_or_later<")


def events_of(path: Path) -> list[dict[str, Any]]:
    """Return the events of a trace, packed or not."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return list(json.loads(text)["traceEvents"])


def steps_of(events: list[dict[str, Any]]) -> list[str]:
    """Return the names that vLLM gave to its steps, such as execute_context_0(0)_generation_806(806)."""
    marked = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    return [name for name in marked if name.startswith("execute_")]


def short(name: str) -> str:
    """Return a kernel's name without its templates' arguments."""
    return WRAPPERS.sub("", name).partition("<")[0][:70]


def show(path: Path) -> None:
    """Print the sums of one trace."""
    events = events_of(path)
    kernels = [event for event in events if event.get("cat") == "kernel"]
    if not kernels:
        return
    busy, end = 0.0, 0.0
    for event in sorted(kernels, key=lambda event: event["ts"]):
        busy += max(0.0, event["ts"] + event["dur"] - max(event["ts"], end))
        end = max(end, event["ts"] + event["dur"])
    wall = end - min(event["ts"] for event in kernels)
    spent: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for event in kernels:
        name = short(event["name"])
        spent[name] += event["dur"]
        count[name] += 1
    print(f"{path.name}: {len(kernels)} kernels in {wall / 1e3:.1f} ms, busy {busy / 1e3:.1f} ms ({busy / wall:.0%})")
    for step, times in collections.Counter(steps_of(events)).most_common(8):
        print(f"  {times} x {step}")
    total = sum(spent.values())
    for name, time in spent.most_common(SHOWN):
        mean = time / count[name]
        print(f"  {time / 1e3:9.2f} ms {time / total:5.1%} n={count[name]:6d} mean {mean:7.1f} us  {name}")


def main(folder: str) -> int:
    """Print the sums of each trace below that folder."""
    for path in sorted(Path(folder).rglob("*.json*")):
        show(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
