# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found out about a host before its turn, and what a canary is held against."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import prepared_host
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.canary_gates import ungated_after

ALL = ("basic", "accuracy", "performance")
CURRENT = {"id": "2", "current": True, "image": {"id": "sha256:1"}}


def test_why_servers_would_be_replaced_and_which_removed() -> None:
    replicas = [{"why": ["a: 1 -> 2", "b"]}, {"why": []}, {"why": ["c"]}]
    assert prepared_host.changes_of({"replicas": replicas, "removed": ["vllm-1"]}) == ["a: 1 -> 2", "b", "c", "vllm-1"]
    assert prepared_host.changes_of({"replicas": replicas[1:2], "removed": []}) == prepared_host.changes_of({}) == []


def test_a_host_serves_if_one_of_its_servers_does() -> None:
    servers = [{"phase": "loading weights"}, {"phase": "serving"}]
    assert prepared_host.serves({"servers": servers})
    assert not prepared_host.serves({"servers": servers[:1]})
    assert not prepared_host.serves({})


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"plan": None, "deployments": []},
        {"plan": {"replicas": []}, "deployments": []},
        {"plan": {"replicas": []}, "deployments": [{"id": "1", "current": False}]},
    ],
)
def test_a_host_without_a_deployment_has_nothing_to_go_back_to(info: dict[str, Any]) -> None:
    assert prepared_host.served_before(info) == {"deployment": "", "baseline_for": {}, "wish": ""}


def test_a_deployment_whose_plan_is_gone_is_compared_with_nothing() -> None:
    assert prepared_host.served_before({"deployments": [CURRENT]}) == {
        "deployment": "2",
        "baseline_for": {},
        "wish": "",
    }
    served = prepared_host.served_before({"plan": {"precision": "fp8", "replicas": []}, "deployments": [CURRENT]})
    assert served["baseline_for"]["image_id"] == "sha256:1"
    assert served["baseline_for"]["plan"]["precision"] == "fp8"


def test_floors_count_for_tasks_that_are_run() -> None:
    floors = {"any": {"mmlu": {"a": 0.5}}, "fp8": {"gsm8k": {"b": 0.9}}}
    found = prepared_host.gates_of(
        {"precision": "fp8"}, {"x": 1}, floors=floors, tasks=["gsm8k", "arc"], limits=["median_ttft_ms"]
    )
    assert found == {"floors": ["gsm8k"], "limits": ["median_ttft_ms"], "baseline_for": {"x": 1}}
    none = prepared_host.gates_of({"precision": "fp4"}, {}, floors=floors, tasks=["gsm8k"], limits=[])
    assert none == {"floors": [], "limits": [], "baseline_for": {}}


@pytest.mark.parametrize(
    ("stages", "accuracy", "performance", "expected"),
    [
        (ALL, [], [], ["accuracy had no floor", "performance had no baseline, no floor and no ceiling"]),
        (("basic",), [], [], []),
        (ALL, [{"gates": [{}]}], [{"gates": [{"kind": "regression"}]}], []),
        (ALL, [{"gates": []}, {"gates": [{}]}], [{"gates": []}, {"gates": [{"kind": "ceiling"}]}], []),
        (("performance",), [], [{"gates": [{"kind": "floor"}]}], []),
        # These look at the measurement itself.
        (
            ("performance",),
            [],
            [{"gates": [{"kind": "requests"}]}],
            ["performance had no baseline, no floor and no ceiling"],
        ),
        # A server whose stage failed has no gates.
        (("accuracy",), [{"failed": True}], [], ["accuracy had no floor"]),
    ],
)
def test_what_a_canary_was_held_against(
    stages: tuple[str, ...], accuracy: list[dict[str, Any]], performance: list[dict[str, Any]], expected: list[str]
) -> None:
    assert ungated_after(stages, accuracy, performance) == expected
