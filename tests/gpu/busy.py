# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says which processes keep processors busy, and how busy the busiest thread of each is: 1.0 is a processor, all of it.

python3 tests/gpu/busy.py SECONDS

A process whose one thread is at 1.0 sets the pace, whatever the GPUs could do. Needs psutil, which a PyTorch host has.
"""

from __future__ import annotations

import sys
import time

import psutil

SHOWN = 12


def used() -> dict[int, tuple[str, float, dict[int, float]]]:
    """Return each process's name, its processor seconds and those of its threads."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline()[:4]) or process.name()
            threads = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found[process.pid] = (words[-70:], sum(threads.values()), threads)
    return found


def main(seconds: float) -> int:
    """Print the busiest processes over that time."""
    before = used()
    started = time.monotonic()
    time.sleep(seconds)
    after = used()
    elapsed = time.monotonic() - started
    rows = []
    for pid, (words, total, threads) in after.items():
        if pid not in before:
            continue
        _words, total_then, threads_then = before[pid]
        busiest = max((value - threads_then.get(thread, value) for thread, value in threads.items()), default=0.0)
        rows.append(((total - total_then) / elapsed, busiest / elapsed, pid, words))
    for cores, thread, pid, words in sorted(rows, reverse=True)[:SHOWN]:
        print(f"{cores:6.2f} processors, busiest thread {thread:4.2f}  {pid:>7} {words}")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
