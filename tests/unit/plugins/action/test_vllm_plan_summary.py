# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin vllm_plan_summary: what it prints and returns."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

from ansible_collections.gpufleet.vllm.plugins.action import vllm_plan_summary
from ansible_collections.gpufleet.vllm.plugins.module_utils import planner, wishes


def run(plans: dict[str, Any]) -> tuple[dict[str, Any], MagicMock]:
    task = MagicMock(args={"plans": plans}, check_mode=False, async_val=0)
    action = vllm_plan_summary.ActionModule(task, MagicMock(), MagicMock(), MagicMock(), MagicMock(), MagicMock())
    action._display = MagicMock()
    return action.run(task_vars={}), action._display


def test_it_prints_the_table_and_keeps_the_reasons_for_v() -> None:
    variables = {"vllm_accept_license": True, "vllm_gpus": [{"name": "NVIDIA B200", "count": 8}]}
    plan = planner.plan({}, wishes.read(variables))
    result, display = run({"a1": plan, "a2": plan, "b": {"message": "No.", "remedy": "Yes."}})
    printed = display.display.call_args.args[0]
    assert result["changed"] is False
    assert printed == "\n".join(result["table"])
    assert "a[1:2]" in printed
    assert "b: No. Yes." in printed
    assert "precision = fp4" not in printed
    assert "precision = fp4" in display.v.call_args.args[0]
