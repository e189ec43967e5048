# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines that status prints."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.status_page import status_lines


def server(name: str, phase: str = "serving", **parts: Any) -> dict[str, Any]:
    """Return a server as vllm_server_info does."""
    return {"name": name, "phase": phase, "summary": phase, "docker_run": f"docker run --name {name} image", **parts}


def test_those_that_do_not_serve_come_first_with_cause_and_remedy() -> None:
    """A person reads what is wrong before what is right."""
    dead = server("vllm-1", "dead", diagnosis={"evidence": "OOMKilled:  true", "remedy": "Give it memory."})
    found = status_lines({"gpu-2": [server("vllm-0"), dead], "gpu-1": [server("vllm-0")]})
    assert found["lines"][0] == "2 of 3 replicas serving on 2 hosts"
    assert found["lines"][2].split(maxsplit=2) == ["gpu-2", "vllm-1", "dead; OOMKilled: true; Give it memory."]
    assert [line.split()[0] for line in found["lines"][3:]] == ["gpu-1", "gpu-2"]
    assert found["not_serving"] == ["gpu-2/vllm-1"]
    assert found["docker_run"][0] == "gpu-1 vllm-0: docker run --name vllm-0 image"


def test_hosts_without_a_server_are_named_together() -> None:
    """That nothing is deployed is said, not left out."""
    found = status_lines({"gpu-01": [], "gpu-02": [], "gpu-03": [server("vllm-0")]})
    assert found["lines"][0] == "1 of 1 replicas serving on 3 hosts"
    assert found["lines"][-1] == "Nothing is deployed on gpu-[01:02]."


def test_what_differs_and_what_was_not_reached_is_named() -> None:
    """Hosts that differ alike share a line."""
    servers = {host: [server("vllm-0")] for host in ("gpu-01", "gpu-02", "gpu-03")}
    drift = {"gpu-01": [], "gpu-02": ["config.max-num-seqs: 4 -> 8"], "gpu-03": ["config.max-num-seqs: 4 -> 8"]}
    found = status_lines(servers, drift, {}, ["gpu-01", "gpu-02", "gpu-03", "gpu-10", "gpu-9"])
    assert found["lines"][0] == (
        "3 of 3 replicas serving on 3 hosts, 2 hosts not as the inventory wishes, 2 hosts not reached"
    )
    assert found["lines"][-3:] == [
        "Not reached: gpu-9, gpu-10.",
        "Not as the inventory wishes:",
        "  gpu-[02:03] (2 hosts): config.max-num-seqs: 4 -> 8",
    ]
    assert (found["differing"], found["not_reached"]) == (["gpu-02", "gpu-03"], ["gpu-9", "gpu-10"])


def test_hosts_that_answered_but_hide_what_runs_are_not_called_unreached() -> None:
    """Each cause once, with its hosts; what was kept of their servers does not count."""
    servers: dict[str, list[Any]] = {"gpu-1": [server("vllm-0")], "gpu-2": [], "gpu-3": [], "gpu-4": []}
    errors = {"gpu-1": "", "gpu-2": "No Docker engine\nanswers.", "gpu-3": "No Docker engine\nanswers."}
    found = status_lines(servers, {}, {host: [] for host in servers}, [*servers, "gpu-5"], errors)
    assert found["lines"][0] == "1 of 1 replicas serving on 2 hosts, 2 hosts not looked at, 1 host not reached"
    assert found["lines"][-4:] == [
        "Nothing is deployed on gpu-4.",
        "Not looked at:",
        "  gpu-[2:3] (2 hosts): No Docker engine answers.",
        "Not reached: gpu-5.",
    ]
    assert (found["not_looked_at"], found["not_reached"]) == (["gpu-2", "gpu-3"], ["gpu-5"])
    assert found["details"][-1] == "No deployment remembered on gpu-1, gpu-4."


def test_200_hosts_are_a_few_lines_with_the_outliers_first() -> None:
    """One host of another version, one replica dead, all others alike."""
    load = {"requests_running": 3, "requests_waiting": 1}
    servers = {
        f"gpu-{number:03}": [server(f"vllm-{r}", model="m", vllm_version="0.12.0", load=load) for r in range(8)]
        for number in range(1, 201)
    }
    servers["gpu-007"] = [server("vllm-0", model="m", vllm_version="0.11.0", load=load)]
    servers["gpu-150"][3] = server("vllm-3", "dead", diagnosis={"evidence": "OOMKilled", "remedy": "Give it memory."})
    lines = status_lines(servers)["lines"]
    assert len(lines) == 5
    assert lines[0] == "1592 of 1593 replicas serving on 200 hosts"
    assert lines[2].startswith("gpu-150")
    assert lines[3].split()[:3] == ["gpu-007", "1", "replica"]
    assert lines[3].endswith("serving, model m, vLLM 0.11.0, 3 requests running, 1 waiting")
    assert lines[4].endswith("1591 replicas  serving, model m, vLLM 0.12.0, 4773 requests running, 1591 waiting")


def test_the_last_deployments_are_among_the_details() -> None:
    """With their ids, by which to go back."""
    image = {"reference": "i:1", "id": "sha256:1700a9d57cad0938"}
    made = [
        {"id": f"2026112{n}", "outcome": "ready", "current": n == 5, "rolled_back_to": "", "model": "m"}
        | {"vllm_version": "0.12.0", "image": image, "error": {}}
        for n in (5, 4, 3, 2)
    ]
    details = status_lines({"gpu-1": [server("vllm-0")]}, {}, {"gpu-1": made})["details"]
    assert details[0].startswith("gpu-1 vllm-0: docker run")
    assert [line.split()[1] for line in details[2:]] == ["20261125", "20261124", "20261123"]


def test_to_whom_a_router_sends_nothing_is_named() -> None:
    """Drained, down or unknown to it, alike hosts in one line; a router that was not reached is said, too."""
    servers = {f"gpu-0{number}": [server("vllm-0")] for number in (1, 2, 3, 4, 5)}
    up, drained = {"state": "ready", "status": "UP", "sessions": 3}, {"state": "drain", "status": "DRAIN"}
    behind = {"gpu-01:vllm-0": up, "gpu-02:vllm-0": drained, "gpu-03:vllm-0": drained}
    routers: dict[str, Any] = {
        "lb-1": {
            "servers": {**behind, "gpu-04:vllm-0": {"state": "ready", "status": "DOWN"}},
            "causes": {"gpu-04:vllm-0": "connection refused", "gpu-02:vllm-0": "no route"},
        },
        "lb-2": {"unreachable": True, "msg": "no route\nto host"},
        "lb-3": {"servers": {f"{host}:vllm-0": {"state": "ready", "status": "UP 1/2"} for host in servers}},
    }
    found = status_lines(servers, routers=routers)
    assert found["lines"][0] == "5 of 5 replicas serving on 5 hosts, 4 hosts without requests"
    assert found["lines"][-7:] == [
        "The router lb-1 sends requests to 1 of 4 replicas; 3 are running.",
        "The router lb-1 sends nothing to:",
        "  gpu-[02:03] (2 hosts): vllm-0 drained",
        "  gpu-04: vllm-0 DOWN, connection refused",
        "  gpu-05: vllm-0 serves, and it does not know that one",
        "The router lb-2 could not be asked: no route to host",
        "The router lb-3 sends requests to 5 of 5 replicas; 0 are running.",
    ]
    assert found["without_requests"] == ["gpu-02", "gpu-03", "gpu-04", "gpu-05"]


def test_whom_a_run_has_left_out_is_told_from_whom_a_person_has() -> None:
    names = ("gpu-01", "gpu-02", "gpu-03", "gpu-04")
    servers = {host: [server("vllm-0")] for host in names}
    router: dict[str, Any] = {
        "servers": {f"{host}:vllm-0": {"state": "drain", "status": "DRAIN"} for host in names},
        "in_turn": ["gpu-02"],
        "turns_over": ["gpu-03"],
        "reasons": {"gpu-04": "a fan"},
    }
    assert status_lines(servers, routers={"lb": router})["lines"][-4:] == [
        "  gpu-01: vllm-0 drained",
        "  gpu-02: vllm-0 drained: in its turn of a run; if none is under way, the next upgrade or deploy puts it back",
        "  gpu-03: vllm-0 drained: a run could not put it right; the next upgrade or deploy takes it up",
        "  gpu-04: vllm-0 drained: a fan",
    ]
