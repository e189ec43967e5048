# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deployment does to the routers: none of them is left with hosts drained, nor behind what serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import Master, listening
from ansible_collections.gpufleet.vllm.tests.plays.deployments import Fleet

ALL_READY = {"gpu-01:vllm-0": "ready", "gpu-01:vllm-1": "ready", "gpu-02:vllm-0": "ready"}


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """The master of a router that sends requests to every replica."""
    with listening(tmp_path) as found:
        found.sessions = {}
        yield found


def moved(file: str) -> dict[str, Any]:
    """Return the result of router_server where a file of the router changes."""
    diff = [{"before_header": f"/etc/x/{name}", "after_header": f"/etc/x/{name}"} for name in ("haproxy.cfg", file)]
    return {"changed": True, "action": "reloaded", "diff": diff}


def replaced(*changes: dict[str, Any]) -> dict[str, Any]:
    """Return the result of vllm_server that replaces a server for these changes."""
    entry = {"name": "vllm-0", "action": "replaced", "why": [], "ready_s": 0, "changes": changes}
    return {"changed": True, "replicas": [entry], "removed": []}


def test_a_router_that_is_down_does_not_leave_the_hosts_drained_at_the_other(tmp_path: Path, master: Master) -> None:
    fleet = Fleet(tmp_path, master, routers=("lb-1", "lb-2"))
    log = fleet.deploy(changed=True, succeeds=False)
    assert master.states == ALL_READY, fleet.said
    assert {command.split()[-1] for command in master.commands} == {"drain", "ready"}
    assert "The router lb-2 could not be reached" in fleet.said
    looks = [json.loads(line[2])["_ansible_check_mode"] for line in log if line[1] == "vllm_server"]
    assert looks == [True, True], "servers were replaced under requests of the other router"


def test_fewer_replicas_go_through_and_the_router_follows_before_they_are_taken_back(
    tmp_path: Path, master: Master
) -> None:
    """Both hosts serve vllm-0 alone from now on; the second one of gpu-01 is gone."""
    master.down = {"gpu-01:vllm-1"}
    fleet = Fleet(tmp_path, master)
    log = fleet.deploy(
        changed=True,
        serves=("vllm-0",),
        results={
            "router_server": moved("replicas.json"),
            "vllm_server": replaced(
                {"field": "secret HF_TOKEN", "before": "(hidden)", "after": "(hidden, changed)"},
                {"field": "secrets", "before": ["VLLM_API_KEY"], "after": ["HF_TOKEN", "VLLM_API_KEY"]},
            ),
        },
        router_dir="/etc/x",
        vllm_api_key="the replicas' key",
        router_api_keys=["a client's key"],
    )
    assert (master.states["gpu-01:vllm-0"], master.states["gpu-02:vllm-0"]) == ("ready", "ready"), fleet.said
    steps = [
        (line[1], json.loads(line[2])) for line in log if line[1] in ("vllm_server", "router_server", "router_backend")
    ]
    followed = [arguments for name, arguments in steps if name == "router_server"]
    assert [arguments["_ansible_check_mode"] for arguments in followed] == [True, False] * 2, "each host by itself"
    carries = {"requests": 0, "max_num_seqs": 0, "max_model_len": 0}
    known: dict[str, Any] = {"name": "vllm-0", "port": 8000, "models": [], **carries}
    first, second = ([{**known, "address": host}] for host in ("gpu-01", "gpu-02"))
    assert followed[1]["hosts"] in ({"gpu-01": first}, {"gpu-02": second}), "the other one was not asked yet"
    assert followed[3]["hosts"] == {"gpu-01": first, "gpu-02": second}
    assert (followed[1]["directory"], followed[1]["api_keys"]) == ("/etc/x", ["a client's key"])
    names = [name for name, arguments in steps if name != "vllm_server" or not arguments["_ansible_check_mode"]]
    assert names.index("vllm_server") < names.index("router_server")
    back = [arguments for name, arguments in steps if name == "router_backend" and arguments.get("replicas")]
    assert [arguments["replicas"] for arguments in back] == [["vllm-0"], ["vllm-0"]]


def test_a_replica_that_the_router_does_not_get_to_know_fails_its_host(tmp_path: Path, master: Master) -> None:
    fleet = Fleet(tmp_path, master)
    refuses = {"failed": True, "msg": "no", "error": {"name": "x", "message": "HAProxy has no room for it."}}
    fleet.deploy(changed=True, serves=("vllm-0", "vllm-7"), results={"router_server": refuses}, succeeds=False)
    assert "The router does not have gpu-01:vllm-7" in fleet.said
    assert "HAProxy has no room for it." in fleet.said
    assert master.states["gpu-01:vllm-0"] == "ready"


@pytest.mark.parametrize("replaced_too", [False, True])
def test_another_key_takes_out_only_hosts_whose_servers_are_replaced(
    tmp_path: Path, master: Master, replaced_too: bool
) -> None:
    fleet = Fleet(tmp_path, master)
    result = (
        replaced({"field": "image", "before": "a", "after": "b"})
        if replaced_too
        else {"changed": True, "would_change": False}
    )
    results = {"vllm_server": {"replicas": [], "removed": [], **result, "keys_changed": ["vllm-0"]}}
    log = fleet.deploy(changed=True, results=results, serves=("vllm-0",))
    assert any("drain" in command for command in master.commands) is replaced_too, fleet.said
    asked = [json.loads(line[2]) for line in log if line[1] == "vllm_server"]
    assert {arguments["other_keys_for"] for arguments in asked} == {-1}
    assert all(json.loads(line[2])["key_may_wait"] for line in log if line[1] == "router_server")


def test_a_first_key_is_the_router_s_before_the_hosts_are_taken_back(tmp_path: Path, master: Master) -> None:
    fleet = Fleet(tmp_path, master)
    change = {"field": "secrets", "before": None, "after": ["VLLM_API_KEY"]}
    results = {"vllm_server": replaced(change), "router_server": moved("replica.key")}
    log = fleet.deploy(changed=True, results=results, serves=("vllm-0",))
    names = [line[1] for line in log if line[1] == "router_server" or '"state": "ready"' in line[2]]
    looks, turn = ["router_backend"] * 2, ["router_server", "router_server", "router_backend"]
    assert names == [*looks, *turn, *turn], fleet.said


def test_the_router_s_other_wishes_wait(tmp_path: Path, master: Master) -> None:
    """The servers stay where they are, so the router is not loaded again."""
    fleet = Fleet(tmp_path, master)
    log = fleet.deploy(changed=True, results={"router_server": moved("keys.sha256")}, serves=("vllm-0",))
    followed = [json.loads(line[2])["_ansible_check_mode"] for line in log if line[1] == "router_server"]
    assert followed == [True, True], fleet.said
