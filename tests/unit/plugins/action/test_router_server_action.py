# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the front end learns from the hosts' variables."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action import router_server
from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError


def member(host: str = "10.0.0.1", *, address: str = "", reached: str = "gpu.example.com") -> dict[str, Any]:
    """Return the fact of a host with one replica that listens on C(host)."""
    replicas = [{"name": "vllm-0", "host": host, "port": 8000}] if host else []
    return {"replicas": replicas, "address": address, "ansible_host": reached}


@pytest.mark.parametrize(
    ("listens", "address", "same_host", "expected"),
    [
        ("10.0.0.1", "", False, "10.0.0.1"),
        ("0.0.0.0", "", False, "gpu.example.com"),
        ("::", "", False, "gpu.example.com"),
        ("127.0.0.1", "", True, "127.0.0.1"),
        ("127.0.0.1", "", False, ""),
        ("127.0.0.1", "10.9.9.9", False, "10.9.9.9"),
    ],
)
def test_where_the_front_end_reaches_a_replica(listens: str, address: str, same_host: bool, expected: str) -> None:
    assert router_server.address_of(member(address=address), listens, same_host) == expected


def test_every_host_is_taken_left_out_or_unknown() -> None:
    hostvars = {
        "serves": {"__router_member": member(), "vllm_api_key": "k"},
        "empty": {"__router_member": member("")},
        "alone": {"__router_member": member("127.0.0.1")},
        "silent": {"vllm_api_key": "another"},
    }
    found = router_server.gather(hostvars, list(hostvars), "lb")
    assert found["hosts"] == {
        "serves": [{"name": "vllm-0", "address": "10.0.0.1", "port": 8000}],
        "empty": [],
        "alone": [],
    }
    assert found["unknown"] == ["silent"]
    assert found["left_out"]["empty"] == "nothing is deployed there"
    assert "vllm_router_address" in found["left_out"]["alone"]
    assert found["replica_key"] == "k"


def test_hosts_with_other_keys_are_named_and_the_keys_are_not() -> None:
    hostvars = {name: {"__router_member": member(), "vllm_api_key": f"secret-{name}"} for name in ("a", "b")}
    with pytest.raises(GpufleetError) as caught:
        router_server.gather(hostvars, ["a", "b"], "lb")
    assert caught.value.name == "keys-differ"
    assert "a and b" in str(caught.value) and "secret" not in caught.value.as_text()


def test_what_was_kept_and_left_out_is_said() -> None:
    lines = router_server.said({"kept": ["gpu-01"], "left_out": {"gpu-02": "nothing is deployed there"}})
    assert lines == [
        "gpu-01 was not asked: the front end keeps what it knew of it",
        "left out gpu-02: nothing is deployed there",
    ]
