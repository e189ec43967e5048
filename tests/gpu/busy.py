# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says which processes keep processors busy, and how busy the busiest thread of each is: 1.0 is a processor, all of it.

python3 tests/gpu/busy.py SECONDS

A process whose one thread is at 1.0 sets the pace, whatever the GPUs could do. Reads Linux's /proc.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

SHOWN = 12
TICKS = os.sysconf("SC_CLK_TCK")


def used() -> dict[int, dict[int, float]]:
    """Return the processor seconds of each thread of each process."""
    found: dict[int, dict[int, float]] = {}
    for task in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            # The name before it, in brackets, may hold anything; user and system time are the 14th and 15th field.
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found.setdefault(int(task.parts[2]), {})[int(task.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def words(pid: int) -> str:
    """Return the end of a process's command line; its name where it has none, nothing where it has ended."""
    with contextlib.suppress(OSError):
        folder = Path("/proc", str(pid))
        line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()[:4]
        return " ".join(line)[-70:] or (folder / "comm").read_text().strip()
    return ""


def main(seconds: float) -> int:
    """Print the busiest processes over that time."""
    before = used()
    started = time.monotonic()
    time.sleep(seconds)
    after = used()
    elapsed = time.monotonic() - started
    rows = []
    for pid, threads in after.items():
        spent = [ticks - before.get(pid, {}).get(thread, 0.0) for thread, ticks in threads.items()]
        rows.append((sum(spent) / elapsed, max(spent) / elapsed, pid))
    for cores, thread, pid in sorted(rows, reverse=True)[:SHOWN]:
        print(f"{cores:6.2f} processors, busiest thread {thread:4.2f}  {pid:>7} {words(pid)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
