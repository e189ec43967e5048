# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a fleet holds as many requests at once as are wanted, and how many hosts of each kind would.

The hosts of one model are judged together. What a host holds is what its plan says: requests of the expected length in
the KV cache, at most as many as its servers run at once. How fast those are answered is not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.served_names import served_names
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.shares import share_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import in_order, shortened
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.plan_page import kinds_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned, count_of

VARIABLE = "vllm_target_requests"
HEADINGS = ("which", "hosts", "requests/host", "together", "these alone: hosts", "and with a change")
MOST_HOSTS = 10_000  # where a search ends: with a vllm_max_unavailable of 100% no number is enough


@dataclass(frozen=True)
class Target:
    """What the variables of one host ask of its fleet.

    Attributes:
        requests: vllm_target_requests; 0 asks nothing.
        lengths: tokens of the expected prompt and answer.
        may_be_out: vllm_max_unavailable.
        model: vllm_model, or None where the plan chooses.
    """

    requests: int
    lengths: tuple[int, int]
    may_be_out: Any
    model: str | None


@dataclass(frozen=True)
class Kind:
    """Hosts that run the same, and how many requests the least of them holds; None where no plan knows."""

    hosts: tuple[str, ...]
    holds: int | None


def capacity(plans: Mapping[str, Plan], targets: Mapping[str, Target], missing: int) -> list[dict[str, Any]]:
    """Return, for each model with a target, whether its hosts suffice.

    Args:
        plans: of the hosts that have one.
        targets: of these hosts.
        missing: how many more hosts the play has, without a plan.

    Raises:
        GpufleetError: C(invalid-wishes), for a vllm_max_unavailable that is no number of hosts.
    """
    found = [_judged(hosts, plans, targets) for hosts in _by_model(plans, targets)]
    return [{**result, "without_plan": missing} for result in found if result]


def capacity_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a person reads of the results of L(capacity)."""
    return [line for result in results for line in ("", *_lines(result))]


def _by_model(plans: Mapping[str, Plan], targets: Mapping[str, Target]) -> list[list[str]]:
    """Return the hosts that answer for each other: their servers share a name, or their variables name one model."""
    groups: list[tuple[set[Any], list[str]]] = []
    for host in in_order(plans):
        names: set[Any] = {("vllm_model", targets[host].model), *_names(plans[host])}
        hosts = [host]
        for group in [group for group in groups if group[0] & names]:
            groups.remove(group)
            names |= group[0]
            hosts = group[1] + hosts
        groups.append((names, hosts))
    return [in_order(hosts) for _shared, hosts in groups]


def _names(plan: Plan) -> list[str]:
    return [name for replica in plan["replicas"] for name in served_names(replica["config"], str(plan["model"]))]


def _holds(plan: Plan) -> int | None:
    each = plan["capacity"]["max_concurrent_requests"]
    return None if each is None else each * len(plan["replicas"])


def _kind(hosts: Sequence[str], plans: Mapping[str, Plan]) -> Kind:
    known = [held for host in hosts if (held := _holds(plans[host])) is not None]
    return Kind(tuple(hosts), min(known) if len(known) == len(hosts) else None)


def _judged(hosts: Sequence[str], plans: Mapping[str, Plan], targets: Mapping[str, Target]) -> dict[str, Any]:
    """Return the result of the hosts of one model; empty where none has a target."""
    wanted = sorted({targets[host].requests for host in hosts} - {0})
    if not wanted:
        return {}
    lengths = sorted({targets[host].lengths for host in hosts})
    may_be_out = targets[hosts[0]].may_be_out
    shared = set.intersection(*(set(_names(plans[host])) for host in hosts))
    kinds = [_kind(alike, plans) for alike in kinds_of({host: plans[host] for host in hosts})]
    fleet = [(len(kind.hosts), kind.holds or 0) for kind in kinds]
    held, left = _together(fleet), _left(fleet, may_be_out)
    return {
        "target_requests": wanted[-1],
        "targets": wanted,
        "expected_lengths": [list(pair) for pair in lengths],
        "names": sorted(shared or {_names(plans[host])[0] for host in hosts}),
        "shared_name": bool(shared),
        "hosts": len(hosts),
        "holds": held,
        "max_unavailable": str(may_be_out),
        "out_at_once": _out(len(hosts), may_be_out),
        "holds_during_change": left,
        "enough": held >= wanted[-1],
        "enough_during_change": left >= wanted[-1],
        "kinds": [_of_kind(kind, wanted[-1], fleet, may_be_out) for kind in kinds],
    }


def _of_kind(kind: Kind, wanted: int, fleet: Sequence[tuple[int, int]], may_be_out: Any) -> dict[str, Any]:
    """Return what a kind of host holds, how many of it would do alone, and how many more of it the fleet lacks."""
    holds = kind.holds
    return {
        "which": list(kind.hosts),
        "holds": holds,
        "needed": -(-wanted // holds) if holds else None,
        "needed_during_change": _search(wanted, holds, [], may_be_out) if holds else None,
        "further": max(0, -(-(wanted - _together(fleet)) // holds)) if holds else None,
        "further_during_change": _search(wanted, holds, fleet, may_be_out) if holds else None,
    }


def _together(fleet: Sequence[tuple[int, int]]) -> int:
    return sum(number * holds for number, holds in fleet)


def _out(hosts: int, may_be_out: Any) -> int:
    return min(hosts, share_of(may_be_out, hosts, "vllm_max_unavailable", least=1))


def _left(fleet: Sequence[tuple[int, int]], may_be_out: Any) -> int:
    """Return what the hosts hold while as many as may be are out, those that hold most."""
    out = _out(sum(number for number, _each in fleet), may_be_out)
    left = 0
    for number, holds in sorted(fleet, key=lambda entry: -entry[1]):
        gone = min(out, number)
        out -= gone
        left += (number - gone) * holds
    return left


def _search(wanted: int, holds: int, fleet: Sequence[tuple[int, int]], may_be_out: Any) -> int | None:
    """Return how many more hosts of a kind let a fleet hold enough during a change; None if MOST_HOSTS are too few."""
    least = max(0, -(-(wanted - _together(fleet)) // holds))
    for number in range(least, MOST_HOSTS):
        if _left([*fleet, (number, holds)], may_be_out) >= wanted:
            return number
    return None


# In words


def _lines(result: Mapping[str, Any]) -> list[str]:
    wanted = result["target_requests"]
    lengths = " or ".join(f"{into} + {out}" for into, out in result["expected_lengths"])
    return [
        f"{wanted:,} requests at once ({VARIABLE}) of {lengths} tokens, to {' and '.join(result['names'])}:",
        *aligned([HEADINGS, *(_row(kind) for kind in result["kinds"])]),
        *(f"  {line}" for line in _verdict(result)),
        *(f"  {line}" for line in _remarks(result)),
    ]


def _row(kind: Mapping[str, Any]) -> tuple[str, ...]:
    number, holds = len(kind["which"]), kind["holds"]
    return (
        shortened(kind["which"]),
        str(number),
        _number(holds),
        _number(None if holds is None else holds * number),
        _number(kind["needed"]),
        _number(kind["needed_during_change"]) if holds is None or kind["needed_during_change"] else "-",
    )


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _verdict(result: Mapping[str, Any]) -> list[str]:
    hosts, out = count_of(result["hosts"], "host"), result["out_at_once"]
    meanwhile = (
        f"{result['holds_during_change']:,} while a change has {count_of(out, 'host')} out"
        f" (vllm_max_unavailable: {result['max_unavailable']})"
    )
    if result["enough_during_change"]:
        return [f"Enough: {hosts} hold {result['holds']:,}, and {meanwhile}."]
    if result["enough"]:
        return [
            f"Enough only while all serve: {hosts} hold {result['holds']:,}, but {meanwhile}.",
            *_further(result, "further_during_change", "For a change without waiting requests add"),
        ]
    missing = result["target_requests"] - result["holds"]
    return [
        f"Not enough: {hosts} hold {result['holds']:,}, {missing:,} too few; {meanwhile}.",
        *_further(result, "further", "While all serve it takes"),
        *_further(result, "further_during_change", "With a change it takes"),
    ]


def _further(result: Mapping[str, Any], key: str, words: str) -> list[str]:
    ways = [
        f"{kind[key]:,} more {'host' if kind[key] == 1 else 'hosts'} like {shortened(kind['which'])}"
        for kind in result["kinds"]
        if kind[key]
    ]
    return [f"{words} {', or '.join(ways)}."] if ways else []


def _remarks(result: Mapping[str, Any]) -> list[str]:
    unknown = [host for kind in result["kinds"] if kind["holds"] is None for host in kind["which"]]
    remarks = []
    if unknown:
        remarks.append(f"Not known, and counted as nothing: what {shortened(unknown)} can hold.")
    if result["without_plan"]:
        remarks.append(f"Not counted: {count_of(result['without_plan'], 'host')} without a plan.")
    if len(result["targets"]) > 1:
        numbers = ", ".join(f"{number:,}" for number in result["targets"])
        remarks.append(f"{VARIABLE} differs between these hosts ({numbers}); the largest counts.")
    if not result["shared_name"]:
        remarks.append(
            "They share no name: a client reaches only the hosts whose model it names. Give them one more by"
            " vllm_served_model_name."
        )
    return remarks
