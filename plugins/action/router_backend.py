# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module, have a host that is to be taken out wait for its turn, and tell what is waited for.

The waits are cut into short runs of the module, which is silent until it ends. So one that was orphaned, because this
run was killed, does not take a host out minutes later, when no run is there any more to put it back.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import start_of_process

SHORT_S = 15
DEFAULT_TIMEOUT_S = 60
# Of several short runs of the module the first one has set the state.
OF_THE_FIRST = ("changed", "diff", "hosts")


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action plugin behind gpufleet.vllm.router_backend."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; again as long as it says that others are out for a turn, and tell who."""
        super().run(tmp, task_vars)
        self._variables, self._tmp = task_vars or {}, tmp
        arguments = {"run": this_run(), **self._task.args}
        result = self._take_turn(arguments)
        left = float(arguments.get("timeout", DEFAULT_TIMEOUT_S)) - SHORT_S
        while left > 0 and result.get("sessions_left") and not self._task.check_mode:
            self._tell(
                f"drains: {result['sessions_left']} requests are running on {', '.join(result['still_running'])}"
            )
            again = self._run_module({**arguments, "timeout": int(min(left, SHORT_S)), "max_unavailable": ""})
            if again.get("failed") or again.get("unreachable"):
                return again
            again["waited_s"] += result["waited_s"]
            result = {**again, **{key: result[key] for key in OF_THE_FIRST if key in result}}
            left -= SHORT_S
        return result

    def _take_turn(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the module until it is not told any more that others are out for a turn; return its result."""
        patience, timeout = (
            float(arguments.get("turn_timeout") or 0),
            float(arguments.get("timeout", DEFAULT_TIMEOUT_S)),
        )
        short = {**arguments, "turn_timeout": int(min(patience, SHORT_S))}
        if arguments.get("state") != "ready":
            short["timeout"] = int(min(timeout, SHORT_S))
        told, since = "", time.monotonic()
        while True:
            result = self._run_module(short)
            error = result.get("error") or {}
            if not (error.get("details") or {}).get("passes"):
                return result
            turns = error["details"].get("turns") or {}
            # Those of this play that an earlier run has left come back in their own turns.
            coming = set(self._variables.get("ansible_play_hosts") or [])
            if turns and not any(host in coming or may_live(run) for host, run in turns.items()):
                return result
            if error["message"] != told:
                told, since = error["message"], time.monotonic()
                self._tell(f"waits for its turn: {told}")
            elif time.monotonic() - since >= patience:
                return result

    def _run_module(self, arguments: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(
            module_name="gpufleet.vllm.router_backend", module_args=arguments, task_vars=self._variables, tmp=self._tmp
        )
        return result

    def _tell(self, text: str) -> None:
        self._display.display(f"[{self._variables.get('inventory_hostname', '')}] {text}")


def this_run() -> str:
    """Return what tells this run of Ansible from others: the controller's name, and the process and its start."""
    process = os.getppid()  # an action is a child of the process that the user started
    return f"{socket.gethostname()} {process} {start_of_process(process)}"


def may_live(run: str) -> bool:
    """Return whether a run may still be at work: of those of another controller nothing is known."""
    host, _space, process = run.partition(" ")
    if host != socket.gethostname():
        return True
    number, _space, start = process.partition(" ")
    return number.isdigit() and start == start_of_process(int(number))
