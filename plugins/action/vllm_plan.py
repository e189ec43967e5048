# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute a host's plan on the controller, without a trip to the host."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions import hub_look
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.task_variables import planner_host, read_wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, variable_names
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.plan_ports import check_host

ARGUMENTS: dict[str, Any] = {
    "gpu_info": {"type": "dict", "default": {}},
    "host_info": {"type": "dict", "default": {}},
    "host": {"type": "dict", "default": {}},
    "wishes": {"type": "dict", "default": {}},
    "validate_only": {"type": "bool", "default": False},
    "plan_dir": {"type": "str", "default": "", "aliases": ["plan_file"]},
}


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_plan."""

    _supports_diff = True
    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return the plan, or fail with every problem there is."""
        wished = read_wishes(self._templar, variables, arguments["wishes"], KNOWN_VARIABLES)
        warnings = variable_names.near_misses(variables, KNOWN_VARIABLES)
        told = {"warnings": warnings} if warnings else {}
        if arguments["validate_only"]:
            return {"msg": "The vllm_* variables are valid.", **told}
        host = planner_host(arguments["gpu_info"], arguments["host_info"], variables, wished.container_prefix)
        known = hub_look.with_model({**host, **arguments["host"]}, wished, self._templar, variables)
        plan = planner.plan(known, wished)
        check_host(plan, arguments["host_info"])
        written = self._written(plan, arguments["plan_dir"], variables)
        return {"plan": plan, "summary": planner.summary(plan), **written, **told}

    def _written(self, plan: Plan, folder: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Write the plan below C(folder) on the controller, if one is given, and return what changed."""
        if not folder:
            return {}
        path = os.path.join(os.path.expanduser(folder), f"{variables.get('inventory_hostname', 'host')}.json")
        text = json.dumps(plan, indent=2, sort_keys=False) + "\n"
        before = read_text(path)
        result: dict[str, Any] = {"plan_file": path, "changed": before != text}
        if self._task.diff and before != text:
            result["diff"] = [{"before_header": path, "after_header": path, "before": before, "after": text}]
        if before != text and not self._task.check_mode:
            replace_file(path, text, what="plan", name="plan-not-written", variable="vllm_plan_dir")
        return result
