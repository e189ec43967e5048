# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each gate passes and fails, on both sides of its limit."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import gates


def score(value: float, stderr: float | None) -> list[dict[str, Any]]:
    return [{"task": "gsm8k", "metric": "exact_match,strict-match", "value": value, "stderr": stderr, "samples": 1319}]


@pytest.mark.parametrize(
    ("value", "stderr", "allowed", "passed", "says"),
    [
        (0.90, 0.009, 2, True, "floor 0.8779"),
        (0.8779, 0.009, 2, True, "floor 0.8779"),
        (0.8610, 0.009, 2, True, "1.9 standard errors below it, 2 allowed"),
        (0.8590, 0.009, 2, False, "2.1 standard errors below it, 2 allowed"),
        (0.8610, 0.009, 0, False, "0 allowed"),
        (0.8778, None, 2, False, "with no standard error"),
    ],
)
def test_accuracy_floor_and_standard_error(
    value: float, stderr: float | None, allowed: float, passed: bool, says: str
) -> None:
    floors = {"gsm8k": {"exact_match,strict-match": 0.8779}, "not run": {"acc,none": 1.0}}
    (found,) = gates.accuracy_gates(score(value, stderr), floors, allowed)
    assert found["passed"] is passed
    assert says in found["text"] and f"{value:.4f}" in found["text"]


def test_a_floor_of_a_metric_that_is_not_there_fails_and_names_those_that_are() -> None:
    (found,) = gates.accuracy_gates(score(1.0, 0.0), {"gsm8k": {"exact_match,flexible": 0.5}}, 2)
    assert not found["passed"]
    assert "exact_match,strict-match" in found["text"]


def test_a_floor_of_a_task_that_ought_to_have_a_score_fails_without_one() -> None:
    floors = {"mmlu": {"acc,none": 0.7}, "not run": {"acc,none": 0.7}}
    (found,) = gates.accuracy_gates(score(1.0, 0.0), floors, 2, ["gsm8k", "mmlu"])
    assert not found["passed"] and "it gives no score of mmlu at all" in found["text"]


@pytest.mark.parametrize(
    ("floors", "ceilings", "passed"),
    [
        ({"output_throughput": 100}, {}, True),
        ({"output_throughput": 101}, {}, False),
        ({}, {"p99_ttft_ms": 50}, True),
        ({}, {"p99_ttft_ms": 49}, False),
        ({"output_thruput": 1}, {}, False),
    ],
)
def test_limits(floors: dict[str, float], ceilings: dict[str, float], passed: bool) -> None:
    figures = {"output_throughput": 100.0, "p99_ttft_ms": 50.0}
    (found,) = gates.limit_gates(figures, floors, ceilings, "concurrency 8")
    assert found["passed"] is passed
    assert next(iter([*floors, *ceilings])) in found["text"]


def point(throughput: float, std: float = 0.0, runs: int = 1, tpot: float = 40.0) -> list[dict[str, Any]]:
    summary = {
        "output_throughput": {"mean": throughput, "std": std},
        "median_tpot_ms": {"mean": tpot, "std": 0.0},
    }
    return [{"concurrency": 128, "runs": [{}] * runs, "summary": summary}]


@pytest.mark.parametrize(
    ("now", "before", "passed"),
    [
        (point(1000), point(1000), [True, True]),
        (point(951), point(1000), [True, True]),
        (point(949), point(1000), [False, True]),
        (point(1200), point(1000), [True, True]),
        (point(1000, tpot=42.1), point(1000), [True, False]),
        # 10 % worse, but runs scatter by 10 %: two standard errors of the difference are 115.
        (point(900, std=100, runs=6), point(1000, std=100, runs=6), [True, True]),
        (point(880, std=100, runs=6), point(1000, std=100, runs=6), [False, True]),
    ],
)
def test_regressions(now: list[dict[str, Any]], before: list[dict[str, Any]], passed: list[bool]) -> None:
    found = gates.regression_gates(now, before, tolerance=0.05, standard_errors=2)
    assert [entry["passed"] for entry in found] == passed


def compared(now: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[gates.Gate]:
    return gates.regression_gates(now, before, tolerance=0.05, standard_errors=2)


def test_a_measurement_that_scatters_does_not_excuse_itself() -> None:
    """Runs of 2000 and 1000 tokens a second after two of 2000 and 2020."""
    throughput, _tpot = compared(point(1500, std=707.1, runs=2), point(2010, std=14.1, runs=2))
    assert not throughput["passed"]
    assert "25.4 % worse, 5.0 % allowed (noise of 2 runs included)" in throughput["text"]


def test_noise_widens_the_tolerance_only_so_far() -> None:
    wild = point(1000, std=400, runs=2)
    assert [compared(point(value), wild)[0]["passed"] for value in (851, 849)] == [True, False]


def test_the_spread_between_servers_counts_as_noise() -> None:
    stored = point(1000)
    stored[0]["servers"] = 16
    stored[0]["summary"]["output_throughput"]["spread"] = 50.0
    (passed, _tpot), (failed, _too) = compared(point(905), stored), compared(point(895), stored)
    assert (passed["passed"], failed["passed"]) == (True, False)
    assert "10.0 % allowed (spread of 16 servers included)" in failed["text"]


def test_a_concurrency_without_baseline_is_not_judged_beside_one_that_has_one() -> None:
    now = [*point(1000), {**point(1)[0], "concurrency": 8}]
    assert [entry["passed"] for entry in compared(now, point(1000))] == [True, True]


def test_a_baseline_without_a_common_concurrency_fails_and_names_the_variable() -> None:
    before = [{**point(2000)[0], "concurrency": number} for number in (256, 64)]
    (found,) = compared(point(10), before)
    assert (found["kind"], found["passed"]) == ("regression", False)
    assert "it has concurrency 64, 256, measured was 128" in found["text"]
    assert "set vllm_benchmark_concurrency: [64, 256]" in found["text"]


@pytest.mark.parametrize("before", [[], [{"concurrency": 128, "runs": [], "summary": {}}]], ids=["empty", "no runs"])
def test_a_baseline_without_figures_fails(before: list[dict[str, Any]]) -> None:
    (found,) = compared(point(1000), before)
    assert not found["passed"]
    assert "vllm_benchmark_save_baseline: true" in found["text"]


def test_a_figure_that_only_the_baseline_has_fails() -> None:
    now = point(1000)
    del now[0]["summary"]["median_tpot_ms"]
    throughput, tpot = compared(now, point(1000))
    assert (throughput["passed"], tpot["passed"], tpot["metric"]) == (True, False, "median_tpot_ms")
    assert tpot["text"] == "median_tpot_ms was not measured at concurrency 128, baseline 40"
    assert [entry["passed"] for entry in compared(point(1000), now)] == [True], "one that only this run has is new"


def test_every_token_of_every_answer_counts() -> None:
    assert gates.tokens_gate(100, 100, "concurrency 8")["passed"]
    cut = gates.tokens_gate(99, 100, "concurrency 8")
    assert not cut["passed"] and "99 of 100 output tokens arrived at concurrency 8: answers were cut" in cut["text"]


def test_no_request_at_all_fails() -> None:
    assert not gates.requests_gate(0, 0, "concurrency 8")["passed"]


def test_outliers_are_named_on_both_sides() -> None:
    values = {"a": 1000.0, "b": 1010.0, "c": 990.0, "d": 700.0, "e": 1300.0}
    found = gates.outliers(values, 0.1)
    assert set(found) == {"d", "e"}
    assert "-30.3 %" in found["d"] and "+30.7 %" in found["e"]


def test_among_three_that_scatter_the_one_far_off_is_named() -> None:
    # Measured on three servers of one machine, one of them with a fifth of a core.
    assert set(gates.outliers({"a": 80.2, "b": 96.7, "c": 10.4}, 0.3)) == {"c"}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"a": 1.0, "b": 9.0},
        {"a": 100.0, "b": 95.0, "c": 105.0},
        {"a": 100.0, "b": 60.0, "c": 140.0, "d": 80.0, "e": 120.0},
    ],
    ids=["none", "too few", "within the tolerance", "all scatter"],
)
def test_no_outliers(values: dict[str, float]) -> None:
    assert gates.outliers(values, 0.1) == {}


def test_failure_names_every_failed_gate() -> None:
    found = [gates.requests_gate(10, 2, "concurrency 8"), gates.requests_gate(10, 0, "concurrency 1")]
    error = gates.failure(gates.failed(found))
    assert error.name == "gates-failed"
    assert error.message == "1 gate failed: 10 requests answered, 2 failed at concurrency 8."
