# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What serves is what is written down: plan.json beside servers that fail, are killed, come back and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import requests

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONTROL_PATH
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.applied_plan import AppliedPlan
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.history import History
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replacement import Replacement
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replica_files import ReplicaFiles
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.stopping import Stopping
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import Fleet
from ansible_collections.gpufleet.vllm.tests.plays.wired import COLLECTIONS

OLD, NEW = {"max_num_seqs": 4}, {"max_num_seqs": 8}
FAILS = {"max_num_seqs": 16, "max_model_len": 10485760}  # the stand-in ends with vLLM's own message


class KilledError(BaseException):
    """Stands for kill -9."""


def deploy(fleet: Fleet, *configs: dict[str, Any], text: str = "", **options: Any) -> dict[str, Any]:
    """Run a plan with a replica of each configuration, as the role does."""
    replicas = [fleet.replica(number, **config) for number, config in enumerate(configs)]
    plan = {"schema_version": 1, "image": {"reference": f"of {configs}"}, "replicas": replicas, "warnings": [text]}
    return fleet.run(*replicas, plan=plan, check_config=False, **options)


def written(fleet: Fleet) -> list[Any]:
    """Return the batch sizes of the replicas in plan.json; none without the file."""
    path = fleet.config_dir / "plan.json"
    return sizes(json.loads(path.read_text())) if path.exists() else []


def sizes(plan: Any) -> list[Any]:
    return [replica["config"].get("max-num-seqs") for replica in plan.get("replicas") or []]


def serving(fleet: Fleet) -> list[Any]:
    """Return the batch sizes of the servers that answer."""
    found = []
    for number, port in enumerate(fleet.ports):
        try:
            answers = requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
        except requests.exceptions.RequestException:
            continue
        if answers:
            name = f"{fleet.prefix}-{number}"
            container = fleet.engine.containers.get(name if name in fleet.names() else f"{name}-previous")
            found.append(json.loads(container.labels["io.gpufleet.spec"])["config"].get("max-num-seqs"))
    return found


def test_a_first_deployment_that_fails_leaves_no_plan(fleet: Fleet) -> None:
    foretold = deploy(fleet, OLD, check=True)
    assert '"max-num-seqs": 4' in foretold["diff"][-1]["after"]
    assert foretold["diff"][-1]["after_header"] == str(fleet.config_dir / "plan.json")
    assert (written(fleet), deploy(fleet, FAILS)["failed"], written(fleet)) == ([], True, [])
    assert (fleet.info()["plan"], [entry["outcome"] for entry in fleet.info()["deployments"]]) == ({}, ["failed"])
    done = deploy(fleet, OLD)
    assert (done["diff"][-1], written(fleet)) == (foretold["diff"][-1], [4])
    again = deploy(fleet, OLD)
    assert (again["changed"], again["diff"]) == (False, [])
    assert not (fleet.config_dir / "plan.unfinished.json").exists()


def test_a_deployment_that_fails_changes_nothing_that_is_read(fleet: Fleet) -> None:
    deploy(fleet, OLD)
    text, plan = (fleet.config_dir / "plan.json").read_text(), fleet.info()["plan"]
    assert deploy(fleet, FAILS)["error"]["details"]["restored"] is True
    assert ((fleet.config_dir / "plan.json").read_text(), fleet.info()["plan"]) == (text, plan)
    (failed, ready) = sorted((fleet.config_dir / "history").iterdir(), reverse=True)
    assert sizes(json.loads(failed.read_text())["plan"]) == [16]
    assert sizes(json.loads(ready.read_text())["plan"]) == [4]
    again = deploy(fleet, OLD)
    assert (again["changed"], serving(fleet)) == (False, [4])


def test_texts_that_change_are_written_and_no_reason_to_take_a_host_out(fleet: Fleet) -> None:
    deploy(fleet, OLD)
    container = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    foretold = deploy(fleet, OLD, text="a disk is nearly full", check=True)
    assert (foretold["changed"], foretold["would_change"]) == (True, False)
    assert "nearly full" not in (fleet.config_dir / "plan.json").read_text()
    done = deploy(fleet, OLD, text="a disk is nearly full")
    assert (done["changed"], done["diff"]) == (True, foretold["diff"])
    assert "nearly full" in (fleet.config_dir / "plan.json").read_text()
    assert fleet.engine.containers.get(f"{fleet.prefix}-0").id == container
    assert deploy(fleet, OLD, text="a disk is nearly full")["changed"] is False


def test_replicas_are_written_down_one_by_one(fleet: Fleet) -> None:
    deploy(fleet, OLD, OLD)
    before = fleet.info()["plan"]["image"]
    failed = deploy(fleet, NEW, FAILS)
    assert (failed["failed"], serving(fleet), written(fleet)) == (True, [8, 4], [8, 4])
    assert fleet.info()["plan"]["image"] == before
    # One less, which goes after the others serve.
    deploy(fleet, NEW)
    assert (serving(fleet), written(fleet)) == ([8], [8])
    # Of new ones that start together, those that are ready stay.
    deploy(fleet, NEW, {"max_num_seqs": 2}, FAILS)
    assert sorted(written(fleet)) == sorted(serving(fleet))


KILLED = [
    (AppliedPlan, "begin"),
    (Replacement, "_create_next"),
    (Replacement, "_exchange"),
    (Stopping, "drain"),
    (Replacement, "_set_aside"),
    (Stopping, "stop"),
    (Replacement, "_start"),
    (OwnContainers, "watch"),
    (Replacement, "_wait"),
    (AppliedPlan, "answered"),
    (Replacement, "_keep_running"),
    (OwnContainers, "remove"),
    (AppliedPlan, "complete"),
    (ReplicaFiles, "tidy"),
    (History, "note_ready"),
]


@pytest.mark.parametrize(("part", "step"), KILLED, ids=lambda value: getattr(value, "__name__", value))
def test_a_run_that_is_killed_leaves_the_plan_of_what_serves(
    part: type, step: str, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_arguments: object, **_options: object) -> None:
        raise KilledError

    deploy(fleet, OLD)
    with monkeypatch.context() as patched:
        patched.setattr(part, step, die)
        with pytest.raises(KilledError):
            deploy(fleet, NEW)
    # What a run has seen answer; of the rest the containers tell, once a server of it has come up by itself.
    seen = [8] if KILLED.index((part, step)) > KILLED.index((AppliedPlan, "answered")) else [4]
    assert written(fleet) == seen
    if f"{fleet.prefix}-0" in fleet.names() and fleet.engine.containers.get(f"{fleet.prefix}-0").status == "running":
        until(lambda: bool(serving(fleet)), 15, 0.2)
    assert sizes(fleet.info()["plan"]) == (serving(fleet) or [4])
    assert written(fleet) == seen
    # The next one fails, so what served goes on and is what is written down.
    deploy(fleet, FAILS)
    assert written(fleet) == serving(fleet) == sizes(fleet.info()["plan"])
    deploy(fleet, NEW)
    assert written(fleet) == serving(fleet) == [8]
    assert (deploy(fleet, NEW)["changed"], (fleet.config_dir / "plan.unfinished.json").exists()) == (False, False)


def test_a_host_of_the_version_before_has_the_plan_that_was_tried(fleet: Fleet) -> None:
    deploy(fleet, OLD)
    path = fleet.config_dir / "plan.json"
    text = path.read_text()
    path.write_text(text.replace('"max-num-seqs": 4', '"max-num-seqs": 16'))
    assert (deploy(fleet, OLD)["changed"], path.read_text()) == (True, text)


def test_going_back_and_going_away(fleet: Fleet) -> None:
    first = deploy(fleet, OLD)["recorded"]
    deploy(fleet, NEW)
    options: dict[str, Any] = {"state": "rolled_back", "image": None, "model_source": None, "check_config": False}
    foretold = fleet.run(check=True, **options)
    assert (foretold["would_change"], written(fleet)) == (True, [8])
    assert any('"max-num-seqs": 4' in diff["after"] for diff in foretold["diff"] if "plan.json" in diff["after_header"])
    # Back to one of which the weights are damaged: nothing changes.
    weights = fleet.model / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"")
    assert (fleet.run(**options)["failed"], written(fleet), serving(fleet)) == (True, [8], [8])
    weights.write_bytes(kept)
    assert (fleet.run(**options)["rolled_back_to"], written(fleet), serving(fleet)) == (first, [4], [4])
    deploy(fleet, OLD, NEW)
    one = fleet.run({"name": f"{fleet.prefix}-1", "config": {}}, state="absent")
    assert (one["changed"], written(fleet)) == (True, [4])
    dry = fleet.run(check=True, state="absent")
    gone = fleet.run(state="absent")
    assert str(fleet.config_dir / "plan.json") in gone["removed_paths"]
    assert (dry["removed_paths"], written(fleet), fleet.info()["plan"]) == (gone["removed_paths"], [], {})
    assert fleet.run(state="absent")["changed"] is False


def test_time_outs_replace_no_server(fleet: Fleet) -> None:
    deploy(fleet, {**OLD, "shutdown_timeout": 60})
    container = str(fleet.engine.containers.get(f"{fleet.prefix}-0").id)
    watchdog = fleet.config_dir / "control" / f"{fleet.prefix}-0" / "watchdog"
    others: dict[str, Any] = {
        "drain_timeout": 7,
        "vram_timeout": 7,
        "ready_timeout": 70,
        "stall_timeout": 70,
        "watchdog_timeout": 70,
        "phase_timeouts": {"weights": 70},
    }
    assert watchdog.read_text() == "300\n"
    for config in ({**OLD, "shutdown_timeout": 600}, OLD):
        foretold = deploy(fleet, config, check=True, **others)
        done = deploy(fleet, config, **others)
        assert [foretold["replicas"][0]["action"], done["replicas"][0]["action"]] == ["none", "none"]
        assert (foretold["would_change"], done["recorded"]) == (False, "")
        assert deploy(fleet, config, **others)["changed"] is False
    assert fleet.engine.containers.get(f"{fleet.prefix}-0").id == container
    # One that can follow does, through its control folder.
    look = ["/bin/sh", "-c", f"read seconds < {CONTROL_PATH}/watchdog; echo $seconds"]
    seen = fleet.engine.containers.get(container).exec_run(look)
    assert (watchdog.read_text(), seen.output) == ("70\n", b"70\n")


ROLES_AT_WORK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: gpufleet.vllm.vllm, tasks_from: config}
    - ansible.builtin.include_role: {name: gpufleet.vllm.vllm, tasks_from: server}
"""
ROUTER_ASKS = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: gpufleet.vllm.router, tasks_from: collect_replicas}
    - ansible.builtin.copy:
        content: "{{ __router_member | to_json }}"
        dest: "{{ inventory_dir }}/member.json"
        mode: "0600"
"""


class Playbooks:
    """The roles' own tasks, on this machine as the only host."""

    def __init__(self, fleet: Fleet, docker_host: str) -> None:
        self._fleet = fleet
        folder = {"vllm_config_dir": "etc", "vllm_hf_home": "huggingface", "vllm_cache_dir": "cache"}
        self._variables: dict[str, Any] = {
            **{name: str(fleet.folder / below) for name, below in folder.items()},
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vllm_venv": sys.prefix,
            "vllm_docker_host": docker_host,
            "vllm_container_prefix": fleet.prefix,
            "vllm_accept_license": True,
            "vllm_check_config": False,
            "vllm_drain_timeout": 5,
        }

    def deploy(self, port: int, *words: str, **config: Any) -> subprocess.CompletedProcess[str]:
        """Configure and serve one replica at the port of that number."""
        folder = str(self._fleet.model)
        replica: dict[str, Any] = {
            "name": f"{self._fleet.prefix}-0",
            "host": "127.0.0.1",
            "port": self._fleet.ports[port],
            "config": {"host": "0.0.0.0", "port": 8000, "served-model-name": "stand-in"},
            "environment": {},
        }
        replica["config"].update({key.replace("_", "-"): value for key, value in config.items()})
        plan = {
            "schema_version": 1,
            "device": "cpu",
            "gpu_access": "none",
            "network_mode": "bridge",
            "model_source": {"kind": "path", "location": folder, "mount": folder, "argument": "/models/stand-in"},
            "image": {"reference": self._fleet.image, "tag": self._fleet.image},
            "replicas": [replica],
        }
        return self._play(ROLES_AT_WORK, {**self._variables, "vllm_plan": plan}, *words)

    def router(self) -> dict[str, Any]:
        """Return what the router is told of the host."""
        assert self._play(ROUTER_ASKS, self._variables).returncode == 0
        member: dict[str, Any] = json.loads((self._fleet.folder / "member.json").read_text())
        return member

    def _play(self, text: str, variables: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
        folder = self._fleet.folder
        (folder / "plays.yml").write_text(text)
        (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"gpu-01": variables}}}))
        return subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "plays.yml", *words],
            cwd=folder,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "true"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def test_the_router_goes_by_what_answered(fleet: Fleet, docker_host: str) -> None:
    """A replica that was to move to another port, and did not."""
    plays = Playbooks(fleet, docker_host)
    shown = plays.deploy(0, "--check", "--diff", **OLD)
    assert "plan.json" in shown.stdout, shown.stdout
    assert plays.router()["replicas"] == []
    done = plays.deploy(0, **OLD)
    assert done.returncode == 0, done.stdout
    before = plays.router()
    assert [replica["port"] for replica in before["replicas"]] == [fleet.ports[0]]
    assert "changed=0" in plays.deploy(0, **OLD).stdout
    failed = plays.deploy(1, **FAILS)
    assert (failed.returncode, "was put back and answers again" in failed.stdout) == (2, True), failed.stdout
    assert plays.router() == before
    assert plays.deploy(1, **NEW).returncode == 0
    assert [replica["port"] for replica in plays.router()["replicas"]] == [fleet.ports[1]]
