# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout does to the router: nobody stays drained, and requests always have somewhere to go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout import wish_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout_state import RolloutState
from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import Master, listening
from ansible_collections.gpufleet.vllm.tests.plays.rolling import Rolling, changed


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """The master of a router that sends requests to every replica."""
    with listening(tmp_path) as found:
        found.sessions = {}
        yield found


def served(log: list[list[str]]) -> list[str]:
    """Return the hosts whose servers were replaced or brought back, in that order."""
    return [line[0] for line in log if line[1] == "vllm_server"]


def test_whom_nobody_asks_comes_first_and_nobody_stays_drained(tmp_path: Path, master: Master) -> None:
    """A host that is as it should be was left drained by a run whose state is gone, and another one does not serve.

    Of the third the second replica goes: the router follows, and does not wait for it.
    """
    master.states = {f"gpu-0{number}:vllm-0": "ready" for number in (1, 2, 3)} | {"gpu-01:vllm-1": "ready"}
    master.states["gpu-02:vllm-0"], master.down = "drain", {"gpu-03:vllm-0", "gpu-01:vllm-1"}
    DrainMarks(str(tmp_path)).keep("gpu-02", "rollout", ["gpu-02:vllm-0"])
    fleet = Rolling(tmp_path, {"gpu-01": changed(), "gpu-02": changed(changes=()), "gpu-03": changed(serves=False)})
    moved = {"changed": True, "action": "reloaded", "diff": [{"after_header": "/etc/gpufleet-router/replicas.json"}]}
    stages: dict[str, Any] = {"vllm_rollout_verify_canary": ["basic", "accuracy"], "vllm_rollout_max_failures": 1}
    stages["vllm_max_unavailable"] = 2
    log = fleet.run(succeeds=False, results={"router_server": moved}, **stages)
    assert "left without requests by a run that did not end: gpu-02" in fleet.said
    assert "first, because they do not serve: gpu-03" in fleet.said
    assert "the canary is held against nothing: accuracy has no floor" in fleet.said
    assert "held against nothing: gpu-02: accuracy had no floor" in fleet.said
    assert served(log) == ["gpu-02", "gpu-03", "gpu-03", "gpu-01"], fleet.said
    assert {host: state["state"] for host, state in fleet.last().items()} == {
        "gpu-01": "done",
        "gpu-02": "done",
        "gpu-03": "failed",
    }
    assert "get no requests until a next rollout has verified them: gpu-03" in fleet.said
    ready = {name for name, state in master.states.items() if state == "ready"}
    assert {"gpu-01:vllm-0", "gpu-02:vllm-0"} <= ready
    loaded = [json.loads(line[2]) for line in log if line[1] == "router_server"]
    turns = [arguments for arguments in loaded if not arguments["_ansible_check_mode"]]
    assert (list(turns[0]["hosts"]), turns[0]["unknown"]) == (["gpu-02"], ["gpu-01", "gpu-03"])
    (second,) = turns[0]["hosts"]["gpu-02"]
    assert (second["name"], second["address"], second["port"], second["models"]) == ("vllm-0", "gpu-02", 8000, ["m"])
    assert len(turns) == 5 and turns[-1]["unknown"] == [], "a turn each, one more to go back, and the playbook router"


def test_the_last_one_that_gets_requests_is_left_alone_unless_it_may_go(tmp_path: Path, master: Master) -> None:
    master.states = {"gpu-01:vllm-0": "ready", "gpu-02:vllm-0": "drain"}
    fleet = Rolling(tmp_path, {"gpu-01": changed(), "gpu-02": changed(changes=())})
    log = fleet.run(succeeds=False)
    assert (served(log), master.commands) == ([], []), fleet.said
    state = fleet.last()["gpu-01"]
    assert state["state"] == "failed" and not state["out"]
    assert "Without gpu-01:vllm-0 the router would have no replica to send requests to" in state["why"]
    assert "vllm_allow_outage: true" in fleet.said
    log = fleet.run(succeeds=True, vllm_allow_outage=True, vllm_max_unavailable="100%")
    assert served(log) == ["gpu-01"]
    assert master.states == {"gpu-01:vllm-0": "ready", "gpu-02:vllm-0": "drain"}, "what a person drained stays so"


def test_a_host_that_could_not_be_brought_back_is_not_forgotten(tmp_path: Path, master: Master) -> None:
    """It failed its verification, and nothing had served there before. Then the inventory wishes what it has."""
    master.states = {"gpu-01:vllm-0": "ready", "gpu-02:vllm-0": "ready"}
    fleet = Rolling(tmp_path, {"gpu-01": changed(before=""), "gpu-02": changed()})
    fleet.run(succeeds=False, breaks={"gpu-01": r"\tvllm_completion\t"})
    assert master.states["gpu-01:vllm-0"] == "drain"
    assert "get no requests until a next rollout has verified them: gpu-01" in fleet.said
    assert RolloutState(str(fleet.state_dir)).hosts()["gpu-01"]["state"] == "out"
    fleet.hosts = {"gpu-01": changed(changes=()), "gpu-02": changed(changes=())}
    log = fleet.run(succeeds=True)
    assert served(log) == ["gpu-01"]
    assert set(master.states.values()) == {"ready"}
    assert RolloutState(str(fleet.state_dir)).hosts() == {}


def test_the_last_one_that_gets_requests_is_not_brought_back_before_another_serves(
    tmp_path: Path, master: Master
) -> None:
    master.states = {"gpu-01:vllm-0": "ready", "gpu-02:vllm-0": "ready"}
    fleet = Rolling(tmp_path, {"gpu-01": changed(), "gpu-02": changed(before="")})
    log = fleet.run(succeeds=False, breaks={"gpu-02": r"\tvllm_completion\t"})
    assert served(log) == ["gpu-01", "gpu-02"], fleet.said
    assert master.states == {"gpu-01:vllm-0": "ready", "gpu-02:vllm-0": "drain"}
    assert "changed, and not brought back yet: gpu-01" in fleet.said
    assert "not brought back: gpu-01: Without gpu-01:vllm-0 the router would have no replica" in fleet.said
    states = {host: state["state"] for host, state in RolloutState(str(fleet.state_dir)).hosts().items()}
    assert states == {"gpu-01": "done", "gpu-02": "failed"}, "the next run goes on bringing back"


PLAN_BEFORE: dict[str, Any] = {"profile": "recipe", "precision": "fp8", "image": {}, "replicas": []}


def deployment(
    name: str, *, current: bool = False, time: str = "2026-11-22T16:55:01Z", back: str = ""
) -> dict[str, Any]:
    """Return an entry of a host's history."""
    return {"id": name, "time": time, "current": current, "rolled_back_to": back, "image": {"id": "sha256:1"}}


def test_an_upgrade_that_was_interrupted_is_taken_back_where_it_came_and_nowhere_else(
    tmp_path: Path, master: Master
) -> None:
    master.states = {"gpu-01:vllm-0": "ready", "gpu-02:vllm-0": "ready"}
    fleet = Rolling(tmp_path, {"gpu-01": {}, "gpu-02": {}})
    state = RolloutState(str(fleet.state_dir))
    settings = {"began": "2026-11-23T08:00:00+00:00", "stopped": "", "canaries": [], "total": 2, "max_failures": 0}
    state.save_settings({**settings, "largest_batch": 1})
    # Another playbook made the same change on the second host meanwhile.
    state.save_host("gpu-01", state="begun", before={"deployment": "first"}, wish=wish_of(PLAN_BEFORE))
    state.save_host("gpu-02", state="pending", wish=wish_of(PLAN_BEFORE))
    new = deployment("second", current=True, time="2026-11-23T08:10:00Z")
    info = {"plan": PLAN_BEFORE, "servers": [{"phase": "serving"}], "deployments": [new, deployment("first")]}
    entry = {"name": "vllm-0", "action": "replaced", "why": ["x: 1 -> 2"], "ready_s": 0, "changes": []}
    server = {"changed": True, "replicas": [entry], "removed": [], "rolled_back_to": "first"}
    log = fleet.run("rollback", succeeds=True, results={"vllm_server_info": info, "vllm_server": server})
    asked = {(line[0], json.loads(line[2])["rollback_to"]) for line in log if line[1] == "vllm_server"}
    assert asked == {("gpu-01", "first"), ("gpu-02", "")}, fleet.said
    assert "gpu-01 goes back to what it served before the rollout that began at 2026-11-23T08:00:00" in fleet.said
