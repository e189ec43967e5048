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
from pathlib import Path
from typing import Any

from ansible.template import Templar

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import ABSENT, integer, invalid, value_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_plan import plan_of, write_plan
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES, ROLES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.task_variables import read_wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import fleet_capacity
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.plan_page import table
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import variable_names
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

# Where the role preflight keeps what it found.
GPU_INFO, HOST_INFO = "__preflight_gpu_info", "__preflight_host_info"
# What a host's own variables lack and the task's have.
OF_THE_PLAY = (
    "hostvars",
    "playbook_dir",
    "role_path",
    "ansible_play_hosts",
    "ansible_play_hosts_all",
    "ansible_check_mode",
)


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
        for name in arguments["hosts"]:
            if self._task.check_mode and fleet.is_unseen(name):
                continue
            try:
                plans[name] = fleet.plan(name)
                folder = str(fleet.value(name, "vllm_plan_dir") or "")
                told[name] = write_plan(
                    fleet.plans[name], folder, name, check=self._task.check_mode, diff=self._task.diff
                )
            except GpufleetError as error:
                plans[name] = error.as_result()
        page = table(plans)
        refused = _refused(plans)
        good = {host: plan for host, plan in fleet.plans.items() if host not in refused}
        capacity = fleet_capacity.capacity(good, fleet.targets, len(arguments["hosts"]) - len(good))
        page["table"] += fleet_capacity.capacity_lines(capacity)
        self._display.display("\n".join(page["table"]))
        self._display.v("\n".join(page["reasons"]))
        result = {**page, **_written(told.values()), "refused": refused, "capacity": capacity}
        return {**result, "warnings": sorted(fleet.warnings)}


class Fleet:
    """The hosts' variables, and the plans that are made of them.

    Args:
        loader: Ansible's, for files.
        variables: the task's.

    Attributes:
        plans: those that there are, by host.
        targets: what the variables of these hosts ask of the fleet.
        warnings: names that are nearly ours.
    """

    def __init__(self, loader: Any, variables: Mapping[str, Any]) -> None:
        self.plans: dict[str, Plan] = {}
        self.targets: dict[str, fleet_capacity.Target] = {}
        self.warnings: set[str] = set()
        self._loader = loader
        self._hosts = variables["hostvars"]
        self._of_the_play = {name: variables[name] for name in OF_THE_PLAY if name in variables}
        self._defaults = _defaults(loader, ROLES / "vllm" / "defaults" / "main")
        self._seen: dict[str, tuple[dict[str, Any], Any]] = {}

    def value(self, host: str, name: str) -> Any:
        """Return one variable of a host, templated; None where it has none."""
        variables, templar = self._host(host)
        return templar.template(variables[name]) if name in variables else None

    def is_unseen(self, host: str) -> bool:
        """Return whether a host's GPUs were neither described nor probed, as where a dry run ended before."""
        on_gpus = self.value(host, "vllm_device") in (None, "cuda")
        # A task that was skipped registers something too.
        probed = "state" in (self._host(host)[0].get(GPU_INFO) or {})
        return on_gpus and not probed and not self.value(host, "vllm_gpus")

    def plan(self, host: str) -> Plan:
        """Return the plan of a host.

        Raises:
            GpufleetError: there is none, with the reason.
        """
        variables, templar = self._host(host)
        wished = read_wishes(templar, variables, {}, KNOWN_VARIABLES)
        self.warnings.update(variable_names.near_misses(variables, KNOWN_VARIABLES))
        found = variables.get(GPU_INFO) or {}, variables.get(HOST_INFO) or {}
        target = self._target(host, wished)
        self.plans[host] = plan_of(templar, variables, wished, found, {})
        self.targets[host] = target
        return self.plans[host]

    def _target(self, host: str, wished: Wishes) -> fleet_capacity.Target:
        """Return what a host's variables ask of the fleet."""
        problems: list[str] = []
        given = {fleet_capacity.VARIABLE: self.value(host, fleet_capacity.VARIABLE)}
        requests = value_of(given, "requests", (fleet_capacity.VARIABLE, integer(0)), problems)
        if problems:
            raise invalid(problems)
        may_be_out = self.value(host, "vllm_max_unavailable") or self._defaults.get("vllm_max_unavailable")
        lengths = wished.expected_input_len, wished.expected_output_len
        return fleet_capacity.Target(0 if requests is ABSENT else requests, lengths, may_be_out, wished.model)

    def _host(self, name: str) -> tuple[dict[str, Any], Any]:
        """Return a host's own variables, untemplated, and what templates them, which knows the defaults too."""
        if name not in self._seen:
            own = self._hosts.raw_get(name)
            context = {**self._defaults, **self._of_the_play, **own}
            self._seen[name] = own, Templar(loader=self._loader, variables=context)
        return self._seen[name]


def _defaults(loader: Any, folder: Path) -> dict[str, Any]:
    """Return the defaults of a role, untemplated."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.yml")):
        found.update(loader.load_from_file(str(path), trusted_as_template=True) or {})
    return found


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
