# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plans of a whole fleet on one page: alike hosts in one row, each warning once with its hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.history_page import history_lines
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import by_text, fold, in_order, shortened
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned, count_of

# More serving replicas than these share a line with others of their kind.
MOST_ROWS = 24
SHOWN_DEPLOYMENTS = 3


def status_lines(
    servers: Mapping[str, Sequence[Mapping[str, Any]]],
    drift: Mapping[str, Sequence[str]] | None = None,
    deployments: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    all_hosts: Sequence[str] = (),
    errors: Mapping[str, str] | None = None,
    front_ends: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, list[str]]:
    """Return the lines that a person reads of the servers of many hosts.

    Args:
        servers: host names to what the module vllm_server_info returned as C(servers).
        drift: host names to how what they run differs from what the inventory wishes.
        deployments: host names to what the module vllm_server_info returned as C(deployments).
        all_hosts: every host that was asked; those that are not among C(servers) were not reached.
        errors: host names to why what runs there could not be looked at; empty where it could.
        front_ends: hosts of front ends to what the module router_backend returned of all hosts there.

    Returns:
        C(lines) (a headline, then what is wrong: a line for each replica that does not serve, with the cause of its
        death and the remedy; then those that serve, alike ones of a large fleet in one line, the rarest first; then the
        hosts on which nothing is deployed, those that could not be looked at, with the cause, those that were not
        reached, those to whom a front end sends nothing, and those that differ from the inventory's wish), C(details)
        (C(docker_run) and the last deployments), C(docker_run) (the line that repeats each replica by hand),
        C(not_serving) (C(host/replica)), C(differing), C(not_looked_at), C(not_reached) and C(without_requests) (hosts
        to whom a front end sends nothing).
    """
    unseen = {host: _one_line(text) for host, text in (errors or {}).items() if text}
    lost = in_order(host for host in all_hosts if host not in servers and host not in unseen)
    servers = {host: found for host, found in servers.items() if host not in unseen}
    replicas = [(host, server) for host in in_order(servers) for server in servers[host]]
    failing = [(host, server) for host, server in replicas if server["phase"] != "serving"]
    serving = [pair for pair in replicas if pair not in failing]
    empty = [host for host, found in servers.items() if not found]
    differs = {host: "; ".join(_one_line(text) for text in texts) for host, texts in (drift or {}).items() if texts}
    headline = [f"{len(serving)} of {len(replicas)} replicas serving on {count_of(len(servers), 'host')}"]
    headline += [f"{count_of(len(differs), 'host')} not as the inventory wishes"] if differs else []
    headline += [f"{count_of(len(unseen), 'host')} not looked at"] if unseen else []
    headline += [f"{count_of(len(lost), 'host')} not reached"] if lost else []
    closed = {name: _without_requests(found, servers) for name, found in (front_ends or {}).items()}
    dark = in_order({host for hosts in closed.values() for host in hosts})
    headline += [f"{count_of(len(dark), 'host')} without requests"] if dark else []
    rows = [(host, server["name"], _with_diagnosis(server)) for host, server in failing]
    rows += _serving_rows(serving)
    lines = [", ".join(headline), *aligned([("host", "replica", "what it does"), *rows] if rows else [])]
    if empty:
        lines.append(f"Nothing is deployed on {fold(empty)}.")
    if unseen:
        lines += ["Not looked at:", *by_text(unseen.items(), len(all_hosts))]
    if lost:
        lines.append(f"Not reached: {fold(lost)}.")
    for name, found in (front_ends or {}).items():
        lines += _front_end_lines(name, found, closed[name], len(servers))
    if differs:
        lines += ["Not as the inventory wishes:", *by_text(differs.items(), len(servers))]
    made = {host: list(found)[:SHOWN_DEPLOYMENTS] for host, found in (deployments or {}).items() if host in servers}
    history = history_lines(made)
    docker_run = [f"{host} {server['name']}: {server['docker_run']}" for host, server in replicas]
    return {
        "lines": lines,
        "details": [*docker_run, *history["lines"]],
        "docker_run": docker_run,
        "not_serving": [f"{host}/{server['name']}" for host, server in failing],
        "differing": in_order(differs),
        "not_looked_at": in_order(unseen),
        "not_reached": lost,
        "without_requests": dark,
    }


def _without_requests(
    front_end: Mapping[str, Any], servers: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[str]]:
    """Return which hosts get no requests for a replica, each with its replicas and why."""
    if "servers" not in front_end:
        return {}
    found: dict[str, list[str]] = {}
    for name, server in front_end["servers"].items():
        host, _colon, replica = name.rpartition(":")
        status = str(server["status"])
        words = {"drain": "drained", "maint": "in maintenance"}.get(server["state"], "")
        if words or not status.startswith(("UP", "no check")):
            found.setdefault(host, []).append(f"{replica} {words or status}")
    for host, replicas in servers.items():
        for replica in replicas:
            if replica["phase"] == "serving" and f"{host}:{replica['name']}" not in front_end["servers"]:
                found.setdefault(host, []).append(f"{replica['name']} serves, and it does not know that one")
    return found


def _front_end_lines(
    name: str, front_end: Mapping[str, Any], closed: Mapping[str, Sequence[str]], hosts: int
) -> list[str]:
    """Return what is to be said of one front end: nothing where every replica gets requests."""
    if "servers" not in front_end:
        why = (front_end.get("error") or {}).get("message") or front_end.get("msg") or "it was not reached"
        return [f"The front end {name} could not be asked: {_one_line(str(why))}"]
    if not closed:
        return []
    texts = [(host, ", ".join(reasons)) for host, reasons in closed.items()]
    return [f"The front end {name} sends nothing to:", *by_text(texts, hosts)]


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
