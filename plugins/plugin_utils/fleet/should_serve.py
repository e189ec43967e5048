# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What does not serve though it should: the playbook status ends with an exit code by it.

What a person has drained, or a run for its turn, is out on purpose; what a run has given up is not. Hosts on which
nothing is deployed have nothing that should serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import host_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import in_order
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.router_lines import gets_requests


def should_serve(
    servers: Mapping[str, Sequence[Mapping[str, Any]]],
    routers: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Return what does not serve though it should, each with the reason, in the order of the hosts.

    Args:
        servers: hosts that could be looked at, with what the module vllm_server_info returned as `servers`.
        routers: hosts of routers to what the module router_backend returned of all hosts there.
        plans: host names to what the module vllm_server_info returned as `plan`.
    """
    found = []
    for host in in_order(servers):
        there = {str(server["name"]): str(server["phase"]) for server in servers[host]}
        found += [f"{host}/{name}: {phase}" for name, phase in there.items() if phase != "serving"]
        planned = [str(replica["name"]) for replica in (plans.get(host) or {}).get("replicas") or []]
        found += [f"{host}/{name}: has no container" for name in planned if name not in there]
    serving = {
        f"{host}:{server['name']}" for host in servers for server in servers[host] if server["phase"] == "serving"
    }
    for name in in_order(routers):
        found += _at(name, routers[name], serving)
    return found


def _at(name: str, router: Mapping[str, Any], serving: set[str]) -> list[str]:
    """Return which serving replicas one router sends nothing to, though none has taken them out on purpose."""
    if "servers" not in router:
        return [f"router {name}: it could not be asked"]
    behind = router["servers"]
    unknown = [f"{replica}: the router {name} does not know it" for replica in sorted(serving - set(behind))]
    down = [
        f"{replica}: the router {name} sends nothing to it ({behind[replica]['status']})"
        for replica in sorted(serving & set(behind))
        if behind[replica]["state"] == "ready" and not gets_requests(behind[replica])
    ]
    given_up = [
        f"{replica}: a run left it out of the router {name} and could not put it right"
        for replica in sorted(serving & set(behind))
        if behind[replica]["state"] == "drain" and host_of(replica) in (router.get("turns_over") or [])
    ]
    return unknown + down + given_up
