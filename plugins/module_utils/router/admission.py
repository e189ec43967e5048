# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host may be taken out of the router now: the one rule for everything that takes a server out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import host_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.shares import share_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import listed
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import BackendServer

VARIABLE, OUTAGE = "vllm_max_unavailable", "vllm_allow_outage"


@dataclasses.dataclass(frozen=True)
class Limit:
    """How much of a fleet may be out at once.

    Attributes:
        most: hosts, as a number or a percentage of all that the router has; one always may; empty for no limit.
        allow_outage: whether requests may be left without any server.
        requests_per_replica: requests that one replica can carry at once; 0 if unknown.
    """

    most: str = ""
    allow_outage: bool = False
    requests_per_replica: int = 0


def out_hosts(servers: Mapping[str, BackendServer]) -> list[str]:
    """Return the hosts that get no request: none of their replicas is up and ready."""
    hosts = dict.fromkeys(map(host_of, servers))
    serving = {host_of(name) for name, server in servers.items() if server.usable()}
    return [host for host in hosts if host not in serving]


def obstacle(
    hosts: Collection[str], servers: Mapping[str, BackendServer], turns: Mapping[str, str], limit: Limit
) -> GpufleetError | None:
    """Return why hosts must not be taken out now; None if they may.

    Hosts that get no request are none that could be taken out, so nothing is in their way. Of the error, the detail
    C(passes) says whether it may end by itself, and C(turns) which of those hosts are out for which run.

    Args:
        hosts: that are to be taken out together.
        servers: all that the router has, by name.
        turns: hosts that a run has taken out for a while, with that run: they come back.
        limit: what is allowed.

    Raises:
        GpufleetError: `invalid-wishes` for a limit that is neither number nor percentage.
    """
    out = out_hosts(servers)
    leaving = [host for host in hosts if host not in out and any(host_of(name) == host for name in servers)]
    if not leaving or not limit.most:
        return None
    everyone = len({host_of(name) for name in servers})
    most = share_of(limit.most, everyone, VARIABLE, least=1)
    going = [server for name, server in servers.items() if host_of(name) in leaving and server.usable()]
    left = [server for name, server in servers.items() if host_of(name) not in leaving and server.usable()]
    away = {host: turns[host] for host in out if host in turns}
    alone = [server.name for server in going if not any(map(server.serves_as, left))]
    if alone and not limit.allow_outage:
        return _nobody_left(alone, away, bool(left))
    if len(out) + len(leaving) > most:
        return _too_many(leaving, out, away, most, everyone, limit)
    others = [server for server in left if any(map(server.serves_as, going))]
    running = sum(server.sessions for server in [*going, *others])
    room = limit.requests_per_replica * len(others)
    if room and running > room and not limit.allow_outage:
        return _too_busy(leaving, running, len(others), limit)
    return None


def _nobody_left(alone: Collection[str], away: Mapping[str, str], others: bool) -> GpufleetError:
    what = " that serves the same model" if others else ""
    return GpufleetError(
        f"Without {', '.join(alone)} the router would have no replica{what} to send requests to, so it is left as it"
        " is.",
        name="no-other-serves",
        remedy=f"See what the others do (playbook gpufleet.vllm.status), or say {OUTAGE}: true.",
        details={"passes": bool(away), "turns": dict(away)},
    )


def _too_many(
    leaving: Collection[str], out: Collection[str], away: Mapping[str, str], most: int, everyone: int, limit: Limit
) -> GpufleetError:
    why = [f"{host} ({'taken out by a run' if host in away else 'drained or not answering'})" for host in out]
    return GpufleetError(
        f"{', '.join(leaving)} was not taken out of the router: {len(out)} of {everyone} hosts get no requests already,"
        f" {listed(why)}, and {VARIABLE} ({limit.most}) allows {most}.",
        name="too-many-unavailable",
        remedy=f"Have those serve again (playbooks gpufleet.vllm.status, resume and deploy), or set {VARIABLE} higher.",
        details={"passes": bool(away), "turns": dict(away)},
    )


def _too_busy(leaving: Collection[str], running: int, others: int, limit: Limit) -> GpufleetError:
    return GpufleetError(
        f"{', '.join(leaving)} was not taken out of the router: {running} requests are running, and the {others}"
        f" replicas that are left can carry {others * limit.requests_per_replica}.",
        name="too-busy",
        remedy=f"Run it again when there is less to do, or say {OUTAGE}: true.",
        details={"passes": True},
    )
