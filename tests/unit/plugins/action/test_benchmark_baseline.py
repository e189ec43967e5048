# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the action of vllm_benchmark stores a benchmark on the controller and compares a later one with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.gpufleet.vllm.plugins.action import vllm_benchmark
from ansible_collections.gpufleet.vllm.plugins.action.vllm_benchmark import compared
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import baseline
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import prepared_host
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.verification import verify_targets
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

ROLES = Path(__file__).resolve().parents[4] / "roles"

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
    assert result["baseline"]["why"].startswith("none is stored for these GPUs") and not result.get("warnings")
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


def test_a_curve_at_other_loads_is_not_compared_and_that_is_said(tmp_path: Path) -> None:
    compare(RESULT, tmp_path, save=True)
    curve = copy.deepcopy(RESULT)
    curve["points"] = [{**RESULT["points"][0], "concurrency": 1}, {**RESULT["points"][0], "concurrency": 32}]
    result = compare(curve, tmp_path)
    assert not result.get("failed") and not result["baseline"]["found"]
    assert "it has concurrency 8, measured was 1, 32" in result["warnings"][0]
    assert result["baseline"]["why"] == result["warnings"][0]


def test_equal_servers_are_stored_side_by_side_and_their_median_counts(tmp_path: Path) -> None:
    for number, share in enumerate((1.0, 1.02, 0.98, 0.2)):
        own = {**slower(share), "name": f"vllm-{number}"}
        compared(own, str(tmp_path), save=True, tolerance=0.05, standard_errors=2, host="gpu-1")
    result = compare(slower(0.9), tmp_path)
    assert (result["failed"], result["baseline"]["servers"]) == (True, 4)
    assert "baseline 455.4: 9.1 % worse" in result["msg"]


def test_another_driver_is_not_compared(tmp_path: Path) -> None:
    compare(RESULT, tmp_path, save=True)
    other = slower(0.1)
    other["comparable"]["hardware"]["driver"] = "590.1"
    assert not compare(other, tmp_path)["baseline"]["found"]


def test_a_failed_benchmark_is_not_stored(tmp_path: Path) -> None:
    failed_gate = {**RESULT["gates"][0], "passed": False}
    result = compare({**RESULT, "gates": [failed_gate], "failed": True, "msg": "m"}, tmp_path, save=True)
    assert result["failed"] and result["baseline"]["saved"] == ""
    assert "a gate of this measurement failed" in result["baseline"]["why"]
    assert result["baseline"]["why"] in result["warnings"]
    assert baseline.load(str(tmp_path), result["baseline"]["key"]) is None


# Compared with what served before


BEFORE, AFTER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
PLAN = {
    "profile": "recipe",
    "precision": "fp8",
    "vllm_version": "0.12.0",
    "tensor_parallel_size": 1,
    "config": {"max-num-seqs": 256, "kv-cache-dtype": "fp8"},
    "environment": {"VLLM_USE_FLASHINFER_MOE_FP8": "1"},
}
NEW_PLAN = {**PLAN, "vllm_version": "0.26.0", "config": {"max-num-seqs": 128, "kv-cache-dtype": "fp8"}}


def measured(throughput: float = 460.0, *, image_id: str = AFTER, **parts: Any) -> dict[str, Any]:
    """Return what the module measured of a server with this image; C(parts) replace those of what is comparable."""
    comparable = {
        "hardware": {"gpus": ["NVIDIA H200"], "driver": "580.159.04"},
        "image_id": image_id,
        "model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8",
        "plan": PLAN if image_id == BEFORE else NEW_PLAN,
        "load": {"input_len": 1024, "output_len": 1024, "num_prompts": None, "goodput": {}, "extra_args": []},
        **parts,
    }
    summary = {"output_throughput": {"mean": throughput, "std": 0.0}}
    points = [{"concurrency": 8, "runs": [{}], "summary": summary}]
    return {**RESULT, "changed": False, "comparable": comparable, "points": points}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the task with what the module would measure on a host, which has the GPUs; return the task's result."""

    def run(result: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        monkeypatch.setattr(LongTaskAction, "run", lambda *_arguments: copy.deepcopy(result))
        return run_action(vllm_benchmark.ActionModule, {"baseline_dir": str(tmp_path), **arguments})[0]

    return run


def test_what_serves_now_is_held_against_what_served_before(benchmark: Callable[..., dict[str, Any]]) -> None:
    stored = benchmark(measured(460.0, image_id=BEFORE), save_baseline=True)["baseline"]
    result = benchmark(measured(400.0), baseline_for={"image_id": BEFORE, "plan": PLAN})
    assert (result["baseline"]["found"], result["baseline"]["key"]) == (True, stored["key"])
    assert (result["failed"], result["error"]["name"]) == (True, "gates-failed")
    assert "output_throughput = 400 at concurrency 8, baseline 460: 13.0 % worse" in result["msg"]
    told = benchmark(measured(400.0), baseline_for={"image_id": BEFORE, "plan": PLAN}, fail_on_gates=False)
    assert (told.get("failed"), told["passed"]) == (None, False)
    assert benchmark(measured(450.0), baseline_for={"image_id": BEFORE, "plan": PLAN})["passed"]
    assert not benchmark(measured(1.0))["baseline"]["found"], "of its own kind none is stored"


def test_of_several_the_one_that_it_replaces_is_taken(benchmark: Callable[..., dict[str, Any]]) -> None:
    benchmark(measured(460.0, image_id=BEFORE), save_baseline=True)
    benchmark(measured(500.0), save_baseline=True)
    benchmark(measured(900.0, image_id="sha256:" + "3" * 64), save_baseline=True)
    before = benchmark(measured(450.0), baseline_for={"image_id": BEFORE, "plan": PLAN})
    own = benchmark(measured(450.0), baseline_for={})
    assert ["baseline 460" in before["gates"][-1]["text"], "baseline 500" in own["gates"][-1]["text"]] == [True, True]
    assert (before["passed"], own["passed"]) == (True, False)


@pytest.mark.parametrize(
    ("differs", "instead"),
    [
        ({"hardware": {"gpus": ["NVIDIA H200"], "driver": "590.48.01"}}, {}),
        ({"hardware": {"gpus": ["NVIDIA H200"] * 2, "driver": "580.159.04"}}, {}),
        ({"model": "another"}, {}),
        ({"load": {"input_len": 2048, "output_len": 1024, "num_prompts": None, "goodput": {}, "extra_args": []}}, {}),
        ({}, {"image_id": "sha256:" + "3" * 64}),
        ({}, {"plan": {**PLAN, "config": {**PLAN["config"], "max-num-seqs": 512}}}),  # type: ignore[dict-item]
        ({}, {"plan": {**PLAN, "environment": {}}}),
        ({}, {"image_id": "", "plan": {}}),  # nothing is known of what served before
    ],
    ids=["driver", "gpus", "model", "load", "digest", "arguments", "environment", "unknown"],
)
def test_what_is_not_alike_is_not_compared(
    benchmark: Callable[..., dict[str, Any]], differs: dict[str, Any], instead: dict[str, Any]
) -> None:
    benchmark(measured(460.0, image_id=BEFORE), save_baseline=True)
    result = benchmark(measured(1.0, **differs), baseline_for={"image_id": BEFORE, "plan": PLAN, **instead})
    assert not result["baseline"]["found"]
    assert (result.get("failed"), result["gates"]) == (None, RESULT["gates"])


def at(concurrency: int, throughput: float) -> list[dict[str, Any]]:
    return [
        {"concurrency": concurrency, "runs": [{}], "summary": {"output_throughput": {"mean": throughput, "std": 0.0}}}
    ]


def test_a_canary_with_other_slots_than_before_is_never_passed_uncompared(
    benchmark: Callable[..., dict[str, Any]],
) -> None:
    benchmark({**measured(image_id=BEFORE), "points": at(256, 2000)}, save_baseline=True)
    result = benchmark({**measured(), "points": at(128, 10)}, baseline_for={"image_id": BEFORE, "plan": PLAN})
    assert (result["failed"], result["baseline"]["found"]) == (True, True)
    assert "set vllm_benchmark_concurrency: [256]" in result["msg"]


@pytest.mark.parametrize(("follow", "told"), [(True, [[8]]), (False, None)])
def test_the_module_is_told_at_which_concurrencies_the_stored_benchmarks_were_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, follow: bool, told: list[list[int]] | None
) -> None:
    compare(RESULT, tmp_path, save=True)
    given: list[dict[str, Any]] = []

    def module(action: Any, *_arguments: Any) -> dict[str, Any]:
        given.append(action._task.args)
        return {"failed": True}

    monkeypatch.setattr(LongTaskAction, "run", module)
    run_action(vllm_benchmark.ActionModule, {"baseline_dir": str(tmp_path), "follow_baseline": follow})
    stored = given[0].get("stored_concurrency")
    assert (stored if stored is None else list(stored.values())) == told


@pytest.mark.parametrize(
    ("wished", "concurrency", "follows"), [([], [128], True), ([1, 8], [1, 8], False), (4, 4, False)]
)
def test_the_baseline_chooses_the_concurrency_where_the_user_does_not(
    wished: Any, concurrency: Any, follows: bool
) -> None:
    (task, *_others) = yaml.safe_load((ROLES / "verify/tasks/performance.yml").read_text())
    arguments = task["gpufleet.vllm.vllm_benchmark"]
    own = {"vllm_benchmark_concurrency": wished, "__verify_target": {"concurrency": [128]}}
    assert templated(arguments["concurrency"], **own) == concurrency
    assert templated(arguments["follow_baseline"], **own) is follows


def test_it_is_stored_under_its_own_key(benchmark: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    result = benchmark(measured(), baseline_for={"image_id": BEFORE, "plan": PLAN}, save_baseline=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"{baseline.key_of(measured()['comparable'])}.json"]
    assert result["baseline"]["saved"].startswith(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1', '{"schema_version": 99, "points": []}'])
def test_a_broken_baseline_fails_the_task_and_is_named(
    benchmark: Callable[..., dict[str, Any]], tmp_path: Path, text: str
) -> None:
    saved = Path(benchmark(measured(image_id=BEFORE), save_baseline=True)["baseline"]["saved"])
    saved.write_text(text)
    result = benchmark(measured(), baseline_for={"image_id": BEFORE, "plan": PLAN})
    assert (result["failed"], result["error"]["name"]) == (True, "baseline-unreadable")
    assert str(saved) in result["msg"] and "save_baseline" in result["error"]["remedy"]
    assert result["points"], "what was measured is not lost"
    assert not benchmark(measured())["baseline"]["found"], "one of another kind is none of its business"


def test_an_upgrade_asks_for_what_the_verification_before_it_stored() -> None:
    """The two roles write the same parts of what is comparable, from what vllm_server_info tells."""
    replica = {
        "name": "vllm-0",
        "host": "127.0.0.1",
        "port": 8000,
        "tensor_parallel_size": 2,
        "config": {"host": "127.0.0.1", "port": 8000, "max-num-seqs": 256, "async-scheduling": True},
        "environment": {"VLLM_USE_FLASHINFER_MOE_FP8": "1"},
    }
    plan = {"profile": "recipe", "precision": "fp8", "image": {"vllm_version": "0.12.0"}, "replicas": [replica]}
    served = {"id": "a", "current": True, "image": {"id": BEFORE}}
    info = {"plan": plan, "deployments": [{"id": "b", "current": False}, served]}
    known: dict[str, Any] = {"url": "", "model": "", "environment": {}, "gpu_info": {}}
    (target,) = verify_targets.targets(plan, **known)
    stored, wanted = target["plan"], prepared_host.served_before(info)["baseline_for"]
    assert stored["config"] == {"max-num-seqs": 256, "async-scheduling": True}
    assert wanted == {"image_id": BEFORE, "plan": stored}
    assert baseline.key_of(wanted) == baseline.key_of({"image_id": BEFORE, "plan": stored})


def trusted(value: Any) -> Any:
    """Return what a role's file holds as Ansible does, which templates its texts."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    return trust_as_template(value) if isinstance(value, str) else value


def templated(value: Any, **variables: Any) -> Any:
    """Return a value of a role's file, templated and as plain data."""
    found = Templar(loader=DataLoader(), variables=variables).template(trusted(value))
    return json.loads(json.dumps(found))
