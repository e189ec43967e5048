# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plans of a whole fleet on one page: alike hosts in one row, each warning once with its hosts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import by_text, natural, shortened
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned, count_of

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
LONGEST_MODEL = 44


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
    kinds = kinds_of(good)
    rows = [_row(hosts, [good[host] for host in hosts]) for hosts in kinds]
    lines = [_headline(len(plans), len(kinds), len(refused)), *aligned([HEADINGS, *rows] if rows else [])]
    if refused:
        lines += ["", "Refused:", *by_text(refused.items(), len(plans))]
    warned = [(host, warning) for host, plan in good.items() for warning in plan["warnings"]]
    if warned:
        lines += ["", "Warnings:", *by_text(warned, len(good))]
    reasons = [line for hosts in kinds for line in _reasons(hosts, good[hosts[0]])]
    return {"table": lines, "reasons": reasons}


def _is_plan(plan: Any) -> bool:
    return isinstance(plan, Mapping) and "replicas" in plan


def _error_text(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error or "no plan; the host failed or was not reached")
    texts = (error.get("message") or error.get("msg") or "no plan", error.get("remedy"))
    return " ".join(str(text) for text in texts if text)


# Of a replica: its name, where it listens, and which very cards it has.
OF_ONE_HOST = ("name", "host", "port", "gpus", "gpu_uuids")


def plan_kind(plan: Plan) -> str:
    """Return what two plans must have in common to be one row: all that runs, but neither why nor where."""
    replicas = [
        {key: value for key, value in replica.items() if key not in OF_ONE_HOST} for replica in plan["replicas"]
    ]
    return _as_text(plan, replicas)


def plan_text(plan: Plan) -> str:
    """Return all that a plan has a host serve, without the reasons."""
    return _as_text(plan, [{**replica, "gpu_uuids": []} for replica in plan["replicas"]])


def _as_text(plan: Plan, replicas: Sequence[Mapping[str, Any]]) -> str:
    other = {key: value for key, value in plan.items() if key not in ("decisions", "warnings", "capacity")}
    return json.dumps({**other, "replicas": replicas}, sort_keys=True)


def kinds_of(plans: Mapping[str, Plan]) -> list[list[str]]:
    """Return the hosts whose plans are of one kind, the largest group first."""
    groups: dict[str, list[str]] = {}
    for host, plan in plans.items():
        groups.setdefault(plan_kind(plan), []).append(host)
    return sorted(groups.values(), key=lambda hosts: (-len(hosts), natural(hosts[0])))


def _row(hosts: Sequence[str], plans: Sequence[Plan]) -> tuple[str, ...]:
    plan = plans[0]
    first = plan["replicas"][0]
    return (
        str(len(hosts)),
        shortened(hosts),
        str(plan.get("hardware", plan["device"])),
        _tail(str(plan["model"])),
        str(plan["precision"]),
        f"{len(plan['replicas'])} x TP {first['tensor_parallel_size']}",
        _least(plans, "kv_cache_tokens"),
        _least(plans, "max_concurrent_requests"),
        str(plan["image"]["vllm_version"]),
    )


def _least(plans: Sequence[Plan], name: Literal["kv_cache_tokens", "max_concurrent_requests"]) -> str:
    """Return the smallest capacity of a group, or a question mark where none is known."""
    values = [value for plan in plans if (value := plan["capacity"][name]) is not None]
    return f"{min(values):,}" if values else "?"


def _tail(model: str) -> str:
    """Return a model's name without its organisation, and no longer than the column."""
    name = model.rsplit("/", 1)[-1]
    return name if len(name) <= LONGEST_MODEL else name[: LONGEST_MODEL - 3] + "..."


def _headline(hosts: int, kinds: int, refused: int) -> str:
    text = f"{count_of(hosts, 'host')}: {count_of(kinds, 'kind')} of plan"
    return text + (f", {refused} refused" if refused else "")


def _reasons(hosts: Sequence[str], plan: Plan) -> list[str]:
    lines = [f"{shortened(hosts)}:"]
    for decision in plan["decisions"]:
        value = "not sent" if decision["value"] is None else decision["value"]
        lines.append(f"  {decision['field']} = {value}: {decision['reason']}")
    return lines
