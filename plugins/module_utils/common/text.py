# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How numbers and lists are written for people."""

from __future__ import annotations

from collections.abc import Sequence

MIB = 1024**2
GIB = 1024**3


def format_bytes(count: float) -> str:
    """Return a number of bytes as GiB, from a tenth of a GiB on, or else as MiB."""
    gib = count / GIB
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / MIB:.1f} MiB"


def duration(seconds: float) -> str:
    """Return seconds as people say them: `37 s`, `2 min 5 s`, `1 h 3 min`, `3 days 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    hours = whole // 3600
    return f"{hours} h {whole % 3600 // 60} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def rough_duration(seconds: float) -> str:
    """Return seconds in one unit: `95 s`, `12 min`, `5 h`, `3 days`."""
    for limit, unit, name in ((600, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return names in a line, the first few alone: `a, b, c and 4 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
