# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel's log says of a container: whether the kernel killed one of its processes for lack of memory.

The engine's own C(OOMKilled) misses such kills: it follows only a container's first process, and on some kernels with
control groups of version 1 it is never set.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

LOG = "/dev/kmsg"
UPTIME = "/proc/uptime"
LONGEST_RECORD = 8192
# A limit of the container's own; anything else means that the whole host was short of memory.
OWN_LIMIT = "CONSTRAINT_MEMCG"
# Between the kernel's clock and the engine's.
TOLERANCE_S = 2.0


def memory_kill(container_id: str, since: float, log: str = LOG, uptime: str = UPTIME) -> str:
    """Return the line which says that the kernel killed a process of a container for lack of memory.

    Args:
        container_id: its full id, which is in the name of its control group.
        since: seconds since the epoch; older lines are of an earlier start.
        log: the kernel's log.
        uptime: the file that tells for how long the kernel has run.

    Returns:
        The newest such line, or C("") if there is none or the log cannot be read. OWN_LIMIT is in it if the container
        reached its own limit.
    """
    found = ""
    # The line names further groups: that of the process which asked for memory (cpuset) and the one that ran out of it.
    victim = re.compile(rf"\btask_memcg=[^,]*{re.escape(container_id)}")
    try:
        with open(uptime, encoding="utf-8") as stream:
            booted = time.time() - float(stream.read().split()[0])
        for line in _lines(log):
            head, _semicolon, text = line.partition(";")
            if "oom-kill:" not in text or not victim.search(text):
                continue
            # priority, number, microseconds since the kernel started, flags
            if booted + int(head.split(",")[2]) / 1e6 >= since - TOLERANCE_S:
                found = text
    except (OSError, ValueError, IndexError):
        return found
    return found


def _lines(log: str) -> Iterator[str]:
    """Yield what the kernel has logged so far."""
    descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                data = os.read(descriptor, LONGEST_RECORD)
            except BlockingIOError:
                return
            except BrokenPipeError:  # the next record was overwritten; the one after it comes next
                continue
            if not data:
                return
            yield from data.decode("utf-8", "replace").splitlines()
    finally:
        os.close(descriptor)
