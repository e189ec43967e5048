# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of router_backend, with a master process that answers on a socket as HAProxy 2.6 does."""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.modules import router_backend
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

STATE_HEADS = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state"
ADMIN = {"ready": 0, "drain": 8, "maint": 1}


class Master:
    """A master with one worker (process id 2) and an old one (3); C(sessions) are the requests at each server."""

    def __init__(self) -> None:
        self.states = {"gpu-01:vllm-0": "ready", "gpu-01:vllm-1": "ready", "gpu-02:vllm-0": "ready"}
        self.sessions = {2: {"gpu-01:vllm-0": [2, 1, 0]}, 3: {"gpu-01:vllm-0": [1, 1, 1, 0]}}
        self.commands: list[str] = []

    def answer(self, line: str) -> str:
        """Return what HAProxy says to a line."""
        if line == "show proc":
            return "#<PID> <type>\n1 master 0 0d 2.6\n# workers\n2 worker 0 0d 2.6\n# old workers\n3 worker 1 0d 2.6\n"
        found = re.match(r"@!(\d+) (.*)", line)
        assert found, line
        worker, command = int(found[1]), found[2]
        if command == "show stat":
            lines = ["# pxname,svname,scur,status,weight", "api,FRONTEND,9,OPEN,", "replicas,BACKEND,9,UP,3"]
            return (
                "\n".join([*lines, *(f"replicas,{name},{self.at(worker, name)},UP,1" for name in self.states)]) + "\n"
            )
        if command == "show servers state":
            rows = [f"4 replicas 1 {name} 10.0.0.1 2 {ADMIN[state]}" for name, state in self.states.items()]
            return "\n".join(["1", STATE_HEADS, *rows]) + "\n"
        self.commands.append(line)
        name, state = re.fullmatch(r"set server replicas/(\S+) (?:state|health) (\w+)", command).groups()  # type: ignore[union-attr]
        if state != "down":
            self.states[name] = state
        return "\n"

    def at(self, worker: int, name: str) -> int:
        """Return the requests at a server now; with every look, running ones have ended."""
        left = self.sessions.get(worker, {}).get(name, [0])
        return left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """A master that listens in C(tmp_path)."""
    found = Master()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(found.answer(self.rfile.readline().decode().strip()).encode())

    server = socketserver.ThreadingUnixStreamServer(str(tmp_path / "master.sock"), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


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
    assert result["diff"][0]["before"] == "ready\n" and result["diff"][0]["after"] == "drain\n"


def test_what_comes_back_from_maintenance_is_not_trusted_at_once(
    run_module: RunModule, master: Master, tmp_path: Path
) -> None:
    master.states["gpu-02:vllm-0"] = "maint"
    result = run_module(router_backend.main, {"host": "gpu-02", "state": "ready", "run_dir": str(tmp_path)})
    assert result["changed"] and result["not_up"] == []
    assert "@!2 set server replicas/gpu-02:vllm-0 health down" in master.commands


def test_one_replica_alone_and_one_that_is_not_there(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    args = {"host": "gpu-01", "replicas": ["vllm-1"], "state": "maint", "run_dir": str(tmp_path)}
    assert list(run_module(router_backend.main, args)["servers"]) == ["gpu-01:vllm-1"]
    result = run_module(router_backend.main, {**args, "replicas": ["vllm-7"]})
    assert result["failed"] and result["error"]["name"] == "router-unknown-replica"
    assert "gpu-01:vllm-0" in result["msg"]


def test_a_host_that_was_left_out_has_nothing_to_drain(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    result = run_module(router_backend.main, {"host": "gpu-09", "state": "drain", "run_dir": str(tmp_path)})
    assert (result["changed"], result["servers"], result["sessions_left"]) == (False, {}, 0)


def test_no_front_end_is_told_by_name(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module(router_backend.main, {"host": "gpu-01", "state": "drain", "run_dir": str(tmp_path)})
    assert result["failed"] and result["error"]["name"] == "router-not-running"
