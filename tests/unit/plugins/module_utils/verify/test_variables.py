# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users write into the variables of gates and measurements, right and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import variables as verify_variables

ROLES = Path(__file__).resolve().parents[5] / "roles"
FLOORS = {"gsm8k": {"exact_match,strict-match": 0.88}}


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("vllm_accuracy_floors", FLOORS, "gsm8k is no precision, there are fp4, fp8, mxfp4, 4-bit, 8-bit, bf16, fp32"),
        ("vllm_accuracy_floors", {"FP8": FLOORS}, "FP8 is no precision, did you mean fp8?"),
        (
            "vllm_accuracy_floors",
            {"fp8": {"gsm8k": 0.92}},
            "fp8: gsm8k: it must be floors by precision, task and metric",
        ),
        ("vllm_accuracy_floors", {"fp8": None}, "fp8: it must be floors by precision"),
        (
            "vllm_accuracy_floors",
            {"fp8": {"gsm8k": {"acc,none": "high"}}},
            "fp8: gsm8k: acc,none: 'high' is not a number",
        ),
        ("vllm_accuracy_floors", {"fp8": {"gsm8k": {"acc,none": float("nan")}}}, "acc,none: nan is not a number"),
        ("vllm_accuracy_floors", {"fp8": {"gsm8k": {"acc,none": True}}}, "acc,none: True is not a number"),
        ("vllm_accuracy_floors", [], "it must be floors by precision"),
        ("vllm_accuracy_floors", None, "it has no value"),
        ("vllm_accuracy_standard_errors", -1, "at least 0"),
        ("vllm_accuracy_standard_errors", ".inf", "at least 0"),
        ("vllm_accuracy_tasks", [], "at least one task"),
        ("vllm_accuracy_tasks", "", "at least one task"),
        ("vllm_accuracy_tasks", {"gsm8k": 1}, "it must be a list"),
        ("vllm_accuracy_limit", 0.1, "whole number"),
        ("vllm_accuracy_model_args", "max_gen_toks=5", "dictionary"),
        ("vllm_accuracy_timeout", 0, "at least 1"),
        ("vllm_benchmark_concurrency", [8, "many"], "[1, 8, 32, 128]"),
        ("vllm_benchmark_concurrency", 0, "[1, 8, 32, 128]"),
        ("vllm_benchmark_concurrency", {"max": 8}, "[1, 8, 32, 128]"),
        ("vllm_benchmark_runs", 0, "at least 1"),
        (
            "vllm_benchmark_floors",
            {"output_throughput": "2000 tok/s"},
            "output_throughput: '2000 tok/s' is not a number",
        ),
        ("vllm_benchmark_floors", ["output_throughput"], "{output_throughput_per_gpu: 2000}"),
        ("vllm_benchmark_ceilings", {"median_ttft_ms": {"p99": 5}}, "median_ttft_ms: {'p99': 5} is not a number"),
        ("vllm_benchmark_goodput", {"ttfs": 2000}, "ttfs is no latency, did you mean ttft?"),
        ("vllm_benchmark_goodput", {"ttft": -1}, "ttft: -1 is not above 0"),
        ("vllm_benchmark_save_baseline", "maybe", "true or false"),
        ("vllm_benchmark_tolerance", 5, "0.05 stands for 5 %"),
        ("vllm_benchmark_tolerance", "5 %", "0.05 stands for 5 %"),
        ("vllm_benchmark_tolerance", float("nan"), "0.05 stands for 5 %"),
        ("vllm_report_outlier_tolerance", float("nan"), "at least 0"),
    ],
)
def test_wrong(variable: str, value: Any, says: str) -> None:
    (problem,) = verify_variables.problems({variable: value})
    assert problem.startswith(f"{variable}: ")
    assert says in problem


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("vllm_accuracy_floors", {}),
        ("vllm_accuracy_floors", {"any": {}, "bf16": {"my_task": {"acc,none": "0.7"}}}),
        ("vllm_accuracy_limit", "200"),
        ("vllm_accuracy_tasks", "gsm8k,mmlu"),
        ("vllm_benchmark_concurrency", []),
        ("vllm_benchmark_concurrency", "1, 8"),
        ("vllm_benchmark_concurrency", 8),
        ("vllm_benchmark_floors", {"output_throughput": "1e3"}),
        ("vllm_benchmark_tolerance", 0),
        ("vllm_unheard_of", object()),
    ],
)
def test_right(variable: str, value: Any) -> None:
    assert verify_variables.problems({variable: value}) == []


def test_every_variable_with_a_reader_is_documented_and_its_default_is_right() -> None:
    defaults = yaml.safe_load((ROLES / "vllm/defaults/main/verify.yml").read_text())
    assert verify_variables.READERS.keys() <= defaults.keys()
    assert verify_variables.problems(defaults) == []


def test_options_are_read_and_what_may_be_left_out_stays_out() -> None:
    params = {"floors": {"output_throughput": "2000"}, "runs": "2", "num_prompts": None, "url": "u"}
    assert verify_variables.options(params, "vllm_benchmark_") == {
        **params,
        "floors": {"output_throughput": 2000.0},
        "runs": 2,
    }


def test_every_option_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(GpufleetError) as raised:
        verify_variables.options({"floors": {"gsm8k": 1}, "timeout": 0, "tasks": []}, "vllm_accuracy_")
    assert raised.value.name == "invalid-wishes"
    found = [problem.split(":")[0] for problem in raised.value.details["problems"]]
    assert found == ["vllm_accuracy_floors", "vllm_accuracy_timeout", "vllm_accuracy_tasks"]
