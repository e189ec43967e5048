# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute a host's plan on the controller, without a trip to the host."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_plan import plan_of, write_plan
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.task_variables import read_wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, variable_names

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
        found = arguments["gpu_info"], arguments["host_info"]
        plan = plan_of(self._templar, variables, wished, found, arguments["host"])
        name = str(variables.get("inventory_hostname", "host"))
        written = write_plan(plan, arguments["plan_dir"], name, check=self._task.check_mode, diff=self._task.diff)
        return {"plan": plan, "summary": planner.summary(plan), **written, **told}
