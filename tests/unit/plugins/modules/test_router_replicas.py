# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting until replicas get requests, at a master that is played and at a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action import router_replicas as action
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_replicas, router_server
from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import Master, listening
from ansible_collections.gpufleet.vllm.tests.fakes.keyed_replica import serving
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """A master with three replicas that are up."""
    with listening(tmp_path) as found:
        yield found


def wait(run_module: RunModule, folder: Path, **more: Any) -> dict[str, Any]:
    """Return the module's result."""
    return run_module(router_replicas.main, {"run_dir": str(folder), "state_dir": str(folder), "timeout": 0, **more})


def test_all_that_are_up_is_enough(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    result = wait(run_module, tmp_path)
    assert (result["failed"], result["ready"], result["down"], result["taken_out"]) == (False, 3, {}, [])


def test_one_that_is_down_is_told_with_its_cause(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    master.down = {"gpu-02:vllm-0"}
    result = wait(run_module, tmp_path)
    assert result["failed"] and result["error"]["name"] == "replicas-not-ready"
    assert "sends nothing to 1 of 3 replicas:\n  - gpu-02:vllm-0: connection refused" in result["msg"]
    assert "vllm_host" in result["error"]["remedy"]
    assert (result["ready"], result["down"]) == (2, {"gpu-02:vllm-0": "connection refused"})


@pytest.mark.parametrize("state", ["drain", "maint"])
def test_what_was_taken_out_on_purpose_is_no_failure(
    run_module: RunModule, master: Master, tmp_path: Path, state: str
) -> None:
    master.down, master.states["gpu-02:vllm-0"] = {"gpu-02:vllm-0"}, state
    result = wait(run_module, tmp_path)
    assert (result["failed"], result["ready"], result["taken_out"]) == (False, 2, ["gpu-02:vllm-0"])


def test_hosts_of_another_run_are_told_alone(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    master.down = {"gpu-02:vllm-0"}
    result = wait(run_module, tmp_path, hosts=["gpu-01"])
    assert (result["failed"], result["others_down"]) == (False, {"gpu-02:vllm-0": "connection refused"})


def test_it_waits_until_they_are_up(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    master.down = {"gpu-02:vllm-0"}
    threading.Timer(0.5, master.down.clear).start()
    assert wait(run_module, tmp_path, timeout=20)["ready"] == 3


def test_a_router_that_does_not_run_is_no_success(run_module: RunModule, tmp_path: Path) -> None:
    assert wait(run_module, tmp_path)["error"]["name"] == "router-not-running"


def test_many_that_are_down_share_the_remedy(run_module: RunModule, master: Master, tmp_path: Path) -> None:
    master.states = {f"gpu-{number:03}:vllm-0": "ready" for number in range(200)}
    master.down = set(master.states)
    result = wait(run_module, tmp_path)
    assert len(result["error"]["message"].splitlines()) == 22
    assert result["error"]["remedy"].count("vllm_router_address") == 1


def test_the_action_asks_for_hosts_of_this_run_and_tells_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = {"failed": True, "error": {"name": "replicas-not-ready", "message": "gpu-01:vllm-0: refused"}}
    answers, asked = [failing, failing, {"changed": False, "others_down": {"gpu-09:vllm-0": "no route"}}], []

    class Asking(action.ActionModule):
        def _execute_module(self, **parts: Any) -> dict[str, Any]:
            asked.append(parts["module_args"])
            return answers[len(asked) - 1]

    hostvars = {"gpu-01": {"__router_plan": {"unreachable": True}}, "gpu-09": {}}
    variables = {"inventory_hostname": "lb", "hostvars": hostvars}
    result, display = run_action(Asking, {"members": ["gpu-01", "gpu-09"], "timeout": 60}, variables)
    assert not result.get("failed") and [each["hosts"] for each in asked] == [["gpu-01"]] * 3
    assert {each["timeout"] for each in asked} == {10}
    assert [call.args[0] for call in display.display.call_args_list] == [
        "[lb] waits for servers. gpu-01:vllm-0: refused",
        "[lb] not of this run: the router sends nothing to gpu-09:vllm-0: no route",
    ]


@pytest.mark.skipif(program_path("haproxy") is None, reason="no HAProxy; tools/check.py engine has one")
def test_a_real_haproxy_tells_the_causes(run_module: RunModule, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("directory", "run_dir", "state_dir", "log_file")}
    key = "the-replica-key"
    with serving(key) as good, serving("another", health_needs_key=True) as strange:
        places = {
            "gpu-01": ("127.0.0.1", good.port),
            "gpu-02": ("127.0.0.1", free_port()),
            "gpu-03": ("127.0.0.1", strange.port),
            "gpu-04": ("no-such-host.invalid", 8000),
            "gpu-05": ("127.0.0.1", free_port()),
        }
        hosts = {host: [{"name": "vllm-0", "address": at, "port": port}] for host, (at, port) in places.items()}
        given = {"hosts": hosts, "replica_keys": dict.fromkeys(hosts, key), "host": "127.0.0.1", "port": free_port()}
        try:
            more = {"tls": False, "user": "daemon", "check_interval_ms": 200, "api_keys": ["the-client-key"]}
            assert run_module(router_server.main, {**given, **more, **folders})["action"] == "started"
            asked = {name: folders[name] for name in ("run_dir", "state_dir")}
            run_module(router_backend.main, {"host": "gpu-05", "state": "drain", **asked})
            result = run_module(router_replicas.main, {**asked, "timeout": 3})
        finally:
            RouterService(*folders.values()).remove()
    assert (result["ready"], result["taken_out"]) == (1, ["gpu-05:vllm-0"]), result
    assert result["down"] == {
        "gpu-02:vllm-0": "connection refused",
        "gpu-03:vllm-0": "it refuses the router's key (401)",
        "gpu-04:vllm-0": "the router's host cannot resolve its name",
    }
