# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would stop a plan on its host, seen before anything is fetched, made or stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError


def check_host(plan: Mapping[str, Any], host_info: Mapping[str, Any]) -> None:
    """Compare a plan with what the module host_info told of its host; parts that it did not look at count as fine.

    Raises:
        GpufleetError: C(port-in-use).
    """
    seen = {entry["port"]: entry for entry in host_info.get("ports") or []}
    for replica in plan["replicas"]:
        entry = seen.get(replica["port"], {"free": True})
        if not entry["free"] and not entry["ours"]:
            raise port_in_use(replica["name"], replica["host"], replica["port"], port_holder(entry))


def port_holder(entry: Mapping[str, Any]) -> str:
    """Return who holds a port, in words; empty when that is not known."""
    if entry.get("container"):
        return f"the container {entry['container']}"
    if entry.get("process"):
        return f"the process {entry['process']} (pid {entry.get('pid')})"
    return ""


def port_in_use(replica: str, host: str, port: int, holder: str) -> GpufleetError:
    """Return the error for a port that something else holds."""
    return GpufleetError(
        f"Replica {replica} cannot have port {port} on {host}: {holder or 'something else'} holds it.",
        name="port-in-use",
        remedy=f"Set vllm_port (or vllm_host) to a free one, or end what holds port {port}.",
        details={"port": port, "holder": holder},
    )
