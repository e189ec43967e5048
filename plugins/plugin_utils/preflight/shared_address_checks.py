# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The address that several routers share: on which interface each of them has it, and what is wrong with it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import ERROR, WARNING, Finding

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
VARIABLE = "router_virtual_address"
UNSPECIFIED = {4: ("0.0.0.0", "::"), 6: ("::",)}  # noqa: S104  compared


@dataclass(frozen=True)
class SharedWish:
    """What the variables say of the address.

    Attributes:
        address: router_virtual_address, with or without the length of its prefix.
        interface: router_virtual_interface; empty to find it.
        listens: router_host.
        routers: how many hosts the group router has.
        others: addresses of hosts in the inventory, each with who has it.
    """

    address: str
    interface: str = ""
    listens: str = "0.0.0.0"  # noqa: S104
    routers: int = 2
    others: Mapping[str, str] = field(default_factory=dict)


def judge_shared(wish: SharedWish, seen: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Return where this host has the address, and what is to be said of it.

    Args:
        wish: what the variables say.
        seen: what the module router_preflight returned.

    Returns:
        C(address), C(prefix_length), C(interface) and C(source), its own address there; empty where an error is found.
    """
    try:
        given = ipaddress.ip_interface(wish.address)
    except ValueError:
        found = f"{VARIABLE} is {wish.address!r}, which is no address."
        return {}, [Finding("virtual-address-invalid", ERROR, found, "an address such as 10.0.0.10 or 10.0.0.10/24")]
    address = given.ip
    if wish.listens.strip("[]") not in (*UNSPECIFIED[address.version], str(address)):
        every = UNSPECIFIED[address.version][-1]
        return {}, [
            Finding(
                "virtual-address-not-listened",
                ERROR,
                f"The router listens on {wish.listens} (router_host), which is not {address} ({VARIABLE}).",
                remedy=f"Set router_host to {every}.",
            )
        ]
    taken = _owner(address, wish, seen)
    if taken:
        text = f"{address} ({VARIABLE}) is an address of {taken} itself."
        return {}, [Finding("virtual-address-taken", ERROR, text, "an address that no host has")]
    return _placed(given, wish, seen)


def _owner(address: Address, wish: SharedWish, seen: Mapping[str, Any]) -> str:
    """Return the host that has the address for itself; empty if none has."""
    if str(address) in wish.others:
        return wish.others[str(address)]
    ours = str(seen.get("shared_address") or "") == str(address)
    return "this host" if not ours and any(_same(entry, address) for entry in seen.get("addresses") or []) else ""


def _placed(
    given: ipaddress.IPv4Interface | ipaddress.IPv6Interface, wish: SharedWish, seen: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Finding]]:
    """Return where this host has the address, and what is to be said of that."""
    own = [entry for entry in seen.get("addresses") or [] if not _same(entry, given.ip)]
    own = [entry for entry in own if ipaddress.ip_address(entry["address"]).version == given.version]
    fitting = [entry for entry in own if wish.interface in ("", entry["interface"])]
    around = [entry for entry in fitting if given.ip in _network(entry)]
    if not around and not (wish.interface and fitting):
        has = ", ".join(f"{entry['address']}/{entry['prefix_length']} on {entry['interface']}" for entry in own)
        return {}, [
            Finding(
                "virtual-interface-unknown",
                ERROR,
                f"{given.ip} ({VARIABLE}) is in no network of this host, which has {has or 'no address'}.",
                remedy="Set another address, or name the interface in router_virtual_interface.",
            )
        ]
    entry = (around or fitting)[0]
    single = given.network.prefixlen == given.max_prefixlen
    place = {
        "address": str(given.ip),
        "prefix_length": int(entry["prefix_length"]) if single and around else given.network.prefixlen,
        "interface": entry["interface"],
        "source": entry["address"],
    }
    return place, [*_warnings(wish), *_systemd(seen)]


def _warnings(wish: SharedWish) -> list[Finding]:
    if wish.routers > 1:
        return []
    text = f"The group router has one host, so {wish.address} ({VARIABLE}) is lost with it."
    return [Finding("one-router", WARNING, text, remedy="Name a second host in the group router.")]


def _systemd(seen: Mapping[str, Any]) -> list[Finding]:
    if seen.get("systemd", True):
        return []
    text = f"No systemd runs this host, so nothing starts keepalived for {VARIABLE}."
    return [Finding("no-systemd", ERROR, text, remedy=f"Leave {VARIABLE} empty, or use a host with systemd.")]


def _same(entry: Mapping[str, Any], address: Address) -> bool:
    return ipaddress.ip_address(entry["address"]) == address


def _network(entry: Mapping[str, Any]) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_interface(f"{entry['address']}/{entry['prefix_length']}").network


def addresses_of_hosts(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, str]:
    """Return the addresses that the inventory gives hosts, as far as they are written out, each with its host."""
    found: dict[str, str] = {}
    for host in hosts:
        for variable in ("ansible_host", "vllm_host", "vllm_router_address"):
            try:
                found[str(ipaddress.ip_address(str(hostvars[host].get(variable) or "")))] = f"the host {host}"
            except Exception:  # noqa: S112  of another host that cannot be templated here, too
                continue
    return found
