# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of how preflight judges a router."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.action import router_preflight
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action


class Action(router_preflight.ActionModule):
    """The plugin with a module that saw certificates near their end."""

    def _execute_module(self, module_args: dict[str, Any], **_parts: Any) -> dict[str, Any]:
        if module_args.get("run_dir") == "broken":
            return {"failed": True, "msg": "no"}
        end = {"not_after": "2027-12-24T16:00:00Z", "seconds_left": 25 * 24 * 3600}
        address = {"interface": "eth0", "address": "10.0.0.2", "prefix_length": 24}
        return {"changed": False, "served_certificate": end, "wanted_certificate": {}, "addresses": [address]}


def names(**arguments: Any) -> list[str]:
    """Return the names of what is found with these arguments."""
    result, _display = run_action(Action, arguments)
    return [finding["name"] for finding in result["findings"]]


def test_what_was_seen_is_judged_by_the_variables() -> None:
    assert names() == ["certificate-ends-soon"]
    assert names(warn_days="20") == []
    assert names(renews="false") == ["certificate-ends-soon"]
    assert names(renews="true") == []


def test_a_module_that_fails_is_told_as_it_is() -> None:
    result, _display = run_action(Action, {"run_dir": "broken"})
    assert result["failed"] and "findings" not in result


def test_the_shared_address_is_placed_and_compared_with_those_of_all_hosts() -> None:
    groups = {"router": ["lb-01", "lb-02"], "all": ["lb-01", "lb-02", "gpu-01"]}
    hostvars = {"gpu-01": {"ansible_host": "10.0.0.11"}, "lb-01": {}, "lb-02": {}}
    variables = {"groups": groups, "hostvars": hostvars}
    good, _display = run_action(Action, {"virtual_address": "10.0.0.10", "renews": True}, variables)
    assert (good["findings"], good["virtual"]["interface"], good["virtual"]["source"]) == ([], "eth0", "10.0.0.2")
    taken, _display = run_action(Action, {"virtual_address": "10.0.0.11", "renews": True}, variables)
    assert [finding["name"] for finding in taken["findings"]] == ["virtual-address-taken"]
    assert "gpu-01" in taken["findings"][0]["found"]
    none, _display = run_action(Action, {"virtual_address": "", "renews": True}, variables)
    assert (none["virtual"], none["findings"]) == ({}, [])
