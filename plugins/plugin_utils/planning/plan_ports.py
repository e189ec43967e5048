# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the ports of a plan are free on its host, before anything is fetched, made or stopped."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import port_holder, port_in_use
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import HostInfo


def check_host(plan: Plan, host_info: HostInfo) -> None:
    """Compare a plan with what the module host_info told of its host; parts that it did not look at count as fine.

    Raises:
        GpufleetError: C(port-in-use).
    """
    seen = {entry["port"]: entry for entry in host_info.get("ports") or []}
    for replica in plan["replicas"]:
        entry = seen.get(replica["port"])
        if entry and not entry["free"] and not entry["ours"]:
            raise port_in_use(replica["name"], replica["host"], replica["port"], port_holder(entry))
