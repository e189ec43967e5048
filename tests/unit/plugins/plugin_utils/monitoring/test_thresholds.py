# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds are read, and those that could never count are refused."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.alert_rules import rule_groups
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.thresholds import THRESHOLDS, read_thresholds


def test_what_is_given_replaces_the_default() -> None:
    found = read_thresholds({"queue_length": "7", "drift_hours": None})
    assert found == {**{name: default for name, (default, *_range) in THRESHOLDS.items()}, "queue_length": 7}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queue": 1}, "queue: there is no such threshold; there are replica_down_minutes"),
        ({"queue_length": "many"}, "queue_length: 'many' is no number"),
        ({"error_share": 5}, "error_share: 5 is not between 0.0001 and 1"),
        ({"queue_minutes": 1.5}, "queue_minutes: 1.5 is no whole number"),
        ({"ttft_goal_seconds": 2}, "2 is no bound of vLLM's histogram, which counts requests up to 0.001"),
        ({"ttft_share": 0.9}, "ttft_fast_burn: 14.4 times the 0.1 of requests that may be late is more than all"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(GpufleetError) as raised:
        read_thresholds(given)
    assert raised.value.name == "invalid-thresholds"
    assert said in raised.value.message


def test_a_threshold_gets_into_expression_duration_and_text() -> None:
    read = read_thresholds({"no_progress_minutes": 9, "ttft_goal_seconds": 0.5, "ttft_share": 0.99})
    groups = rule_groups(read, runbooks="https://r", node_job="node", certificates={})["groups"]
    rules = {rule.get("alert") or rule["record"]: rule for group in groups for rule in group["rules"]}
    assert "total[9m]" in rules["GpufleetNoProgress"]["expr"]
    assert rules["GpufleetNoProgress"]["annotations"]["description"].startswith("For 9 minutes {{ $value }} requests")
    assert 'le="0.5"' in rules["gpufleet:ttft_late:ratio6h"]["expr"]
    assert "ratio5m > 0.144 and" in rules["GpufleetTtftGoalBurnsFast"]["expr"]
    assert 'job=~"node"' in rules["GpufleetDiskFull"]["expr"]
