# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module, and tell what it waits for; it is silent until it ends, so the wait is cut into short runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.action import ActionBase

SHORT_S = 10
DEFAULT_TIMEOUT_S = 60
# Each host that a run asks has the result of the task that reads its plan, also one that did not answer.
ASKED = "__router_plan"


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action plugin behind gpufleet.vllm.router_replicas."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module until the replicas get requests or the time is over."""
        super().run(tmp, task_vars)
        variables, arguments = task_vars or {}, dict(self._task.args)
        members = arguments.pop("members", None)
        if members is not None:
            arguments["hosts"] = asked(variables["hostvars"], members)
        deadline = time.monotonic() + float(arguments.get("timeout", DEFAULT_TIMEOUT_S))
        told, here = "", variables.get("inventory_hostname", "")
        while True:
            left = max(deadline - time.monotonic(), 0)
            result: dict[str, Any] = self._execute_module(
                module_name="gpufleet.vllm.router_replicas",
                module_args={**arguments, "timeout": int(min(left, SHORT_S))},
                task_vars=variables,
                tmp=tmp,
            )
            error = result.get("error") or {}
            if error.get("name") != "replicas-not-ready" or time.monotonic() >= deadline:
                break
            if error["message"] != told:
                told = error["message"]
                self._display.display(f"[{here}] waits for servers. {told}")
        for name, cause in (result.get("others_down") or {}).items():
            self._display.display(f"[{here}] not of this run: the router sends nothing to {name}: {cause}")
        return result


def asked(hostvars: Mapping[str, Any], members: Sequence[str]) -> list[str]:
    """Return those of the hosts behind the router that this run has asked what they serve."""
    return [host for host in members if ASKED in hostvars[host]]
