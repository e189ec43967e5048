# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a page says of the routers themselves, beside what they send where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DAY_S = 24 * 3600


def certificate_lines(routers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for the certificate that each router serves: when it ends.

    Args:
        routers: hosts of routers to what the module router_backend returned in check mode.
    """
    lines = []
    for name, router in routers.items():
        end = router.get("certificate")
        if not end:
            continue
        days, day = end["seconds_left"] // DAY_S, str(end["not_after"])[:10]
        when = f"ends on {day}, in {days} days" if end["seconds_left"] > 0 else f"ended on {day}: clients refuse it"
        lines.append(f"The certificate of {name} {when}.")
    return lines
