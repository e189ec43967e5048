# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at the host of a router, and judge on the controller what was found."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import ordered
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.router_checks import certificate_findings
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.shared_address_checks import (
    UNSPECIFIED,
    SharedWish,
    addresses_of_hosts,
    judge_shared,
)

WARN_DAYS = 30


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action plugin behind gpufleet.vllm.router_preflight."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and add what is to be said of what it saw."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        result.update(
            self._execute_module(
                module_name="gpufleet.vllm.router_preflight", module_args=arguments, task_vars=task_vars, tmp=tmp
            )
        )
        if result.get("failed") or result.get("unreachable"):
            return result
        found = certificate_findings(
            result,
            int(arguments.get("warn_days", WARN_DAYS)),
            given=bool(arguments.get("certificate")),
            renews=boolean(arguments.get("renews", False)),
        )
        virtual: dict[str, Any] = {}
        if arguments.get("virtual_address"):
            virtual, more = judge_shared(self._wish(arguments, task_vars or {}), result)
            found += more
        return {**result, "virtual": virtual, "findings": [finding.as_result() for finding in ordered(found)]}

    def _wish(self, arguments: dict[str, Any], variables: dict[str, Any]) -> SharedWish:
        groups, hostvars = variables.get("groups") or {}, variables.get("hostvars") or {}
        return SharedWish(
            address=str(arguments["virtual_address"]),
            interface=str(arguments.get("virtual_interface") or ""),
            listens=str(arguments.get("listens") or UNSPECIFIED[4][0]),
            routers=len(groups.get("router") or []),
            others=addresses_of_hosts(hostvars, groups.get("all") or []),
        )
