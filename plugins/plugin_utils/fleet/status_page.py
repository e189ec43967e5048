# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plans of a whole fleet on one page: alike hosts in one row, each warning once with its hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import ERROR, SEVERITIES, sentence

# Columns of the table: heading, and the text of a plan below it.
HEADINGS = (
    "hosts",
    "which",
    "hardware",
    "model",
    "precision",
    "replicas",
    "KV tokens/replica",
    "requests/replica",
    "vLLM",
)
LONGEST_HOSTS = 40
LONGEST_MODEL = 44
# More serving replicas than these share a line with others of their kind.
MOST_ROWS = 24
SHOWN_DEPLOYMENTS = 3


def table(plans: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the lines that a person reads of the plans of many hosts.

    Args:
        plans: host names to plans, or to the error that came instead: C(message), C(name) and C(remedy), or a text.

    Returns:
        C(table) (headings, a row for each kind of plan, the refused hosts and the warnings) and C(reasons) (for each
        kind of plan, every decision with its reason).
    """
    good = {host: plan for host, plan in plans.items() if _is_plan(plan)}
    refused = {host: _error_text(plan) for host, plan in plans.items() if host not in good}
    kinds = _grouped({host: plan_kind(plan) for host, plan in good.items()})
    rows = [_row(hosts, [good[host] for host in hosts]) for hosts in kinds]
    lines = [_headline(len(plans), len(kinds), len(refused)), *_aligned([HEADINGS, *rows] if rows else [])]
    if refused:
        lines += ["", "Refused:", *_by_text(refused.items(), len(plans))]
    warned = [(host, warning) for host, plan in good.items() for warning in plan["warnings"]]
    if warned:
        lines += ["", "Warnings:", *_by_text(warned, len(good))]
    reasons = [line for hosts in kinds for line in _reasons(hosts, good[hosts[0]])]
    return {"table": lines, "reasons": reasons}


def fold(hosts: Iterable[str]) -> str:
    """Return host names with runs of numbers folded as Ansible's inventories write them: C(gpu-[01:48])."""
    runs: list[tuple[str, str, str, str]] = []
    for host in sorted(hosts, key=_natural):
        before, number, after = _parts(host)
        if runs and number:
            run_before, first, last, run_after = runs[-1]
            follows = last and len(last) == len(number) and int(number) == int(last) + 1
            if follows and (run_before, run_after) == (before, after):
                runs[-1] = (before, first, number, after)
                continue
        runs.append((before, number, number, after))
    return ", ".join(
        f"{before}[{first}:{last}]{after}" if first != last else f"{before}{first}{after}"
        for before, first, last, after in runs
    )


def _parts(host: str) -> tuple[str, str, str]:
    """Return what stands before, in and after the last number of the host's own name, without its domain."""
    name, dot, domain = host.partition(".")
    found = re.search(r"\d+(?=\D*$)", name)
    if not found or name.isdigit():
        return host, "", ""
    return name[: found.start()], found.group(), name[found.end() :] + dot + domain


def in_order(hosts: Iterable[str]) -> list[str]:
    """Return host names in the order in which people number them: gpu-2 before gpu-10."""
    return sorted(hosts, key=_natural)


def _natural(host: str) -> tuple[Any, ...]:
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", host))


def _is_plan(plan: Any) -> bool:
    return isinstance(plan, Mapping) and "replicas" in plan


def _error_text(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error or "no plan; the host failed or was not reached")
    texts = (error.get("message") or error.get("msg") or "no plan", error.get("remedy"))
    return " ".join(str(text) for text in texts if text)


def plan_kind(plan: Mapping[str, Any]) -> str:
    """Return what two plans must have in common to be one row: all that runs, but not why nor on which very card."""
    replicas = [{**replica, "gpu_uuids": []} for replica in plan["replicas"]]
    other = {key: value for key, value in plan.items() if key not in ("decisions", "warnings", "capacity")}
    return json.dumps({**other, "replicas": replicas}, sort_keys=True)


def _grouped(keys: Mapping[str, str]) -> list[list[str]]:
    """Return the hosts that share a key, the largest group first."""
    groups: dict[str, list[str]] = {}
    for host, key in keys.items():
        groups.setdefault(key, []).append(host)
    return sorted(groups.values(), key=lambda hosts: (-len(hosts), _natural(hosts[0])))


def _row(hosts: Sequence[str], plans: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    plan = plans[0]
    first = plan["replicas"][0]
    return (
        str(len(hosts)),
        _shortened(hosts),
        str(plan.get("hardware", plan["device"])),
        _tail(str(plan["model"])),
        str(plan["precision"]),
        f"{len(plan['replicas'])} x TP {first['tensor_parallel_size']}",
        _least(plans, "kv_cache_tokens"),
        _least(plans, "max_concurrent_requests"),
        str(plan["image"]["vllm_version"]),
    )


def _least(plans: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the smallest capacity of a group, or a question mark where none is known."""
    values = [plan["capacity"][name] for plan in plans if plan["capacity"][name] is not None]
    return f"{min(values):,}" if values else "?"


def _tail(model: str) -> str:
    """Return a model's name without its organisation, and no longer than the column."""
    name = model.rsplit("/", 1)[-1]
    return name if len(name) <= LONGEST_MODEL else name[: LONGEST_MODEL - 3] + "..."


def _shortened(hosts: Sequence[str]) -> str:
    """Return the folded names, and only as many of them as a column holds."""
    parts = fold(hosts).split(", ")
    shown = parts[:1]
    for part in parts[1:]:
        if len(", ".join([*shown, part])) > LONGEST_HOSTS:
            break
        shown.append(part)
    left = len(parts) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows, which have as many columns each, as lines."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]


def _headline(hosts: int, kinds: int, refused: int) -> str:
    text = f"{_count(hosts, 'host')}: {_count(kinds, 'kind')} of plan"
    return text + (f", {refused} refused" if refused else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _by_text(pairs: Iterable[tuple[str, str]], total: int) -> list[str]:
    """Return each text once, after the hosts that it is about; the one about most hosts first."""
    hosts_of: dict[str, list[str]] = {}
    for host, text in pairs:
        hosts_of.setdefault(text, []).append(host)
    ordered = sorted(hosts_of.items(), key=lambda item: (-len(item[1]), _natural(item[1][0])))
    return [f"  {_who(hosts, total)}: {text}" for text, hosts in ordered]


def _who(hosts: Sequence[str], total: int) -> str:
    if len(hosts) == total and total > 1:
        return f"all {total}"
    return _shortened(hosts) + (f" ({len(hosts)} hosts)" if len(hosts) > 1 else "")


def _reasons(hosts: Sequence[str], plan: Mapping[str, Any]) -> list[str]:
    lines = [f"{_shortened(hosts)}:"]
    for decision in plan["decisions"]:
        value = "not sent" if decision["value"] is None else decision["value"]
        lines.append(f"  {decision['field']} = {value}: {decision['reason']}")
    return lines


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
    headline = [f"{len(serving)} of {len(replicas)} replicas serving on {_count(len(servers), 'host')}"]
    headline += [f"{_count(len(differs), 'host')} not as the inventory wishes"] if differs else []
    headline += [f"{_count(len(unseen), 'host')} not looked at"] if unseen else []
    headline += [f"{_count(len(lost), 'host')} not reached"] if lost else []
    closed = {name: _without_requests(found, servers) for name, found in (front_ends or {}).items()}
    dark = in_order({host for hosts in closed.values() for host in hosts})
    headline += [f"{_count(len(dark), 'host')} without requests"] if dark else []
    rows = [(host, server["name"], _with_diagnosis(server)) for host, server in failing]
    rows += _serving_rows(serving)
    lines = [", ".join(headline), *_aligned([("host", "replica", "what it does"), *rows] if rows else [])]
    if empty:
        lines.append(f"Nothing is deployed on {fold(empty)}.")
    if unseen:
        lines += ["Not looked at:", *_by_text(unseen.items(), len(all_hosts))]
    if lost:
        lines.append(f"Not reached: {fold(lost)}.")
    for name, found in (front_ends or {}).items():
        lines += _front_end_lines(name, found, closed[name], len(servers))
    if differs:
        lines += ["Not as the inventory wishes:", *_by_text(differs.items(), len(servers))]
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
    return [f"The front end {name} sends nothing to:", *_by_text(texts, hosts)]


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
        rows.append((_shortened(hosts), _count(len(found), "replica"), what))
    return odd + rows


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _with_diagnosis(server: Mapping[str, Any]) -> str:
    diagnosis = server.get("diagnosis") or {}
    parts = [server["summary"], diagnosis.get("evidence"), diagnosis.get("remedy")]
    return "; ".join(" ".join(part.split()) for part in parts if part)


def findings_page(hosts: Mapping[str, Sequence[Mapping[str, Any]] | None]) -> dict[str, list[str]]:
    """Return the lines that a person reads of what preflight found on many hosts.

    Args:
        hosts: host names to the findings there as plain data; None for a host that was not reached.

    Returns:
        C(lines) (a headline, then a line for each kind of finding with its hosts, errors first and the most frequent
        first) and C(details) (each host's findings in full).
    """
    judged = {host: findings for host, findings in hosts.items() if findings is not None}
    missing = [host for host in hosts if host not in judged]
    groups: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for host in sorted(judged, key=_natural):
        for finding in judged[host]:
            key = (finding["severity"], finding["name"], finding.get("item") or "")
            groups.setdefault(key, {}).setdefault(host, finding)
    ordered = sorted(groups.items(), key=lambda group: (SEVERITIES.index(group[0][0]), -len(group[1]), group[0][1:]))
    lines = [_preflight_headline(judged, len(missing))]
    lines += [f"  {severity:<8}{name}  {_finding_line(found)}" for (severity, name, _item), found in ordered]
    if missing:
        lines.append(f"  {ERROR:<8}not-judged  {_shortened(missing)}: the host was not reached, or failed before.")
    details = [
        f"{host} {finding['severity']} {finding['name']}: {sentence(finding)}"
        for host in sorted(judged, key=_natural)
        for finding in judged[host]
    ]
    return {"lines": lines, "details": details}


def _preflight_headline(judged: Mapping[str, Sequence[Mapping[str, Any]]], missing: int) -> str:
    worst = [
        min((SEVERITIES.index(finding["severity"]) for finding in findings), default=len(SEVERITIES))
        for findings in judged.values()
    ]
    errors, warnings = worst.count(0), worst.count(1)
    parts = [f"{errors} with errors"] if errors else []
    parts += [f"{warnings} with warnings only"] if warnings else []
    fit = len(judged) - errors - warnings
    parts += [f"{fit} fit"] if fit else []
    parts += [f"{missing} not judged"] if missing else []
    return f"Preflight of {_count(len(judged) + missing, 'host')}: {', '.join(parts)}"


def _finding_line(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a finding after its hosts; where they differ in their values, those of the first."""
    hosts = list(found)
    texts = {sentence(finding) for finding in found.values()}
    first = f" (on {hosts[0]}; others differ)" if len(texts) > 1 else ""
    return f"{_who(hosts, 0)}{first}: {sentence(found[hosts[0]])}"


def history_lines(deployments: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """Return the lines that a person reads of the last deployments of many hosts.

    Args:
        deployments: host names to what the module vllm_server_info returned as C(deployments), the newest first.

    Returns:
        C(lines) (a row for each deployment) and C(errors) (why those failed that did).
    """
    found = [(host, entry) for host in sorted(deployments, key=_natural) for entry in deployments[host]]
    empty = [host for host in deployments if not deployments[host]]
    rows = [
        (host, entry["id"], str(entry["model"]), str(entry["vllm_version"] or "?"), _image(entry), _outcome(entry))
        for host, entry in found
    ]
    lines = _aligned([("host", "deployment", "model", "vLLM", "image", ""), *rows] if rows else [])
    if empty:
        lines.append(f"No deployment remembered on {fold(empty)}.")
    failed = [(host, entry) for host, entry in found if entry["outcome"] != "ready"]
    return {
        "lines": lines,
        "errors": [f"{host} {entry['id']}: {(entry['error'] or {}).get('message', '')}" for host, entry in failed],
    }


def _image(entry: Mapping[str, Any]) -> str:
    image = entry["image"]
    return f"{image['reference']} ({str(image['id']).rpartition(':')[2][:12]})"


def _outcome(entry: Mapping[str, Any]) -> str:
    if entry["outcome"] != "ready":
        return f"failed: {(entry['error'] or {}).get('name', 'unknown')}"
    parts = ["current"] if entry["current"] else []
    if entry["rolled_back_to"]:
        parts.append(f"brought back {entry['rolled_back_to']}")
    return ", ".join(parts) or "served"
