# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A number of hosts as people write it: a number, or a percentage of all of them."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def share_of(value: Any, total: int, variable: str, *, least: int) -> int:
    """Return how many of C(total) hosts a value means; a percentage is rounded down, but not below C(least).

    Args:
        value: such as 3, C("3") or C("10%").
        total: number of hosts.
        variable: where the value is from, for the error.
        least: smallest number that may be written.

    Raises:
        GpufleetError: C(invalid-wishes).
    """
    text = str(value).strip()
    share = PERCENT.fullmatch(text)
    if share and (least == 0 or float(share.group(1)) > 0) and float(share.group(1)) <= 100:
        return max(least, int(total * float(share.group(1)) / 100))
    if text.isdigit() and int(text) >= least:
        return int(text)
    raise GpufleetError(
        f"{variable}: {value!r} is no number of hosts and no share of them.",
        name="invalid-wishes",
        remedy=f"Write whole numbers from {least} on, or percentages such as '10%'.",
    )
