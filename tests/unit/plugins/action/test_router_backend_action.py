# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is waited for at the router is told, and no wait is one long run of the module."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action import router_backend
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import start_of_process
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action


def run(answers: list[dict[str, Any]], arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[Any]]:
    """Return the action's result, what it displayed, and the arguments of each run of the module."""
    asked: list[Any] = []

    class Asking(router_backend.ActionModule):
        def _execute_module(self, **parts: Any) -> dict[str, Any]:
            asked.append(parts["module_args"])
            return answers[len(asked) - 1]

    result, display = run_action(Asking, arguments, {"inventory_hostname": "gpu-01"})
    return result, [call.args[0] for call in display.display.call_args_list], asked


def drained(left: int, *, changed: bool = False) -> dict[str, Any]:
    """Return the module's result with so many requests left."""
    return {
        "changed": changed,
        "sessions_left": left,
        "still_running": ["gpu-01:vllm-0"] if left else [],
        "waited_s": 15.0,
    }


def test_requests_that_are_waited_for_are_told() -> None:
    answers = [drained(3, changed=True), drained(2), drained(0)]
    result, shown, asked = run(answers, {"state": "drain", "timeout": 600, "max_unavailable": "25%"})
    assert (result["changed"], result["sessions_left"], result["waited_s"]) == (True, 0, 45.0)
    assert shown == [f"[gpu-01] drains: {left} requests are running on gpu-01:vllm-0" for left in (3, 2)]
    assert [(each["timeout"], each["max_unavailable"]) for each in asked] == [(15, "25%"), (15, ""), (15, "")]


def test_the_time_out_is_kept() -> None:
    result, _shown, asked = run([drained(1)] * 3, {"state": "drain", "timeout": 40})
    assert result["sessions_left"] == 1
    assert [each["timeout"] for each in asked] == [15, 15, 10]
    assert len(run([drained(1)], {"state": "drain", "timeout": 0})[2]) == 1


@pytest.mark.parametrize("run_of", ["", f"{socket.gethostname()} 4194304 1"])
def test_a_run_that_is_over_is_not_waited_for(run_of: str) -> None:
    turns = {"gpu-02": run_of} if run_of else {}
    refused = {"failed": True, "error": {"message": "m", "details": {"passes": bool(run_of), "turns": turns}}}
    result, _shown, asked = run([refused], {"state": "drain", "turn_timeout": 600})
    assert (result["failed"], len(asked)) == (True, 1)


def test_a_run_that_lives_is_waited_for_and_told_once() -> None:
    turns = {"gpu-02": f"{socket.gethostname()} {os.getpid()} {start_of_process(os.getpid())}"}
    refused = {"failed": True, "error": {"message": "gpu-02 is out", "details": {"passes": True, "turns": turns}}}
    result, shown, asked = run([refused, refused, drained(0)], {"state": "drain", "turn_timeout": 600})
    assert (result.get("failed"), len(asked)) == (None, 3)
    assert shown == ["[gpu-01] waits for its turn: gpu-02 is out"]
