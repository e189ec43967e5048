# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the preparation of an upgrade keeps of a host: a real run of its last tasks, on a host that is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gpufleet.vllm.tests.plays.wired import PLAN, REPLICA, RESULTS, ROOT, log_of, play

FIRST = "What runs now"


def test_what_would_change_and_what_it_is_held_against(tmp_path: Path) -> None:
    (block,) = yaml.safe_load((ROOT / "roles" / "rollout" / "tasks" / "main.yml").read_text(encoding="utf-8"))
    names = [task["name"] for task in block["block"]]
    show: dict[str, Any] = {
        "ansible.builtin.copy": {"content": "{{ kept | to_json }}", "dest": f"{tmp_path}/kept.json", "mode": "0600"},
        "vars": {"kept": ["{{ __rollout_prepared }}", "{{ __rollout_served_before | default({}) }}"]},
        "delegate_to": "localhost",
        "changed_when": False,
    }
    preparation = {
        "hosts": "gpu-01",
        "gather_facts": False,
        "vars": yaml.safe_load((ROOT / "roles" / "rollout" / "vars" / "main.yml").read_text(encoding="utf-8")),
        # For the defaults of the role vllm, in a play that names no entry point.
        "roles": ["gpufleet.vllm.vllm"],
        "post_tasks": [{**block, "block": block["block"][names.index(FIRST) :]}, show],
    }
    (tmp_path / "plays.yml").write_text(yaml.safe_dump([preparation]), encoding="utf-8")
    common = {
        "ansible_connection": "wire",
        "ansible_python_interpreter": sys.executable,
        "vllm_venv": sys.prefix,
        "vllm_accept_license": True,
        "vllm_plan": {**PLAN, "precision": "fp8"},
        "vllm_rollout_state_dir": str(tmp_path / "state"),
        "vllm_accuracy_tasks": ["gsm8k"],
        "vllm_accuracy_floors": {"fp8": {"gsm8k": {"exact_match,strict-match": 0.9}}},
        "vllm_benchmark_ceilings": {"median_ttft_ms": 500},
    }
    hosts = {"gpu-01": {}, "localhost": {"ansible_connection": "local"}}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}), encoding="utf-8")
    served = {"id": "20261122-165501", "current": True, "image": {"id": "sha256:1"}}
    replaced = {"name": "vllm-0", "action": "replaced", "why": ["image: a -> b"], "ready_s": 0.0}
    results = {
        **RESULTS,
        "vllm_server": {"changed": True, "replicas": [replaced], "removed": ["vllm-1"]},
        "vllm_server_info": {"plan": PLAN, "servers": [{"phase": "serving"}], "deployments": [served]},
    }
    (tmp_path / "wire.json").write_text(json.dumps({"results": results, "breaks": {}}), encoding="utf-8")
    run = play(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    prepared, before = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    assert prepared.get("error") is None, run.stdout
    assert (prepared["changes"], prepared["serves"]) == (["image: a -> b", "vllm-1"], True)
    assert (prepared["gates"]["floors"], prepared["gates"]["limits"]) == (["gsm8k"], ["median_ttft_ms"])
    assert before["deployment"] == "20261122-165501"
    assert before["baseline_for"] == prepared["gates"]["baseline_for"]
    assert before["baseline_for"]["plan"]["environment"] == REPLICA["environment"]
    (rehearsal,) = [json.loads(line[2]) for line in log_of(tmp_path) if line[1] == "vllm_server"]
    assert (rehearsal["_ansible_check_mode"], rehearsal["image"]) == (True, "r:1")
    assert "changed=0" in run.stdout.rpartition("gpu-01")[2], "a rehearsal changes nothing"
