# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How numbers are written for people."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024**3


def format_bytes(count: float) -> str:
    """Return a number of bytes as GiB, from a tenth of a GiB on, or else as MiB."""
    gib = count / GIB
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / MIB:.1f} MiB"
