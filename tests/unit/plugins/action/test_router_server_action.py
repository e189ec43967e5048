# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the front end learns from the hosts' variables."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import trust_as_template
from ansible.vars.hostvars import HostVarsVars

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
        "empty": {"__router_member": member(""), "vllm_api_key": "does not matter"},
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
    assert list(found["left_out"]) == ["alone"]
    assert "vllm_router_address" in found["left_out"]["alone"]
    assert found["replica_keys"] == {"serves": "k", "alone": "", "silent": "another"}


def test_the_key_of_a_host_that_was_not_asked_is_templated_and_one_that_cannot_be_is_named() -> None:
    def hostvars(key: str) -> dict[str, Any]:
        variables = {"vllm_api_key": trust_as_template(key), "vault_key": "from the vault"}
        return {"gpu-01": HostVarsVars(variables, DataLoader(), "gpu-01")}

    found = router_server.gather(hostvars("{{ vault_key }}"), ["gpu-01"], "lb")
    assert (found["unknown"], found["replica_keys"]) == (["gpu-01"], {"gpu-01": "from the vault"})
    with pytest.raises(GpufleetError, match=r"vllm_api_key of gpu-01 cannot be read: .*no_such_key") as caught:
        router_server.gather(hostvars("{{ no_such_key }}"), ["gpu-01"], "lb")
    assert caught.value.name == "key-unreadable"


def test_what_was_kept_and_left_out_is_said() -> None:
    lines = router_server.said({"kept": ["gpu-01"], "left_out": {"gpu-02": "nothing is deployed there"}})
    assert lines == [
        "gpu-01 was not asked: the front end keeps what it knew of it",
        "left out gpu-02: nothing is deployed there",
    ]
