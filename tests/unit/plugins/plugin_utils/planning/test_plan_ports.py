# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A port of the plan that something else holds is told before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import PortInfo
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.plan_ports import check_host

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
