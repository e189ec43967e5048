# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute a host's plan on the controller, without a trip to the host."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.vllm.plugins.module_utils import planner, wishes
from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host_checks import check_host
from ansible_collections.gpufleet.vllm.plugins.module_utils.whole_file import replace_file
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.known_variables import KNOWN_VARIABLES

ARGUMENTS: dict[str, Any] = {
    "gpu_info": {"type": "dict", "default": {}},
    "host_info": {"type": "dict", "default": {}},
    "host": {"type": "dict", "default": {}},
    "wishes": {"type": "dict", "default": {}},
    "validate_only": {"type": "bool", "default": False},
    "plan_dir": {"type": "str", "default": "", "aliases": ["plan_file"]},
}


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action plugin behind gpufleet.vllm.vllm_plan."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the plan, or fail with every problem there is."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _validation, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        try:
            wished = self._wishes(variables, arguments["wishes"])
            if arguments["validate_only"]:
                return {**result, "changed": False, "msg": "The vllm_* variables are valid."}
            plan = planner.plan(_host(arguments, variables), wished)
            check_host(plan, arguments["host_info"])
            written = self._written(plan, arguments["plan_dir"], variables)
        except GpufleetError as error:
            return {**result, "failed": True, "msg": error.as_text(), "error": error.as_result()}
        result.update(changed=False, plan=plan, ansible_facts={"vllm_plan": plan}, summary=planner.summary(plan))
        return {**result, **written}

    def _wishes(self, variables: dict[str, Any], overrides: dict[str, Any]) -> wishes.Wishes:
        """Return the wishes in the task's variables; C(overrides) win."""
        names = {name for name in variables if name.startswith(wishes.PREFIXES)}
        readable = {reader[0] for reader in wishes.READERS.values()}
        values: dict[str, Any] = {}
        problems = []
        for name in sorted(names & readable):
            try:
                values[name] = self._templar.template(variables[name])
            except AnsibleError as error:
                problems.append(f"{name}: cannot be templated: {error}")
        values.update(overrides)
        return wishes.read({**dict.fromkeys(names), **values}, KNOWN_VARIABLES, problems)

    def _written(self, plan: dict[str, Any], folder: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Write the plan below C(folder) on the controller, if one is given, and return what changed."""
        if not folder:
            return {}
        path = os.path.join(os.path.expanduser(folder), f"{variables.get('inventory_hostname', 'host')}.json")
        text = json.dumps(plan, indent=2, sort_keys=False) + "\n"
        before = _read(path)
        result: dict[str, Any] = {"plan_file": path, "changed": before != text}
        if self._task.diff and before != text:
            result["diff"] = [{"before_header": path, "after_header": path, "before": before, "after": text}]
        if before != text and not self._task.check_mode:
            replace_file(path, text, what="plan", name="plan-not-written", variable="vllm_plan_dir")
        return result


def _host(arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the host: what the task says, then the probes, then its gathered facts."""
    facts = variables.get("ansible_facts") or {}
    probe, info = arguments["gpu_info"], arguments["host_info"]
    memory, processors = info.get("memory") or {}, info.get("cpu") or {}
    containers = (info.get("engine") or {}).get("containers") or []
    host = {
        "architecture": (info.get("system") or {}).get("architecture") or facts.get("architecture", ""),
        "cpus": processors.get("count") or facts.get("processor_vcpus", 0),
        "cpu_flags": processors.get("flags") or [],
        "memory_mib": memory.get("total_mib") or facts.get("memtotal_mb", 0),
        "memory_available_mib": memory.get("available_mib") or 0,
        "own_containers": [
            container["id"]
            for container in containers
            if container.get("ours") and container.get("state", "running") != "exited"
        ],
        "model": info.get("model") or {},
        "gpus": probe.get("gpus") or [],
        "driver_version": probe.get("driver_version") or "",
        "cuda_driver_version": probe.get("cuda_driver_version") or "",
        "gpu_state": probe.get("state") or "",
        "gpu_reason": probe.get("reason") or "",
        "gpu_remedy": probe.get("remedy") or "",
    }
    return {**host, **arguments["host"]}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""
