# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the action of vllm_benchmark stores a benchmark on the controller and compares a later one with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.vllm_benchmark import compared
from ansible_collections.gpufleet.vllm.plugins.module_utils import baseline

RESULT: dict[str, Any] = {
    "comparable": {"hardware": {"gpus": ["NVIDIA H200"], "driver": "580.159.04"}, "load": {"input_len": 1024}},
    "points": [
        {"concurrency": 8, "runs": [{}], "summary": {"output_throughput": {"mean": 460.0, "std": 0.0}}},
    ],
    "gates": [{"kind": "requests", "metric": "failed", "value": 0, "limit": 0, "passed": True, "text": "t"}],
}


def compare(result: dict[str, Any], folder: Path, save: bool = False) -> dict[str, Any]:
    return compared(result, str(folder), save=save, tolerance=0.05, standard_errors=2)


def slower(share: float) -> dict[str, Any]:
    result = copy.deepcopy(RESULT)
    result["points"][0]["summary"]["output_throughput"]["mean"] *= share
    return result


def test_without_a_stored_benchmark_nothing_is_compared(tmp_path: Path) -> None:
    result = compare(RESULT, tmp_path)
    assert not result["baseline"]["found"] and result["gates"] == RESULT["gates"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("share", "failed"), [(1.0, False), (0.96, False), (0.9, True), (2.0, False)])
def test_a_later_benchmark_is_judged_by_the_stored_one(tmp_path: Path, share: float, failed: bool) -> None:
    saved = compare(RESULT, tmp_path, save=True)["baseline"]["saved"]
    assert Path(saved).is_file()
    result = compare(slower(share), tmp_path)
    assert bool(result.get("failed")) is failed
    assert result["baseline"]["found"] and result["gates"][-1]["kind"] == "regression"
    assert result["passed"] is not failed
    if failed:
        assert result["error"]["name"] == "gates-failed"
        assert "10.0 % worse, 5.0 % allowed" in result["msg"]


def test_another_driver_is_not_compared(tmp_path: Path) -> None:
    compare(RESULT, tmp_path, save=True)
    other = slower(0.1)
    other["comparable"]["hardware"]["driver"] = "590.1"
    assert not compare(other, tmp_path)["baseline"]["found"]


def test_a_failed_benchmark_is_not_stored(tmp_path: Path) -> None:
    failed_gate = {**RESULT["gates"][0], "passed": False}
    result = compare({**RESULT, "gates": [failed_gate], "failed": True, "msg": "m"}, tmp_path, save=True)
    assert result["failed"] and result["baseline"]["saved"] == ""
    assert baseline.load(str(tmp_path), result["baseline"]["key"]) is None
