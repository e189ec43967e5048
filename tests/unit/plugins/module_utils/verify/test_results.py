# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures and scores read from results: real ones of an H200, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.results import (
    accuracy_scores,
    benchmark_figures,
    missing_tasks,
    summarise,
    tasks_of,
)

DATA = Path(__file__).resolve().parents[3] / "data" / "results"


def recorded(name: str) -> Any:
    """Return a result of vllm bench serve 0.26 on an H200."""
    return json.loads((DATA / f"bench-{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "prompts", "throughput", "ttft", "tpot"),
    [
        ("triton-c8", 16, 460.566, 1371.31, 16.0441),
        ("triton-c128", 256, 2461.47, 2240.91, 42.9028),
        ("triton-c512", 512, 2715.27, 62211.4, 55.1414),
        ("marlin-c8", 8, 450.065, 604.651, 17.1991),
        ("marlin-c128", 128, 2254.99, 5145.41, 44.7939),
    ],
)
def test_recorded_benchmarks(name: str, prompts: int, throughput: float, ttft: float, tpot: float) -> None:
    figures = benchmark_figures(recorded(name), prompts=prompts, gpus=2)
    assert (figures["completed"], figures["failed"]) == (prompts, 0)
    assert figures["output_throughput"] == throughput
    assert figures["output_throughput_per_gpu"] == pytest.approx(throughput / 2, rel=1e-5)
    assert (figures["mean_ttft_ms"], figures["mean_tpot_ms"]) == (ttft, tpot)
    assert "mean_e2el_ms" not in figures, "this run was not asked for it"
    assert "request_goodput" not in figures, "null means that no limits were given"


def test_requests_that_the_program_forgets_count_as_failed() -> None:
    document = {**recorded("triton-c8"), "completed": 10, "failed": 0}
    assert benchmark_figures(document, prompts=16, gpus=0)["failed"] == 6


def test_latencies_of_no_requests_are_no_figures() -> None:
    figures = benchmark_figures({"completed": 0, "failed": 8, "mean_ttft_ms": 0.0, "duration": 1.0}, prompts=8, gpus=1)
    assert figures == {"completed": 0, "failed": 8, "duration": 1.0}


def test_goodput_under_its_old_name() -> None:
    assert benchmark_figures({"completed": 1, "request_goodput:": 0.5}, prompts=1, gpus=0)["request_goodput"] == 0.5


@pytest.mark.parametrize("document", [None, [], {}, {"completed": "8"}])
def test_what_is_no_result_is_refused(document: Any) -> None:
    with pytest.raises(GpufleetError) as raised:
        benchmark_figures(document, prompts=8, gpus=0)
    assert raised.value.name == "result-unreadable"


def test_summary_of_repeated_runs() -> None:
    summary = summarise([{"a": 10.0, "b": 1.0}, {"a": 12.0}, {"a": 14.0}])
    assert summary == {"a": {"mean": 12.0, "std": 2.0}}
    assert summarise([{"a": 3.0}]) == {"a": {"mean": 3.0, "std": 0.0}}


GSM8K = {
    "alias": "gsm8k",
    "exact_match,strict-match": 0.8779378316906747,
    "exact_match_stderr,strict-match": 0.009016,
    "exact_match,flexible-extract": 0.8946,
    "exact_match_stderr,flexible-extract": "N/A",
}


def evaluated(effective: int = 1319) -> dict[str, Any]:
    """Return a results file of lm_eval as far as it matters."""
    return {"results": {"gsm8k": GSM8K}, "n-samples": {"gsm8k": {"original": 1319, "effective": effective}}}


def test_scores() -> None:
    common = {"task": "gsm8k", "samples": 1319}
    assert accuracy_scores(evaluated(), ["gsm8k"]) == [
        {**common, "metric": "exact_match,strict-match", "value": 0.877938, "stderr": 0.009016},
        {**common, "metric": "exact_match,flexible-extract", "value": 0.8946, "stderr": None},
    ]


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ({}, "result-unreadable"),
        (evaluated(effective=0), "no-samples"),
        ({"results": {"gsm8k": {"alias": "gsm8k"}}}, "no-samples"),
        ({"results": {"other": {"alias": "other"}}}, "task-missing"),
        ({"results": {"gsm8k": {"acc,none": float("nan")}}}, "no-samples"),
    ],
)
def test_results_without_scores_are_explained(document: Any, name: str) -> None:
    with pytest.raises(GpufleetError) as raised:
        accuracy_scores(document, ["gsm8k"])
    assert raised.value.name == name


def test_a_group_counts_as_asked_for() -> None:
    document = {**evaluated(), "groups": {"maths": {"exact_match,none": 0.5}}}
    assert {score["task"] for score in accuracy_scores(document, ["maths"])} == {"gsm8k"}


def test_a_tag_is_not_in_the_results_and_its_tasks_are() -> None:
    """As ai2_arc, in whose place lm_eval names arc_easy and arc_challenge."""
    document = {"results": {"arc_easy": {"acc,none": 0.8}, "arc_challenge": {"acc,none": 0.5}}}
    assert [score["task"] for score in accuracy_scores(document, ["ai2_arc"])] == ["arc_easy", "arc_challenge"]
    assert missing_tasks(document, ["ai2_arc", "arc_easy"]) == ["ai2_arc"]
    assert tasks_of(document) == ["arc_challenge", "arc_easy"]
