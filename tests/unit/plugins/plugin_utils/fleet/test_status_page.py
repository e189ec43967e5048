# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of a fleet."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import host_names, plan_page
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes


def plan(card: str, count: int = 8, **wished: Any) -> Any:
    variables = {
        "vllm_accept_license": True,
        "vllm_profile": "balanced",
        "vllm_gpus": [{"name": card, "count": count}],
        **{f"vllm_{name}": value for name, value in wished.items()},
    }
    return planner.plan({}, wishes.read(variables))


H200, B200 = plan("NVIDIA H200"), plan("NVIDIA B200")


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        (["gpu-1"], "gpu-1"),
        (["gpu-01", "gpu-02", "gpu-03"], "gpu-[01:03]"),
        (["gpu-9", "gpu-10", "gpu-11"], "gpu-9, gpu-[10:11]"),
        (["a2", "a1", "b1", "a4"], "a[1:2], a4, b1"),
        (["n1.eu.example.org", "n2.eu.example.org"], "n[1:2].eu.example.org"),
        (["r1-n1", "r1-n2", "r2-n1"], "r1-n[1:2], r2-n1"),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1, 10.0.0.2"),
        (["alpha", "beta"], "alpha, beta"),
    ],
)
def test_hosts_are_folded(hosts: list[str], text: str) -> None:
    assert host_names.fold(hosts) == text


def test_alike_hosts_share_a_row_and_outliers_have_their_own() -> None:
    plans = {f"gpu-{number:03d}": H200 for number in range(1, 481)}
    plans.update({f"b-{number:02d}": B200 for number in range(1, 20)})
    plans["odd"] = plan("NVIDIA H200", 7)
    lines = plan_page.table(plans)["table"]
    assert lines[0] == "500 hosts: 3 kinds of plan"
    assert [line.split()[:2] for line in lines[2:5]] == [["480", "gpu-[001:480]"], ["19", "b-[01:19]"], ["1", "odd"]]
    assert "4 x TP 2" in lines[2]
    assert "8 x NVIDIA H200" in lines[2]


def test_the_cards_own_identifiers_and_drivers_make_no_difference() -> None:
    other = {**H200, "replicas": [{**replica, "gpu_uuids": ["GPU-x"]} for replica in H200["replicas"]]}
    other["decisions"] = [*other["decisions"], {"field": "driver", "value": "580.1", "reason": "new enough"}]
    assert plan_page.table({"a": H200, "b": other})["table"][0] == "2 hosts: 1 kind of plan"


def test_the_smallest_capacity_of_a_group_is_shown() -> None:
    smaller = {**H200, "capacity": {**H200["capacity"], "kv_cache_tokens": 1234567}}
    assert "1,234,567" in plan_page.table({"a": H200, "b": smaller})["table"][2]


def test_each_warning_comes_once_with_its_hosts() -> None:
    warned = {**H200, "warnings": ["Fans are loud."]}
    also = {**B200, "warnings": ["Fans are loud.", "Door is open."]}
    lines = plan_page.table({"a1": warned, "a2": warned, "b1": also, "c": plan("NVIDIA H200", 4)})["table"]
    at = lines.index("Warnings:")
    assert lines[at + 1 :] == ["  a[1:2], b1 (3 hosts): Fans are loud.", "  b1: Door is open."]


def test_a_warning_for_everybody_does_not_list_them() -> None:
    warned = {**H200, "warnings": ["Fans are loud."]}
    assert "  all 2: Fans are loud." in plan_page.table({"a": warned, "b": warned})["table"]


def test_refused_hosts_are_named_with_the_reason() -> None:
    error = GpufleetError("Too small.", name="does-not-fit", remedy="Buy more.").as_result()
    lines = plan_page.table({"a": H200, "x1": error, "x2": error, "y": None, "z": "on fire"})["table"]
    assert lines[0] == "5 hosts: 1 kind of plan, 4 refused"
    at = lines.index("Refused:")
    assert lines[at + 1 : at + 4] == [
        "  x[1:2] (2 hosts): Too small. Buy more.",
        "  y: no plan; the host failed or was not reached",
        "  z: on fire",
    ]


def test_a_fleet_that_is_refused_as_a_whole() -> None:
    assert plan_page.table({"a": "no", "b": "no"})["table"] == [
        "2 hosts: 0 kinds of plan, 2 refused",
        "",
        "Refused:",
        "  all 2: no",
    ]


def test_a_plan_without_known_sizes() -> None:
    unknown = plan("NVIDIA H200", model="a/b", tensor_parallel_size=1)
    assert " ? " in plan_page.table({"a": unknown})["table"][2]


def test_reasons_are_told_for_each_kind() -> None:
    reasons = plan_page.table({"a": H200, "b": H200, "c": B200})["reasons"]
    assert reasons[0] == "a, b:"
    assert sum(line.startswith("  precision = ") for line in reasons) == 2
    assert any(line.startswith("  gpu_memory_utilization = not sent: ") for line in reasons)


def test_a_page_for_500_different_hosts_stays_a_page() -> None:
    plans = {f"rack-{number % 40:02d}-node-{number}": H200 for number in range(500)}
    lines = plan_page.table(plans)["table"]
    assert len(lines) == 3
    assert max(len(line) for line in lines) < 200
