# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of router_backend, with a master process that answers on a socket as HAProxy 2.6 does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import haproxy
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend
from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import Master, listening
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule


@pytest.fixture(autouse=True)
def keeps_its_state_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this host is touched where a test names no folder of the state."""
    monkeypatch.setitem(router_backend.ARGUMENTS["state_dir"], "default", str(tmp_path))


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """A master that listens in C(tmp_path)."""
    with listening(tmp_path) as found:
        yield found


def test_draining_waits_for_the_requests_of_old_workers_too(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    args = {"host": "gpu-01", "state": "drain", "run_dir": str(tmp_path), "timeout": 20}
    result = run_module(router_backend.main, args)
    assert result["changed"] and result["sessions_left"] == 0
    assert {server["state"] for server in result["servers"].values()} == {"drain"}
    assert result["others_ready"] == 1
    assert result["waited_s"] > 0
    assert sorted(master.commands) == [
        f"@!{worker} set server replicas/gpu-01:vllm-{number} state drain" for worker in (2, 3) for number in (0, 1)
    ]
    assert not run_module(router_backend.main, args)["changed"]


def test_what_has_not_ended_in_time_is_counted(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    master.sessions = {2: {"gpu-01:vllm-0": [4]}, 3: {"gpu-01:vllm-0": [3]}}
    result = run_module(
        router_backend.main, {"host": "gpu-01", "state": "drain", "run_dir": str(tmp_path), "timeout": 0}
    )
    assert result["sessions_left"] == 7


def test_check_mode_tells_and_sets_nothing(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    args = {"host": "gpu-02", "state": "drain", "run_dir": str(tmp_path)}
    result = run_module(router_backend.main, args, check=True)
    assert result["changed"] and master.commands == []
    assert result["certificate"]["not_after"] == "2027-12-24T16:00:00Z"
    assert result["diff"][0]["before"] == "ready\n" and result["diff"][0]["after"] == "drain\n"


def test_what_comes_back_from_maintenance_is_not_trusted_at_once(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    master.states["gpu-02:vllm-0"] = "maint"
    result = run_module(router_backend.main, {"host": "gpu-02", "state": "ready", "run_dir": str(tmp_path)})
    assert result["changed"] and result["not_up"] == []
    assert "@!2 set server replicas/gpu-02:vllm-0 health down" in master.commands


def test_named_replicas_alone_are_set_and_one_that_is_not_there_is_not_waited_for(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    args = {"host": "gpu-01", "replicas": ["vllm-1", "vllm-7"], "state": "maint", "run_dir": str(tmp_path)}
    result = run_module(router_backend.main, args)
    assert list(result["servers"]) == ["gpu-01:vllm-1"]
    assert result["unknown"] == ["gpu-01:vllm-7"]
    assert master.states["gpu-01:vllm-0"] == "ready"
    assert run_module(router_backend.main, {**args, "replicas": []})["servers"] == {}


def test_a_host_whose_name_begins_like_anothers_is_not_meant(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    master.states = {"fd00::1:vllm-0": "ready", "fd00::1:1:vllm-0": "ready"}
    result = run_module(router_backend.main, {"host": "fd00::1", "state": "drain", "run_dir": str(tmp_path)})
    assert list(result["servers"]) == ["fd00::1:vllm-0"]
    assert result["others_ready"] == 1
    assert master.states["fd00::1:1:vllm-0"] == "ready"


def test_a_host_that_was_left_out_has_nothing_to_drain(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    result = run_module(router_backend.main, {"host": "gpu-09", "state": "drain", "run_dir": str(tmp_path)})
    assert (result["changed"], result["servers"], result["sessions_left"]) == (False, {}, 0)


def test_what_an_owner_has_drained_is_found_by_its_next_run_and_what_a_person_has_is_left(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    """The deployment that had drained gpu-01 was interrupted; gpu-02 is drained on purpose."""
    common = {"run_dir": str(tmp_path), "timeout": 5}
    master.sessions = {}
    run_module(router_backend.main, {**common, "host": "gpu-01", "state": "drain", "owner": "deploy"})
    run_module(router_backend.main, {**common, "host": "gpu-02", "state": "drain"})
    back = {**common, "hosts": ["gpu-01", "gpu-02", "gpu-09"], "state": "ready", "owner": "deploy"}
    left = run_module(router_backend.main, back, check=True)
    assert (left["changed"], left["hosts"]) == (True, ["gpu-01"])
    assert run_module(router_backend.main, {**back, "owner": "another"}, check=True)["hosts"] == []
    # The next run would replace a server, too, and finds the host drained already.
    again = run_module(router_backend.main, {**common, "host": "gpu-01", "state": "drain", "owner": "deploy"})
    assert (again["changed"], again["hosts"]) == (False, [])
    assert run_module(router_backend.main, back)["hosts"] == ["gpu-01"]
    assert master.states == {"gpu-01:vllm-0": "ready", "gpu-01:vllm-1": "ready", "gpu-02:vllm-0": "drain"}
    assert not run_module(router_backend.main, back)["changed"]


def test_an_owner_puts_back_only_the_replicas_that_it_has_drained(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    master.sessions, master.states["gpu-01:vllm-1"] = {}, "drain"  # by hand
    args = {"host": "gpu-01", "run_dir": str(tmp_path), "owner": "deploy"}
    assert run_module(router_backend.main, {**args, "state": "drain"})["changed"]
    assert list(run_module(router_backend.main, {**args, "state": "ready"})["servers"]) == ["gpu-01:vllm-0"]
    assert (master.states["gpu-01:vllm-0"], master.states["gpu-01:vllm-1"]) == ("ready", "drain")


def test_what_was_taken_out_is_kept_for_workers_that_start_later(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    master.sessions = {}
    states, args = tmp_path / "server-state", {"host": "gpu-01", "run_dir": str(tmp_path)}
    run_module(router_backend.main, {**args, "state": "drain"}, check=True)
    assert not states.exists()
    run_module(router_backend.main, {**args, "state": "drain"})
    assert [row.split()[3:7] for row in states.read_text(encoding="utf-8").splitlines()[2:]] == [
        [f"gpu-01:vllm-{number}", "10.0.0.1", "2", "8"] for number in (0, 1)
    ]
    run_module(router_backend.main, {**args, "state": "ready", "replicas": ["vllm-0"]})
    assert [row.split()[3] for row in states.read_text(encoding="utf-8").splitlines()[2:]] == ["gpu-01:vllm-1"]
    # By another hand, beside us.
    master.states["gpu-02:vllm-0"] = "maint"
    run_module(router_backend.main, {**args, "state": "ready"})
    assert [row.split()[3] for row in states.read_text(encoding="utf-8").splitlines()[2:]] == ["gpu-02:vllm-0"]


def test_a_state_that_got_lost_is_set_again(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    master.sessions, master.lost = {}, 1
    result = run_module(router_backend.main, {"host": "gpu-02", "state": "drain", "run_dir": str(tmp_path)})
    assert [server["state"] for server in result["servers"].values()] == ["drain"]
    assert "gpu-02:vllm-0" in (tmp_path / "server-state").read_text(encoding="utf-8")


def test_one_that_does_not_stay_drained_is_not_told_to_be(
    run_module: RunModule, master: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haproxy, "LOST_S", 0.5)
    master.sessions, master.lost = {}, 1000
    args = {"host": "gpu-02", "state": "drain", "run_dir": str(tmp_path), "timeout": 0}
    result = run_module(router_backend.main, args)
    assert result["failed"] and result["error"]["name"] == "router-refused"
    assert "gpu-02:vllm-0" in result["msg"]


def test_a_worker_that_is_replaced_while_it_is_asked_is_not_one_without_servers(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    master.sessions, master.dying = {}, 2
    result = run_module(router_backend.main, {"host": "gpu-02", "state": "drain", "run_dir": str(tmp_path)})
    assert list(result["servers"]) == ["gpu-02:vllm-0"]


def test_an_owners_mark_stays_for_replicas_that_were_not_named(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    """The plan has vllm-0 alone now; should vllm-1 come back, it is put back, too."""
    master.sessions = {}
    args = {"host": "gpu-01", "run_dir": str(tmp_path), "owner": "deploy"}
    run_module(router_backend.main, {**args, "state": "drain"})
    assert list(run_module(router_backend.main, {**args, "state": "ready", "replicas": ["vllm-0"]})["servers"]) == [
        "gpu-01:vllm-0"
    ]
    assert list(run_module(router_backend.main, {**args, "state": "ready"})["servers"]) == ["gpu-01:vllm-1"]
    assert set(master.states.values()) == {"ready"}


@pytest.mark.parametrize("state", ["drain", "maint"])
def test_a_person_who_drains_what_was_left_drained_takes_it_over(
    run_module: RunModule, master: Master, tmp_path: Path, state: str
) -> None:
    master.sessions = {}
    args = {"host": "gpu-01", "run_dir": str(tmp_path)}
    run_module(router_backend.main, {**args, "state": "drain", "owner": "deploy"})
    run_module(router_backend.main, {**args, "state": state}, check=True)
    assert run_module(router_backend.main, {**args, "state": "ready", "owner": "deploy"}, check=True)["changed"]
    run_module(router_backend.main, {**args, "state": state})
    assert not run_module(router_backend.main, {**args, "state": "ready", "owner": "deploy"}, check=True)["changed"]


def test_no_router_is_told_by_name(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module(router_backend.main, {"host": "gpu-01", "state": "drain", "run_dir": str(tmp_path)})
    assert result["failed"] and result["error"]["name"] == "router-not-running"


def test_the_gate_sets_nothing_where_too_many_are_out(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    master.sessions = {}
    master.states = {f"gpu-0{number}:vllm-0": "ready" for number in (1, 2, 3)}
    master.states["gpu-02:vllm-0"] = "drain"
    args = {"host": "gpu-01", "state": "drain", "owner": "deploy", "run_dir": str(tmp_path), "max_unavailable": "25%"}
    failed = run_module(router_backend.main, args)
    assert (failed["failed"], failed["error"]["name"], master.commands) == (True, "too-many-unavailable", [])
    assert DrainMarks(str(tmp_path)).of("gpu-01", "deploy") == []
    # Who comes back of itself, or gets no requests, is not in the way of the gate.
    assert not run_module(router_backend.main, {**args, "host": "gpu-02"}).get("failed")
    assert not run_module(router_backend.main, {**args, "state": "ready", "host": "gpu-02", "owner": ""}).get("failed")
    assert not run_module(router_backend.main, args).get("failed")


def test_a_host_waits_for_the_end_of_another_ones_turn(
    run_module: RunModule, master: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master.sessions = {}
    master.states = {f"gpu-0{number}:vllm-0": "ready" for number in (1, 2, 3)}
    args = {"state": "drain", "owner": "deploy", "run": "r 1 1", "run_dir": str(tmp_path), "max_unavailable": 1}
    assert run_module(router_backend.main, {**args, "host": "gpu-02"})["changed"]
    pauses: list[float] = []

    def come_back(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            master.states["gpu-02:vllm-0"] = "ready"

    monkeypatch.setattr("time.sleep", come_back)
    failed = run_module(router_backend.main, {**args, "host": "gpu-01"})
    assert (failed["error"]["name"], pauses) == ("too-many-unavailable", [])
    assert run_module(router_backend.main, {**args, "host": "gpu-01", "turn_timeout": 60})["changed"]
    assert (len(pauses), master.states["gpu-01:vllm-0"]) == (3, "drain")
    # One that stays out though its turn is over is not waited for.
    assert not run_module(router_backend.main, {**args, "host": "gpu-01", "run": ""})["changed"]
    failed = run_module(router_backend.main, {**args, "host": "gpu-02", "turn_timeout": 60})
    assert (failed["error"]["details"]["passes"], len(pauses)) == (False, 3)


def test_a_person_s_reason_is_kept_until_the_host_is_taken_back(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    marks = DrainMarks(str(tmp_path))
    args = {"host": "gpu-02", "run_dir": str(tmp_path), "timeout": 20}
    run_module(router_backend.main, {**args, "state": "drain", "owner": "deploy", "run": "r 1 1"})
    assert (marks.in_turn(), marks.reason("gpu-02")) == ({"gpu-02": "r 1 1"}, "")
    both = {"hosts": ["gpu-01", "gpu-02"], "state": "ready", "run_dir": str(tmp_path)}
    looked = run_module(router_backend.main, both, check=True)
    assert (looked["in_turn"], looked["turns_over"]) == (["gpu-02"], [])
    result = run_module(router_backend.main, {**args, "state": "drain", "reason": "a fan is broken"})
    assert (result["changed"], marks.in_turn(), marks.reason("gpu-02")) == (False, {}, "a fan is broken")
    # The run whose turn it was does not take it back then.
    assert not run_module(router_backend.main, {**args, "state": "ready", "owner": "deploy"})["changed"]
    assert run_module(router_backend.main, {**args, "state": "ready"})["changed"]
    assert marks.reason("gpu-02") == ""
