# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight's check of whether the servers' ports can be closed to all but the routers."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import is_loopback
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.case import Case
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import WARNING, Finding


def _cannot_be_closed(case: Case) -> list[Finding]:
    programs = case.host_info.get("programs") or {}
    # Docker brings iptables along, so before it is there nothing can be told.
    if not case.wishes.restrict_ports or is_loopback(case.wishes.host) or not case.part("engine").get("running"):
        return []
    if programs.get("iptables", "not asked") is not None:
        return []
    plan = case.outlook.plan
    ports = [replica["port"] for replica in plan["replicas"]] if plan else [case.wishes.port]
    return [
        Finding(
            "ports-open",
            WARNING,
            f"The servers listen on {case.wishes.host}, and this host has no iptables to close their ports"
            f" ({', '.join(map(str, ports))}) to others than the routers.",
            "iptables, with which vllm_restrict_ports closes them",
            "Install iptables, or set vllm_host to an address in a network of the router's own. With a firewall of"
            " your own set vllm_restrict_ports: false.",
        )
    ]


CHECKS = (_cannot_be_closed,)
