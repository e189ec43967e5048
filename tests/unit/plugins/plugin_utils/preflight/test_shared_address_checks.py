# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of where a router has the shared address, and of what is wrong with one."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.shared_address_checks import (
    SharedWish,
    addresses_of_hosts,
    judge_shared,
)

OWN = [
    {"interface": "eth0", "address": "192.0.2.5", "prefix_length": 24},
    {"interface": "eth1", "address": "10.0.0.2", "prefix_length": 22},
    {"interface": "eth1", "address": "fd00::2", "prefix_length": 64},
]
SEEN: dict[str, Any] = {"addresses": OWN, "systemd": True, "shared_address": ""}


def judged(address: str, seen: dict[str, Any] | None = None, **more: Any) -> tuple[dict[str, Any], list[str]]:
    """Return where the address is, and the names of what is found."""
    place, found = judge_shared(SharedWish(address, **more), {**SEEN, **(seen or {})})
    return place, [finding.name for finding in found]


@pytest.mark.parametrize(
    ("address", "more", "expected"),
    [
        ("10.0.1.10", {}, ("10.0.1.10", 22, "eth1", "10.0.0.2")),
        ("10.0.1.10/24", {}, ("10.0.1.10", 24, "eth1", "10.0.0.2")),
        ("192.0.2.10", {}, ("192.0.2.10", 24, "eth0", "192.0.2.5")),
        ("fd00::10", {"listens": "::"}, ("fd00::10", 64, "eth1", "fd00::2")),
        ("198.51.100.9/32", {"interface": "eth0"}, ("198.51.100.9", 32, "eth0", "192.0.2.5")),
        ("10.0.1.10", {"listens": "10.0.1.10"}, ("10.0.1.10", 22, "eth1", "10.0.0.2")),
    ],
)
def test_the_interface_in_its_network_has_it(address: str, more: dict[str, Any], expected: tuple[Any, ...]) -> None:
    place, found = judged(address, **more)
    assert (tuple(place.values()), found) == (expected, [])


@pytest.mark.parametrize(
    ("address", "more", "name"),
    [
        ("llm.example.com", {}, "virtual-address-invalid"),
        ("10.0.1.10/99", {}, "virtual-address-invalid"),
        ("10.0.0.2", {}, "virtual-address-taken"),
        ("10.0.1.7", {"others": {"10.0.1.7": "the host gpu-01"}}, "virtual-address-taken"),
        ("198.51.100.9", {}, "virtual-interface-unknown"),
        ("192.0.2.10", {"interface": "eth7"}, "virtual-interface-unknown"),
        ("fd00::10", {}, "virtual-address-not-listened"),
        ("10.0.1.10", {"listens": "10.0.0.2"}, "virtual-address-not-listened"),
    ],
)
def test_what_cannot_be_shared_is_an_error(address: str, more: dict[str, Any], name: str) -> None:
    assert judged(address, **more) == ({}, [name])


def test_the_address_that_the_role_gave_this_host_is_no_other_ones() -> None:
    seen = {"addresses": [{"interface": "eth1", "address": "10.0.1.10", "prefix_length": 22}, *OWN]}
    assert judged("10.0.1.10", seen)[1] == ["virtual-address-taken"]
    place, found = judged("10.0.1.10", {**seen, "shared_address": "10.0.1.10"})
    assert (place["source"], found) == ("10.0.0.2", [])


def test_a_single_router_is_a_warning_and_a_host_without_systemd_an_error() -> None:
    assert judged("10.0.1.10", routers=1)[1] == ["one-router"]
    assert judged("10.0.1.10", {"systemd": False})[1] == ["no-systemd"]


def test_addresses_that_the_inventory_writes_out_are_hosts_own() -> None:
    class Broken(dict[str, Any]):
        def get(self, *_names: Any) -> Any:
            raise ValueError("a vault without its password")

    hostvars = {
        "gpu-01": {"ansible_host": "10.0.0.11", "vllm_host": "0.0.0.0"},
        "gpu-02": {"ansible_host": "gpu-02.example.com", "vllm_router_address": "fd00:0::2"},
        "gpu-03": Broken(),
    }
    found = addresses_of_hosts(hostvars, list(hostvars))
    assert found == {"10.0.0.11": "the host gpu-01", "0.0.0.0": "the host gpu-01", "fd00::2": "the host gpu-02"}
