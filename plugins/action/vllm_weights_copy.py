# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run M(gpufleet.vllm.vllm_weights_copy) in the background, with what the other hosts said of what they give away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction

# What the role keeps of vllm_weights_share on each host that gives weights away.
SHARED = "__vllm_weights_shared"


class ActionModule(LongTaskAction):
    """See LongTaskAction; O(members) become O(sources)."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        variables = task_vars or {}
        arguments = dict(self._task.args)
        members = arguments.pop("members", None)
        if members:
            here = str(variables.get("inventory_hostname", ""))
            arguments["sources"] = sources(variables["hostvars"], [name for name in members if name != here])
        self._task.args = arguments
        return super().run(tmp, task_vars)


def sources(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> list[dict[str, Any]]:
    """Return what those of the hosts said that give weights away, each with its name."""
    said = [(host, hostvars[host].get(SHARED) or {}) for host in hosts]
    kept = ("serves", "address", "port", "host_key", "models")
    return [{"host": host, **{key: one.get(key) for key in kept}} for host, one in said if one.get("serves")]
