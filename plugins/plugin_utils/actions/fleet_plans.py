# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of all hosts within one task, and the plans that are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Callable

from ansible.template import Templar

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_plan import plan_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES, ROLES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.task_variables import read_wishes
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

# Wishes whose defaults follow from a bundle; no other default is read, as those of the planner are the same.
BY_BUNDLE = ("vllm_offline", "vllm_image_archive")


class Fleet:
    """The hosts' variables, and the plans that are made of them.

    Args:
        loader: Ansible's, for files.
        variables: the task's.
        roles: whose defaults count; those of the role vllm always do.
        instead: returns variables that win over those that a host has, from these.

    Attributes:
        plans: those that there are, by host.
        wished: what the variables of these hosts ask of them.
        warnings: names that are nearly ours.
    """

    def __init__(
        self,
        loader: Any,
        variables: Mapping[str, Any],
        roles: Iterable[str] = (),
        instead: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _own: {},
    ) -> None:
        self.plans: dict[str, Plan] = {}
        self.wished: dict[str, Wishes] = {}
        self.warnings: set[str] = set()
        self._loader = loader
        self._hosts = variables["hostvars"]
        self._of_the_play = {name: variables[name] for name in OF_THE_PLAY if name in variables}
        self._defaults = _defaults(loader, ROLES / "vllm" / "defaults" / "main")
        for role in roles:
            for folder in ("defaults", "vars"):
                self._defaults.update(_defaults(loader, ROLES / role / folder))
        self._instead = instead
        self._seen: dict[str, tuple[dict[str, Any], Any]] = {}

    def value(self, host: str, name: str) -> Any:
        """Return one variable of a host, templated; None where it has none."""
        variables, templar = self._host(host)
        return templar.template(variables[name]) if name in variables else None

    def setting(self, host: str, name: str, further: Mapping[str, Any]) -> Any:
        """Return one variable of a host, or its default, templated.

        Args:
            host: its name in the inventory.
            name: of the variable.
            further: variables that are known of the host besides its own.
        """
        context = {**self._context(self._host(host)[0]), **further}
        return Templar(loader=self._loader, variables=context).template(context[name])

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
        self.wished[host] = wished
        self.plans[host] = plan_of(templar, variables, wished, found, {})
        return self.plans[host]

    def _host(self, name: str) -> tuple[dict[str, Any], Any]:
        """Return a host's own variables, untemplated, and what templates them, which knows the defaults too."""
        if name not in self._seen:
            own = self._hosts.raw_get(name)
            own = {**own, **self._instead(own)}
            if own.get("vllm_bundle_dir"):
                own = {**{one: self._defaults[one] for one in BY_BUNDLE if one in self._defaults}, **own}
            self._seen[name] = own, Templar(loader=self._loader, variables=self._context(own))
        return self._seen[name]

    def _context(self, own: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._defaults, **self._of_the_play, **own}


def _defaults(loader: Any, folder: Path) -> dict[str, Any]:
    """Return the defaults of a role, untemplated."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.yml")):
        found.update(loader.load_from_file(str(path), trusted_as_template=True) or {})
    return found
