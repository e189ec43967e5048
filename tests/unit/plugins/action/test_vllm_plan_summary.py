# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin vllm_plan_summary: what it prints and returns."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

from ansible_collections.gpufleet.vllm.plugins.action import vllm_plan_summary
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action


def run(plans: dict[str, Any]) -> tuple[dict[str, Any], MagicMock]:
    return run_action(vllm_plan_summary.ActionModule, {"plans": plans})


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
