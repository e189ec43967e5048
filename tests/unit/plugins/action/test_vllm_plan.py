# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin vllm_plan: variables in, plan and file out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.template import trust_as_template

from ansible_collections.gpufleet.vllm.plugins.action import vllm_plan
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import (
    KNOWN_VARIABLES,
    ROLES,
    documented_variables,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import wishes
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action import conftest

H200S = [{"name": "NVIDIA H200", "count": 8}]
RunAction = Callable[..., dict[str, Any]]


@pytest.fixture
def run_action(monkeypatch: pytest.MonkeyPatch) -> RunAction:
    """Run the action as a task would, with the names of an argument spec that is the test's own."""
    named = ("vllm_gpus", "vllm_accept_license", "vllm_port", "vllm_profile", "vllm_device", "vllm_moe_tables_dir")
    known = frozenset(named)
    monkeypatch.setattr(vllm_plan, "KNOWN_VARIABLES", known)

    def run(variables: dict[str, Any], check: bool = False, **arguments: Any) -> dict[str, Any]:
        return conftest.run_action(vllm_plan.ActionModule, arguments, variables, check=check, diff=True)[0]

    return run


def ready(**more: Any) -> dict[str, Any]:
    return {"inventory_hostname": "gpu-01", "vllm_accept_license": True, "vllm_gpus": H200S, **more}


def test_the_plan_is_a_result_and_no_fact_that_a_cache_would_keep(run_action: RunAction) -> None:
    result = run_action(ready())
    assert result["changed"] is False
    assert "ansible_facts" not in result
    assert len(result["plan"]["replicas"]) == 4
    assert result["summary"][1] == "vllm-0: TP 2 on GPU 0,1, http://127.0.0.1:8000"


def test_variables_are_templated(run_action: RunAction) -> None:
    result = run_action(ready(base=9000, vllm_port=trust_as_template("{{ base + 1 }}")))
    assert result["plan"]["replicas"][0]["port"] == 9001


def test_a_variable_that_cannot_be_templated_is_named(run_action: RunAction) -> None:
    result = run_action(ready(vllm_port=trust_as_template("{{ no_such_thing }}"), vllm_profile="x"))
    assert result["failed"] is True
    assert "vllm_port: cannot be templated" in result["msg"]
    assert "no_such_thing" in result["msg"]
    assert "vllm_profile: 'x' is not valid" in result["msg"]


def test_wishes_of_the_task_win(run_action: RunAction) -> None:
    result = run_action(ready(), wishes={"vllm_profile": "balanced"})
    assert result["plan"]["profile"] == "balanced"


def test_misspelt_variables_are_refused_with_the_nearest_name(run_action: RunAction) -> None:
    result = run_action(ready(vllm_profil="balanced"))
    assert result["failed"] is True
    assert "vllm_profil: unknown; did you mean vllm_profile?" in result["msg"]
    assert result["error"]["name"] == "invalid-wishes"


def test_a_near_miss_of_a_name_of_another_role_is_a_warning(
    run_action: RunAction, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KNOWN_VARIABLES
    monkeypatch.setattr(vllm_plan, "KNOWN_VARIABLES", known)
    for variables in (ready(router_prot=1), {"router_prot": 1}):
        result = run_action(variables, validate_only=True)
        assert "failed" not in result
        assert result["warnings"] == ["router_prot is no variable of this collection; did you mean router_port?"]
    assert "warnings" not in run_action(ready(docker_users=["me"], router_port=1))


def test_a_relative_path_on_the_controller_is_refused_and_others_variables_are_left_to_them(
    run_action: RunAction,
) -> None:
    result = run_action(ready(router_certificate="llm.pem", router_ca=trust_as_template("{{ no_such_thing }}")))
    assert result["error"]["details"]["problems"] == [
        "router_certificate: 'llm.pem' is not valid: it must be an absolute path on the controller, such as"
        ' "{{ inventory_dir }}/../files/llm.pem"'
    ]
    good = ready(inventory_dir="/fleet", router_certificate=trust_as_template("{{ inventory_dir }}/../files/llm.pem"))
    assert "plan" in run_action(good)


def test_validation_alone_plans_nothing(run_action: RunAction) -> None:
    result = run_action({"vllm_profile": "balanced"}, validate_only=True)
    assert result["changed"] is False
    assert "plan" not in result


def test_validation_alone_finds_problems(run_action: RunAction) -> None:
    assert run_action({"vllm_profile": "fast"}, validate_only=True)["failed"] is True


@pytest.mark.parametrize("validate_only", [True, False])
def test_gates_that_could_not_judge_are_refused_before_anything_is_planned(
    run_action: RunAction, validate_only: bool
) -> None:
    wrong = trust_as_template("{{ {'gsm8k': {'exact_match,strict-match': 0.9}} }}")
    variables = ready(vllm_accuracy_floors=wrong, vllm_benchmark_runs=0, vllm_profile="fast")
    result = run_action({**variables, "vllm_benchmark_floors": None}, validate_only=validate_only)
    found = {problem.split(":")[0] for problem in result["error"]["details"]["problems"]}
    assert found >= {"vllm_accuracy_floors", "vllm_benchmark_runs", "vllm_benchmark_floors", "vllm_profile"}


def test_a_refusal_is_a_failed_task_with_its_parts(run_action: RunAction) -> None:
    result = run_action(ready(vllm_gpus=[{"name": "NVIDIA H100 80GB HBM3"}]))
    assert result["failed"] is True
    assert result["error"]["name"] == "does-not-fit"
    assert result["error"]["details"]["gpus_needed"] == 2
    assert "Remedy: It needs 2 GPUs" in result["msg"]


def test_the_probes_are_read(run_action: RunAction) -> None:
    gpu = {
        "index": 0,
        "uuid": "GPU-a",
        "name": "NVIDIA H200",
        "compute_capability": "9.0",
        "memory_total_mib": 143771,
        "processes": [{"pid": 1, "name": "python3", "used_mib": 1, "container": "f" * 64}],
    }
    result = run_action(
        {"vllm_accept_license": True},
        gpu_info={"state": "ok", "gpus": [gpu], "driver_version": "580.1"},
        host_info={
            "system": {"architecture": "aarch64"},
            "engine": {"containers": [{"id": "f" * 64, "ours": True}, {"id": "e" * 64, "ours": False}]},
        },
    )
    assert result["plan"]["replicas"][0]["gpu_uuids"] == ["GPU-a"]
    assert result["plan"]["image"]["platform"] == "linux/arm64"


def test_a_sister_deployment_whose_prefix_begins_alike_keeps_its_gpu(run_action: RunAction) -> None:
    """vllm and vllm-small on one host: the second one's GPU is not free for the first."""
    ours, sisters = "f" * 64, "e" * 64

    def gpu(index: int, container: str) -> dict[str, Any]:
        return {
            "index": index,
            "uuid": f"GPU-{index}",
            "name": "NVIDIA H200",
            "compute_capability": "9.0",
            "memory_total_mib": 143771,
            "processes": [{"pid": index + 1, "name": "python3", "used_mib": 60000, "container": container}],
        }

    containers = [
        {"id": ours, "ours": True, "state": "running", "name": "vllm-0"},
        {"id": sisters, "ours": True, "state": "running", "name": "vllm-small-0"},
    ]
    result = run_action(
        {"vllm_accept_license": True},
        gpu_info={"state": "ok", "gpus": [gpu(0, ours), gpu(1, sisters)], "driver_version": "580.1"},
        host_info={"system": {"architecture": "x86_64"}, "engine": {"containers": containers}},
    )
    assert [replica["gpus"] for replica in result["plan"]["replicas"]] == [[0]]
    assert any("GPU 1 left out: in use by python3" in warning for warning in result["plan"]["warnings"])


def test_what_the_task_says_of_the_host_wins(run_action: RunAction) -> None:
    result = run_action(
        {"vllm_device": "cpu", "ansible_facts": {"architecture": "x86_64", "memtotal_mb": 64000}},
        host={"architecture": "aarch64"},
    )
    assert result["plan"]["image"]["platform"] == "linux/arm64"
    assert result["plan"]["capacity"]["kv_cache_tokens"] > 0


def test_no_gpu_is_never_silently_the_cpu(run_action: RunAction) -> None:
    result = run_action(
        {"vllm_accept_license": True},
        gpu_info={"state": "no-driver", "reason": "No driver is loaded.", "remedy": "Load it."},
    )
    assert result["failed"] is True
    assert result["error"]["name"] == "no-gpu"
    assert "No driver is loaded." in result["msg"]
    assert "Load it." in result["msg"]
    assert "vllm_device: cpu" in result["msg"]


def test_the_file_is_written_once(run_action: RunAction, tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    first = run_action(ready(), plan_dir=str(folder))
    assert first["changed"] is True
    assert first["plan_file"] == str(folder / "gpu-01.json")
    assert json.loads((folder / "gpu-01.json").read_text()) == first["plan"]
    assert first["diff"][0]["before"] == ""
    again = run_action(ready(), plan_dir=str(folder))
    assert again["changed"] is False
    assert "diff" not in again
    assert [path.name for path in folder.iterdir()] == ["gpu-01.json"]


def test_check_mode_writes_nothing(run_action: RunAction, tmp_path: Path) -> None:
    result = run_action(ready(), check=True, plan_dir=str(tmp_path / "plans"))
    assert result["changed"] is True
    assert not (tmp_path / "plans").exists()


def test_a_folder_that_cannot_be_written_is_named(run_action: RunAction, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_action(ready(), plan_dir=str(tmp_path / "file" / "plans"))
    assert result["failed"] is True
    assert result["error"]["name"] == "plan-not-written"
    assert "vllm_plan_dir" in result["msg"]


def test_the_names_come_from_every_entry_point(tmp_path: Path) -> None:
    for role, text in (
        ("one", "argument_specs: {main: {options: {vllm_a: {type: str}}}, other: {options: {vllm_b: {type: int}}}}"),
        ("two", "argument_specs: {main: {short_description: nothing}}"),
        ("three", ""),
    ):
        meta = tmp_path / role / "meta"
        meta.mkdir(parents=True)
        (meta / "argument_specs.yml").write_text(text)
    assert documented_variables(tmp_path) == {"vllm_a", "vllm_b"}


def test_every_wish_is_documented() -> None:
    assert {variable for variable, _reader in wishes.READERS.values()} <= KNOWN_VARIABLES


def test_the_documented_defaults_are_valid_wishes() -> None:
    specs = yaml.safe_load((ROLES / "vllm" / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    defaults = {
        name: option["default"]
        for entry_point in specs.values()
        for name, option in (entry_point.get("options") or {}).items()
        if "default" in option and "{{" not in str(option["default"])
    }
    assert wishes.read(defaults) == wishes.Wishes()


def test_tuned_tables_come_from_the_controllers_folder(run_action: RunAction, tmp_path: Path) -> None:
    name = "E=16,N=4096,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8"
    (tmp_path / f"{name}.json").write_text('{"1": {}}')
    (tmp_path / f"{name}.provenance.json").write_text('{"cards": ["NVIDIA H100 80GB HBM3"], "vllm": "0.26.0"}')
    gpus = [{"name": "NVIDIA H100 80GB HBM3", "count": 2}]
    result = run_action(ready(vllm_gpus=gpus, vllm_moe_tables_dir=str(tmp_path)))
    assert result["plan"]["moe_tables"]["files"] == {f"{name}.json": '{"1": {}}'}


def test_a_folder_of_tables_that_is_not_there_is_named(run_action: RunAction, tmp_path: Path) -> None:
    result = run_action(ready(vllm_moe_tables_dir=str(tmp_path / "none")))
    assert result["failed"] is True
    assert result["error"]["name"] == "no-moe-tables"
    assert "vllm_moe_tables_dir" in result["msg"]
