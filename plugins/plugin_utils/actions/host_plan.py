# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of one host by its variables, for the actions that plan one host and that plan all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions import hub_look
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.task_variables import moe_tables, planner_host
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.plan_ports import check_host
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes


def plan_of(
    templar: Any,
    variables: Mapping[str, Any],
    wished: Wishes,
    found: tuple[Mapping[str, Any], Any],
    further: Mapping[str, Any],
) -> Plan:
    """Return the plan of a host.

    Args:
        templar: for the host's variables.
        variables: the host's, untemplated.
        wished: what they wish for.
        found: what gpu_info and host_info told; either may be empty.
        further: what else is known of the host, which wins.

    Raises:
        GpufleetError: there is no plan, with the reason.
    """
    gpu_info, host_info = found
    host = planner_host(gpu_info, host_info, variables, wished.container_prefix)
    plan = plan_by({**host, **further}, templar, variables, wished)
    check_host(plan, host_info)
    return plan


def plan_by(host: Mapping[str, Any], templar: Any, variables: Mapping[str, Any], wished: Wishes) -> Plan:
    """Return the plan by what is known of a host, of its model at the hub, and of tuned tables on the controller.

    Args:
        host: see planner.plan.
        templar: for the host's variables.
        variables: the host's, untemplated.
        wished: what they wish for.

    Raises:
        GpufleetError: there is no plan, with the reason.
    """
    known = {"moe_tables": moe_tables(templar), **host}
    return planner.plan(hub_look.with_model(known, wished, templar, variables), wished)


def write_plan(plan: Plan, folder: str, name: str, *, check: bool, diff: bool) -> dict[str, Any]:
    """Write a plan below C(folder) on the controller, if one is given, and return what changed as a task's result."""
    if not folder:
        return {}
    path = os.path.join(os.path.expanduser(folder), f"{name}.json")
    text = json.dumps(plan, indent=2, sort_keys=False) + "\n"
    before = read_text(path)
    result: dict[str, Any] = {"plan_file": path, "changed": before != text}
    if diff and before != text:
        result["diff"] = [{"before_header": path, "after_header": path, "before": before, "after": text}]
    if before != text and not check:
        replace_file(path, text, what="plan", name="plan-not-written", variable="vllm_plan_dir")
    return result
