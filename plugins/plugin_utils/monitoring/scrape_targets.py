# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to scrape: replicas, routers and hosts, in the form of Prometheus' file-based service discovery."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import authority, is_loopback

VLLM, ROUTER, NODE, DCGM = "gpufleet-vllm.json", "gpufleet-router.json", "gpufleet-node.json", "gpufleet-dcgm.json"
EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104  compared
Entry = dict[str, Any]
# At which address a replica of a host is reached, by where it listens; empty where it is not.
AddressOf = Callable[[str, str], str]


@dataclass(frozen=True)
class Router:
    """One router.

    Attributes:
        name: its host in the inventory.
        address: where other hosts reach it.
        port: of the listener for monitoring; 0 for none.
        listens: the address of that listener.
        tls: whether it speaks TLS.
        shared: an address that several routers share; empty for none.
    """

    name: str
    address: str
    port: int
    listens: str
    tls: bool
    shared: str = ""

    def reached(self) -> str:
        """Return the address of its listener."""
        return self.address if self.listens in EVERYWHERE else self.listens


@dataclass(frozen=True)
class Fleet:
    """What is known of the fleet.

    Attributes:
        plans: the applied plan of each host that was asked; empty where nothing is deployed.
        addresses: where each host is reached.
        unknown: hosts of the inventory that were not asked, or did not answer.
        routers: in the order of the inventory.
        here: hosts on which Prometheus runs, which reach what listens on their own loopback address.
    """

    plans: Mapping[str, Mapping[str, Any]]
    addresses: Mapping[str, str]
    unknown: Sequence[str]
    routers: Sequence[Router]
    here: Sequence[str] = ()
    left_out: list[str] = field(default_factory=list)

    def way(self) -> Router | None:
        """Return the router through which the replicas' metrics come; none where no listener is reached."""
        return next((router for router in self.routers if self.reaches(router)), None)

    def reaches(self, router: Router) -> bool:
        """Return whether Prometheus reaches a router's listener."""
        return bool(router.port) and (not is_loopback(router.reached()) or router.name in self.here)


def replica_entries(fleet: Fleet, address_of: AddressOf, before: str) -> list[Entry]:
    """Return an entry for each replica; hosts that were not asked keep those that they had in the text C(before)."""
    way = fleet.way()
    entries = []
    for host, plan in sorted(fleet.plans.items()):
        for replica in plan.get("replicas") or []:
            labels = _labels(host, plan, replica)
            if way:
                labels |= {"router": way.name, "__metrics_path__": f"/replicas/{host}:{replica['name']}/metrics"}
                entries.append({"targets": [authority(way.shared or way.reached(), way.port)], "labels": labels})
            elif address := address_of(host, str(replica["host"])):
                entries.append({"targets": [authority(address, int(replica["port"]))], "labels": labels})
            else:
                fleet.left_out.append(
                    f"{host}: {replica['name']} listens on {replica['host']} alone, and no router's metrics are reached"
                )
    return _with_kept(entries, fleet, before)


def router_entries(fleet: Fleet) -> list[Entry]:
    """Return an entry for HAProxy's own metrics of each router."""
    entries = []
    for router in fleet.routers:
        if not router.port:
            fleet.left_out.append(f"{router.name}: router_metrics_port is 0, so nothing is known of the router")
        elif not fleet.reaches(router):
            fleet.left_out.append(f"{router.name}: its metrics listen on {router.listens} alone (router_metrics_host)")
        else:
            target = authority(router.reached(), router.port)
            entries.append({"targets": [target], "labels": {"router": router.name}})
    return entries


def host_entries(fleet: Fleet, hosts: Iterable[str], port: int) -> list[Entry]:
    """Return an entry for each host's exporter at a port."""
    return [
        {
            "targets": [authority("127.0.0.1" if host in fleet.here else fleet.addresses.get(host, host), port)],
            "labels": {"host": host},
        }
        for host in dict.fromkeys(hosts)
    ]


def as_text(entries: Sequence[Entry]) -> str:
    """Return entries as the text of a file."""
    return "[" + ",".join(f"\n  {json.dumps(entry, sort_keys=True)}" for entry in entries) + "\n]\n"


def _labels(host: str, plan: Mapping[str, Any], replica: Mapping[str, Any]) -> dict[str, str]:
    image = plan.get("image") or {}
    return {
        "host": host,
        "replica": str(replica["name"]),
        "model": str(plan.get("model") or ""),
        "gpu": ",".join(str(index) for index in replica.get("gpus") or []),
        "hardware": str(plan.get("hardware") or ""),
        "precision": str(plan.get("precision") or ""),
        "profile": str(plan.get("profile") or ""),
        "image": str(image.get("reference") or ""),
    }


def _with_kept(entries: list[Entry], fleet: Fleet, before: str) -> list[Entry]:
    """Return the entries, and those that hosts which were not asked have in a text; none if it is no such list."""
    try:
        known = [entry for entry in json.loads(before or "[]") if entry["labels"]["host"] in fleet.unknown]
    except (ValueError, TypeError, LookupError):
        known = []
    return sorted([*entries, *known], key=lambda entry: (entry["labels"]["host"], entry["labels"]["replica"]))
