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


def shared_lines(routers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines for the address that routers share: who has it, and who does not know what is drained.

    Args:
        routers: hosts of routers to what the module router_backend returned in check mode.
    """
    shared = {name: router["shared"] for name, router in routers.items() if router.get("shared")}
    lines = []
    for address in dict.fromkeys(state["address"] for state in shared.values()):
        holders = [name for name, state in shared.items() if state["address"] == address and state["held"]]
        lines.append(f"The routers share {address}; {' and '.join(holders) or 'none that was asked'} has it now.")
    lines += [
        f"The router {name} was started since the last run: the playbook router tells it what is drained."
        for name, state in shared.items()
        if not state["in_step"]
    ]
    return lines


def watch_lines(routers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines for replicas with sick GPUs that a router does not take out, and those that tell nothing.

    Args:
        routers: hosts of routers to what the module router_backend returned in check mode.
    """
    lines = []
    for name, router in routers.items():
        watch = router.get("gpu_watch") or {}
        for replica, entry in sorted((watch.get("replicas") or {}).items()):
            why = {"wanted": entry.get("why") or "it is out already", "accepted": "a person put it back"}
            if entry["state"] in why:
                sick = ", ".join(entry["reasons"])
                lines.append(f"{replica} has a sick GPU ({sick}) and {name} did not take it out: {why[entry['state']]}")
        silent = watch.get("silent") or []
        if silent:
            lines.append(f"{name} is told nothing of the GPUs of {', '.join(silent)}, so it takes none of those out.")
    return lines


def gets_requests(server: Mapping[str, Any]) -> bool:
    """Return whether a router sends requests to one of its servers."""
    return server["state"] == "ready" and str(server["status"]).startswith(("UP", "no check"))
