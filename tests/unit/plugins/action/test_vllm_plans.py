# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin vllm_plans: every host by its own variables, in one task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.template import trust_as_template

from ansible_collections.gpufleet.vllm.plugins.action import vllm_plan, vllm_plans
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.fleet_plans import Fleet
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import wishes
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

READY = {"vllm_accept_license": True}
B200 = {**READY, "vllm_gpus": [{"name": "NVIDIA B200", "count": 8}]}
PROBED_GPU = {
    "index": 0,
    "uuid": "GPU-0",
    "name": "NVIDIA H200",
    "compute_capability": "9.0",
    "memory_total_mib": 143771,
    "memory_reserved_mib": 612,
    "peers": [],
    "processes": [],
}
PROBED = {**READY, "__preflight_gpu_info": {"state": "ok", "gpus": [PROBED_GPU], "driver_version": "580.95.05"}}


class HostVars(dict[str, dict[str, Any]]):
    """As Ansible's: each host's own variables, untemplated."""

    def raw_get(self, name: str) -> dict[str, Any]:
        return {"inventory_hostname": name, **self[name]}


def run(
    hosts: dict[str, dict[str, Any]], *, check: bool = False, diff: bool = False, **more: Any
) -> tuple[dict[str, Any], MagicMock]:
    variables = {"hostvars": HostVars(hosts)}
    return run_action(vllm_plans.ActionModule, {"hosts": list(hosts), **more}, variables, check=check, diff=diff)


def test_it_prints_the_table_and_keeps_the_reasons_for_v() -> None:
    result, display = run({"a1": B200, "a2": B200, "b": {**READY, "vllm_gpus": [{"name": "X9"}]}})
    printed = display.display.call_args.args[0]
    assert result["changed"] is False
    assert printed == "\n".join(result["table"])
    assert "a[1:2]" in printed
    assert "b: " in printed
    assert "vllm_gpus" in result["refused"]["b"]
    assert "precision = fp4" not in printed
    assert "precision = fp4" in display.v.call_args.args[0]


def test_each_host_is_planned_by_its_own_variables() -> None:
    hosts = {
        "a": {**B200, "base": 9000, "vllm_port": trust_as_template("{{ base + 1 }}")},
        "b": {**B200, "vllm_state_dir": "/data", "vllm_hf_home": trust_as_template("{{ vllm_state_dir }}/hf")},
        "c": PROBED,
    }
    fleet = Fleet(MagicMock(load_from_file=lambda *args, **kwargs: {}), {"hostvars": HostVars(hosts)})
    assert fleet.plan("a")["replicas"][0]["port"] == 9001
    assert fleet.plan("b")["hardware"] == "8 x NVIDIA B200"
    assert fleet.plan("c")["hardware"] == "1 x NVIDIA H200"


@pytest.mark.parametrize("variables", [B200, PROBED, {**B200, "vllm_profile": "recipe", "vllm_port": 9000}])
def test_the_plan_is_that_of_a_task_for_the_host_alone(variables: dict[str, Any], tmp_path: Path) -> None:
    run({"a": {**variables, "vllm_plan_dir": str(tmp_path)}})
    arguments = {"gpu_info": variables.get("__preflight_gpu_info") or {}}
    alone, _display = run_action(vllm_plan.ActionModule, arguments, {"inventory_hostname": "a", **variables})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == alone["plan"]


def test_a_default_of_the_role_may_be_used_in_a_template() -> None:
    """As in a task of the role, of which these are the defaults."""
    result, _display = run({"a": {**B200, "vllm_served_model_name": trust_as_template("m{{ vllm_port }}")}})
    assert "m8000" in result["table"][2]


def test_the_roles_defaults_are_the_planners() -> None:
    """A host's own variables alone are read, so what it leaves to the defaults must not matter."""
    result, _display = run({"a": B200})
    assert result["refused"] == {}
    assert "balanced" in wishes.Wishes().profile


def test_misspelt_variables_refuse_their_host_alone() -> None:
    result, _display = run({"a": {**B200, "vllm_profil": "balanced"}, "b": B200})
    assert "did you mean vllm_profile?" in result["refused"]["a"]
    assert list(result["refused"]) == ["a"]


def test_it_says_who_has_to_be_probed() -> None:
    hosts: dict[str, dict[str, Any]] = {
        "a": B200,
        "b": READY,
        "c": {"vllm_gpus": trust_as_template("{{ [] }}")},
        "d": {"vllm_gpus": []},
    }
    result, _display = run(hosts, look_only=True)
    assert result["probe"] == ["b", "c", "d"]


def test_a_host_that_was_not_probed_is_refused() -> None:
    result, _display = run({"a": READY})
    assert "No NVIDIA GPU" in result["refused"]["a"]


def test_a_dry_run_leaves_out_hosts_that_it_could_not_probe() -> None:
    skipped = {**READY, "__preflight_gpu_info": {"skipped": True, "changed": False}}
    result, _display = run({"a": READY, "b": B200, "c": skipped}, check=True)
    assert result["refused"] == {}
    assert result["table"][0].startswith("1 host")


def test_plans_are_written_once(tmp_path: Path) -> None:
    hosts = {name: {**B200, "vllm_plan_dir": str(tmp_path / "plans")} for name in ("a", "b")}
    dry, _display = run(hosts, check=True, diff=True)
    assert dry["changed"] is True
    assert len(dry["diff"]) == 2
    assert not (tmp_path / "plans").exists()
    first, _display = run(hosts)
    assert first["changed"] is True
    assert [Path(path).name for path in first["plan_files"]] == ["a.json", "b.json"]
    again, _display = run(hosts)
    assert again["changed"] is False


def test_it_says_whether_the_hosts_hold_the_requests_that_are_wanted() -> None:
    wanted = {**B200, "vllm_target_requests": "2000", "vllm_max_unavailable": 1}  # text, as -e gives it
    result, display = run({"a1": wanted, "a2": wanted, "b": {**READY, "vllm_gpus": [{"name": "X9"}]}})
    [capacity] = result["capacity"]
    held = capacity["kinds"][0]["holds"]
    assert (capacity["target_requests"], capacity["hosts"], capacity["without_plan"]) == (2000, 2, 1)
    assert capacity["holds"] == 2 * held
    assert capacity["enough"] is (2 * held >= 2000)
    assert "2,000 requests at once (vllm_target_requests)" in display.display.call_args.args[0]
    assert run({"a1": B200})[0]["capacity"] == []


def test_a_number_of_requests_that_is_none_refuses_its_host() -> None:
    result, _display = run({"a": {**B200, "vllm_target_requests": "many"}, "b": B200})
    assert "vllm_target_requests: 'many' is not valid" in result["refused"]["a"]
    assert list(result["refused"]) == ["a"]
