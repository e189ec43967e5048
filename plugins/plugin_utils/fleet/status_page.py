# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the servers of a whole fleet do, on one page: what is wrong first, alike replicas in one row.

Each host tells its replicas in words of its own, see `summary` in health/status.py; this page puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.gpu_lines import gpu_lines, sick_hosts
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.gpu_reasons import explained
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.history_page import history_lines
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import by_text, fold, in_order, shortened
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.router_lines import (
    certificate_lines,
    gets_requests,
    shared_lines,
    watch_lines,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.should_serve import should_serve
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned, count_of

# More serving replicas than these share a line with others of their kind.
MOST_ROWS = 24
SHOWN_DEPLOYMENTS = 3
# Of a drained host that no person took out.
IN_TURN = "in its turn of a run; if none is under way, the next upgrade or deploy puts it back"
TURN_OVER = "a run could not put it right; the next upgrade or deploy takes it up"


Pair = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class FleetStatus:
    """What is known of the servers of many hosts.

    Attributes:
        asked: number of all hosts that were asked.
        servers: the servers of each host that could be looked at.
        failing: host and server of each replica that does not serve.
        serving: the same of those that serve.
        drift: hosts that differ from what the inventory wishes, with how.
        not_looked_at: hosts that answered but could not be looked at, with the cause.
        not_reached: hosts that did not answer.
        gpu_health: what each host found of its GPUs.
        routers: what each router told of all hosts.
        closed: for each router the hosts that get no requests for a replica, with the reasons.
    """

    asked: int
    servers: Mapping[str, Sequence[Mapping[str, Any]]]
    failing: Sequence[Pair]
    serving: Sequence[Pair]
    drift: Mapping[str, str]
    not_looked_at: Mapping[str, str]
    not_reached: Sequence[str]
    gpu_health: Mapping[str, Mapping[str, Any]]
    routers: Mapping[str, Mapping[str, Any]]
    closed: Mapping[str, Mapping[str, Sequence[str]]]

    @property
    def without_requests(self) -> list[str]:
        """The hosts to which some router sends nothing."""
        return in_order({host for hosts in self.closed.values() for host in hosts})


def status_lines(
    servers: Mapping[str, Sequence[Mapping[str, Any]]],
    drift: Mapping[str, Sequence[str]] | None = None,
    deployments: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    all_hosts: Sequence[str] = (),
    errors: Mapping[str, str] | None = None,
    routers: Mapping[str, Mapping[str, Any]] | None = None,
    plans: Mapping[str, Mapping[str, Any]] | None = None,
    gpu_health: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, list[str]]:
    """Return the lines that a person reads of the servers of many hosts.

    Args:
        servers: host names to what the module vllm_server_info returned as `servers`.
        drift: host names to how what they run differs from what the inventory wishes.
        deployments: host names to what the module vllm_server_info returned as `deployments`.
        all_hosts: every host that was asked; those that are not among `servers` were not reached.
        errors: host names to why what runs there could not be looked at; empty where it could.
        routers: hosts of routers to what the module router_backend returned of all hosts there.
        plans: host names to what the module vllm_server_info returned as `plan`.
        gpu_health: host names to what the module vllm_server_info returned as `gpu_health`.

    Returns:
        `lines`: a headline, then what is wrong: a line for each replica that does not serve, with the cause of its
        death and the remedy; then those that serve, alike ones of a large fleet in one line, the rarest first; then the
        hosts on which nothing is deployed, those that could not be looked at, with the cause, those that were not
        reached, those to which a router sends nothing, and those that differ from the inventory's wish.
        `details`: `docker_run` and the last deployments.
        `docker_run`: the line that repeats each replica by hand.
        `not_serving`: `host/replica`.
        `differing`, `not_looked_at`, `not_reached` and `without_requests`: names of hosts.
        `sick_gpus`: hosts with a sick GPU.
        `should_serve`: what does not serve though it should, each with the reason.
    """
    told = {host: explained(report) for host, report in (gpu_health or {}).items()}
    found = _collect(servers, drift or {}, all_hosts, errors or {}, routers or {}, told)
    made = {host: list(entries)[:SHOWN_DEPLOYMENTS] for host, entries in (deployments or {}).items()}
    history = history_lines({host: entries for host, entries in made.items() if host in found.servers})
    docker_run = [f"{host} {server['name']}: {server['docker_run']}" for host, server in _replicas(found.servers)]
    return {
        "lines": _page(found),
        "details": [*docker_run, *history["lines"]],
        "docker_run": docker_run,
        "not_serving": [f"{host}/{server['name']}" for host, server in found.failing],
        "differing": in_order(found.drift),
        "not_looked_at": in_order(found.not_looked_at),
        "not_reached": list(found.not_reached),
        "without_requests": found.without_requests,
        "sick_gpus": sick_hosts(found.gpu_health),
        "should_serve": should_serve(found.servers, found.routers, plans or {}),
    }


def _collect(
    servers: Mapping[str, Sequence[Mapping[str, Any]]],
    drift: Mapping[str, Sequence[str]],
    all_hosts: Sequence[str],
    errors: Mapping[str, str],
    routers: Mapping[str, Mapping[str, Any]],
    gpu_health: Mapping[str, Mapping[str, Any]],
) -> FleetStatus:
    """Sort out what was told of the hosts, see status_lines."""
    not_looked_at = {host: _one_line(text) for host, text in errors.items() if text}
    looked_at = {host: found for host, found in servers.items() if host not in not_looked_at}
    replicas = _replicas(looked_at)
    return FleetStatus(
        asked=len(all_hosts),
        servers=looked_at,
        failing=[pair for pair in replicas if pair[1]["phase"] != "serving"],
        serving=[pair for pair in replicas if pair[1]["phase"] == "serving"],
        drift={host: "; ".join(_one_line(text) for text in texts) for host, texts in drift.items() if texts},
        not_looked_at=not_looked_at,
        not_reached=in_order(host for host in all_hosts if host not in servers and host not in not_looked_at),
        gpu_health=gpu_health,
        routers=routers,
        closed={name: _without_requests(found, looked_at) for name, found in routers.items()},
    )


def _replicas(servers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Pair]:
    """Return host and server of each replica, in the order of the hosts."""
    return [(host, server) for host in in_order(servers) for server in servers[host]]


def _page(found: FleetStatus) -> list[str]:
    """Return the lines of the page."""
    rows = [(host, server["name"], _with_diagnosis(server)) for host, server in found.failing]
    rows += _serving_rows(found.serving)
    lines = [_headline(found), *aligned([("host", "replica", "what it does"), *rows] if rows else [])]
    lines += gpu_lines(found.gpu_health, found.asked)
    empty = [host for host, servers in found.servers.items() if not servers]
    if empty:
        lines.append(f"Nothing is deployed on {fold(empty)}.")
    if found.not_looked_at:
        lines += ["Not looked at:", *by_text(found.not_looked_at.items(), found.asked)]
    if found.not_reached:
        lines.append(f"Not reached: {fold(found.not_reached)}.")
    for name, router in found.routers.items():
        lines += _router_lines(name, router, found.closed[name], len(found.servers))
    lines += [*watch_lines(found.routers), *shared_lines(found.routers), *certificate_lines(found.routers)]
    if found.drift:
        lines += ["Not as the inventory wishes:", *by_text(found.drift.items(), len(found.servers))]
    return lines


def _headline(found: FleetStatus) -> str:
    """Return how many replicas serve, and how many hosts deserve a look."""
    replicas = len(found.serving) + len(found.failing)
    hosts = {
        "with a sick GPU": len(sick_hosts(found.gpu_health)),
        "not as the inventory wishes": len(found.drift),
        "not looked at": len(found.not_looked_at),
        "not reached": len(found.not_reached),
        "without requests": len(found.without_requests),
    }
    parts = [f"{len(found.serving)} of {replicas} replicas serving on {count_of(len(found.servers), 'host')}"]
    parts += [f"{count_of(number, 'host')} {what}" for what, number in hosts.items() if number]
    return ", ".join(parts)


def _without_requests(
    router: Mapping[str, Any], servers: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[str]]:
    """Return which hosts get no requests for a replica, each with its replicas and why."""
    if "servers" not in router:
        return {}
    found: dict[str, list[str]] = {}
    causes = router.get("causes") or {}
    for name, server in router["servers"].items():
        host, _colon, replica = name.rpartition(":")
        status = str(server["status"])
        words = {"drain": "drained", "maint": "in maintenance"}.get(server["state"], "")
        if not gets_requests(server):
            why = f", {causes[name]}" if name in causes and not words else ""
            found.setdefault(host, []).append(f"{replica} {words or status}{why}")
    for host, replicas in servers.items():
        for replica in replicas:
            if replica["phase"] == "serving" and f"{host}:{replica['name']}" not in router["servers"]:
                found.setdefault(host, []).append(f"{replica['name']} serves, and it does not know that one")
    return found


def _router_lines(name: str, router: Mapping[str, Any], closed: Mapping[str, Sequence[str]], hosts: int) -> list[str]:
    """Return what is to be said of one router: how many replicas get requests, and which do not, with the reasons."""
    if "servers" not in router:
        why = (router.get("error") or {}).get("message") or router.get("msg") or "it was not reached"
        return [f"The router {name} could not be asked: {_one_line(str(why))}"]
    servers = router["servers"].values()
    usable = [server for server in servers if gets_requests(server)]
    running = sum(int(server.get("sessions", 0)) for server in servers)
    all_of_them = count_of(len(servers), "replica")
    told = f"The router {name} sends requests to {len(usable)} of {all_of_them}; {running} are running."
    if not closed:
        return [told]
    said = {
        **dict.fromkeys(router.get("in_turn") or [], IN_TURN),
        **dict.fromkeys(router.get("turns_over") or [], TURN_OVER),
        **(router.get("reasons") or {}),
    }
    texts = [
        (host, ", ".join(reasons) + (f": {_one_line(said[host])}" if host in said else ""))
        for host, reasons in closed.items()
    ]
    return [told, f"The router {name} sends nothing to:", *by_text(texts, hosts)]


def _serving_rows(serving: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, str, str]]:
    """Return a row for each serving replica, or, where there are many, for each kind of them, the rarest first.

    One of which an unfinished replacement keeps the old container has a row of its own.
    """
    if len(serving) <= MOST_ROWS:
        return [(host, server["name"], server["summary"]) for host, server in serving]
    odd = [(host, server["name"], server["summary"]) for host, server in serving if server.get("previous")]
    kinds: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for host, server in serving:
        if server.get("previous"):
            continue
        kinds.setdefault((str(server.get("model")), str(server.get("vllm_version"))), []).append((host, server))
    rows = []
    for (model, version), found in sorted(kinds.items(), key=lambda kind: len(kind[1])):
        loads = [server.get("load") or {} for _host, server in found]
        running, waiting = (
            sum(load.get(name, 0) for load in loads) for name in ("requests_running", "requests_waiting")
        )
        what = f"serving, model {model}, vLLM {version or '?'}, {running:.0f} requests running, {waiting:.0f} waiting"
        hosts = list(dict.fromkeys(host for host, _server in found))
        rows.append((shortened(hosts), count_of(len(found), "replica"), what))
    return odd + rows


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _with_diagnosis(server: Mapping[str, Any]) -> str:
    diagnosis = server.get("diagnosis") or {}
    parts = [server["summary"], diagnosis.get("evidence"), diagnosis.get("remedy")]
    return "; ".join(" ".join(part.split()) for part in parts if part)
