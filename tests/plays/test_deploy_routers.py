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
    first, second = ([{"name": "vllm-0", "address": host, "port": 8000}] for host in ("gpu-01", "gpu-02"))
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


@pytest.mark.parametrize(
    "change",
    [
        {"field": "secret VLLM_API_KEY", "before": "(hidden)", "after": "(hidden, changed)"},
        {"field": "secrets", "before": None, "after": ["HF_TOKEN", "VLLM_API_KEY"]},
    ],
    ids=["another", "a first one"],
)
def test_another_key_than_the_router_asks_with_is_refused_before_anything_is_done(
    tmp_path: Path, master: Master, change: dict[str, Any]
) -> None:
    fleet = Fleet(tmp_path, master)
    fleet.deploy(changed=True, results={"vllm_server": replaced(change)}, succeeds=False)
    assert (master.commands, master.states) == ([], ALL_READY)
    assert "vllm_api_key of gpu-01 would change" in fleet.said and "vllm_allow_key_change=true" in fleet.said


def test_a_key_that_may_change_is_the_router_s_before_the_hosts_are_taken_back(tmp_path: Path, master: Master) -> None:
    fleet = Fleet(tmp_path, master)
    change = {"field": "secret VLLM_API_KEY", "before": "(hidden)", "after": "(hidden, changed)"}
    results = {"vllm_server": replaced(change), "router_server": moved("replica.key")}
    log = fleet.deploy(changed=True, results=results, serves=("vllm-0",), vllm_allow_key_change=True)
    names = [line[1] for line in log if line[1] != "router_backend" or '"state": "ready"' in line[2]]
    last = len(names) - names[::-1].index("router_server")
    assert names.count("router_server") == 2 and set(names[last:]) == {"router_backend"}, fleet.said


def test_a_host_that_is_not_behind_the_router_yet_may_get_a_key_and_other_wishes_wait(
    tmp_path: Path, master: Master
) -> None:
    """Of the two only gpu-02 is behind it; its servers stay where they are, so the router is not loaded again."""
    master.states = {"gpu-02:vllm-0": "ready"}
    fleet = Fleet(tmp_path, master)
    change = {"field": "secrets", "before": None, "after": ["VLLM_API_KEY"]}
    results = {"vllm_server": replaced(change), "router_server": moved("keys.sha256")}
    log = fleet.deploy(changed=True, results=results, succeeds=False, serves=("vllm-0",))
    assert master.states == {"gpu-02:vllm-0": "ready"}
    assert "vllm_api_key of gpu-02 would change" in fleet.said and "vllm_api_key of gpu-01" not in fleet.said
    really = [line[0] for line in log if line[1] == "vllm_server" and not json.loads(line[2])["_ansible_check_mode"]]
    assert really == ["gpu-01"]
    log = fleet.deploy(changed=True, results={"router_server": moved("keys.sha256")}, serves=("vllm-0",))
    followed = [json.loads(line[2])["_ansible_check_mode"] for line in log if line[1] == "router_server"]
    assert followed == [True], fleet.said
