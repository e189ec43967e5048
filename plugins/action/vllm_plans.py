# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan a whole fleet in one task, and show the plans on one page.

A task for each host costs more time of Ansible's than the plan itself. So one task, with run_once, takes the variables
of each host from the inventory and what was probed there, as a task for that host would see them: below them lie the
defaults of the role vllm, above them what was passed with -e.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import ABSENT, integer, invalid, value_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.fleet_plans import Fleet
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_plan import write_plan
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import fleet_capacity
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.plan_page import table


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_plans."""

    _supports_diff = True

    @classmethod
    def specification(cls) -> dict[str, Any]:
        """Return the argument specification."""
        return {
            "hosts": {"type": "list", "elements": "str", "required": True},
            "look_only": {"type": "bool", "default": False},
        }

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return which hosts have to be probed, or plan them all and show the plans."""
        fleet = Fleet(self._loader, variables)
        if arguments["look_only"]:
            return {"probe": [name for name in arguments["hosts"] if not fleet.value(name, "vllm_gpus")]}
        plans: dict[str, Plan | dict[str, Any]] = {}
        told: dict[str, dict[str, Any]] = {}
        targets: dict[str, fleet_capacity.Target] = {}
        for name in arguments["hosts"]:
            if self._task.check_mode and fleet.is_unseen(name):
                continue
            try:
                plans[name] = fleet.plan(name)
                targets[name] = _target(fleet, name)
                folder = str(fleet.value(name, "vllm_plan_dir") or "")
                told[name] = write_plan(
                    fleet.plans[name], folder, name, check=self._task.check_mode, diff=self._task.diff
                )
            except GpufleetError as error:
                plans[name] = error.as_result()
        page = table(plans)
        refused = _refused(plans)
        good = {host: plan for host, plan in fleet.plans.items() if host not in refused}
        capacity = fleet_capacity.capacity(good, targets, len(arguments["hosts"]) - len(good))
        page["table"] += fleet_capacity.capacity_lines(capacity)
        self._display.display("\n".join(page["table"]))
        self._display.v("\n".join(page["reasons"]))
        result = {**page, **_written(told.values()), "refused": refused, "capacity": capacity}
        return {**result, "warnings": sorted(fleet.warnings)}


def _target(fleet: Fleet, host: str) -> fleet_capacity.Target:
    """Return what a host's variables ask of the fleet."""
    problems: list[str] = []
    given = {fleet_capacity.VARIABLE: fleet.value(host, fleet_capacity.VARIABLE)}
    requests = value_of(given, "requests", (fleet_capacity.VARIABLE, integer(0)), problems)
    if problems:
        raise invalid(problems)
    wished = fleet.wished[host]
    lengths = wished.expected_input_len, wished.expected_output_len
    may_be_out = fleet.setting(host, "vllm_max_unavailable", {})
    return fleet_capacity.Target(0 if requests is ABSENT else requests, lengths, may_be_out, wished.model)


def _written(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the files of all hosts are for the task's result."""
    files = [result for result in results if result]
    return {
        "changed": any(result["changed"] for result in files),
        "plan_files": [result["plan_file"] for result in files],
        "diff": [entry for result in files for entry in result.get("diff", ())],
    }


def _refused(plans: Mapping[str, Any]) -> dict[str, str]:
    """Return the hosts without a plan, with the reason."""
    return {host: str(plan["message"]) for host, plan in plans.items() if "replicas" not in plan}
