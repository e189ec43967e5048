# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of this machine: free, taken, and by whom."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import PortInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import bind_problem, check_host, listener
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port


def test_a_taken_port_is_told_with_its_holder(taken_port: int) -> None:
    assert bind_problem("127.0.0.1", taken_port) == errno.EADDRINUSE
    assert bind_problem("0.0.0.0", taken_port) == errno.EADDRINUSE
    assert listener(taken_port).endswith(f"(pid {os.getpid()})")


def test_a_port_that_was_closed_a_moment_ago_is_free() -> None:
    port = free_port()
    assert bind_problem("127.0.0.1", port) == 0
    assert listener(port) == ""


def test_an_address_of_another_machine_is_told() -> None:
    assert bind_problem("192.0.2.1", 8000) == errno.EADDRNOTAVAIL


PLAN: Any = {
    "replicas": [
        {"name": "vllm-0", "host": "127.0.0.1", "port": 8000},
        {"name": "vllm-1", "host": "127.0.0.1", "port": 8001},
    ],
}
FREE: dict[str, Any] = {"port": 8000, "free": True, "ours": False, "container": None, "pid": None, "process": None}
TAKEN = {**FREE, "free": False}


@pytest.mark.parametrize("ports", [None, [], [FREE], [{**TAKEN, "ours": True, "container": "vllm-0"}]])
def test_free_and_own_ports_pass(ports: list[PortInfo] | None) -> None:
    """A port that is free, ours or was not looked at is no finding."""
    check_host(PLAN, {"ports": ports})


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ({**TAKEN, "port": 8001, "process": "nginx", "pid": 7}, "the process nginx (pid 7)"),
        ({**TAKEN, "container": "web"}, "the container web"),
        (TAKEN, "something else"),
    ],
)
def test_a_taken_port_names_its_holder(taken: PortInfo, says: str) -> None:
    """The error says which replica wants which port, and who has it as far as that is known."""
    with pytest.raises(GpufleetError) as raised:
        free: Any = FREE
        check_host(PLAN, {"ports": [free, taken] if taken["port"] == 8001 else [taken]})
    assert raised.value.name == "port-in-use"
    assert says in raised.value.message
    assert raised.value.details["port"] == taken["port"]
