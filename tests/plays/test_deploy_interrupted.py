# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A deployment that was interrupted while a host was drained: the next one puts the host back."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks
from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import listening
from ansible_collections.gpufleet.vllm.tests.plays.deployments import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose router sends requests to every replica."""
    with listening(tmp_path) as master:
        master.sessions = {}
        yield Fleet(tmp_path, master)


def test_a_host_that_is_lost_in_its_turn_has_failed_and_is_put_back(fleet: Fleet) -> None:
    # The first run of the module only looks.
    replaced = r'\tvllm_server\t(?!.*"_ansible_check_mode": true)'
    log = fleet.deploy(changed=True, breaks={"gpu-01": replaced}, succeeds=False)
    runs = [json.loads(line[2])["_ansible_check_mode"] for line in log if line[:2] == ["gpu-02", "vllm_server"]]
    assert runs == [True, False], fleet.said
    assert "gpu-01 could not be reached, if only for one task" in fleet.said
    assert set(fleet.master.states.values()) == {"ready"}
    drained = [command.split()[-3] for command in fleet.master.commands if command.endswith("drain")]
    assert {name.rpartition("/")[2] for name in drained} == {"gpu-01:vllm-0", "gpu-01:vllm-1", "gpu-02:vllm-0"}


def test_the_next_deployment_puts_back_what_an_interrupted_one_has_drained(fleet: Fleet) -> None:
    left = ["gpu-01:vllm-0", "gpu-01:vllm-1"]
    DrainMarks(str(fleet.folder)).keep("gpu-01", "deploy", left, run=f"{socket.gethostname()} 4194304 1")
    fleet.master.states.update(dict.fromkeys(left, "drain"))
    # Of the two one may be out, so the other waits for it.
    fleet.deploy(changed=True)
    assert set(fleet.master.states.values()) == {"ready"}, fleet.said
    fleet.master.states.update({"gpu-02:vllm-0": "drain"})  # by hand
    DrainMarks(str(fleet.folder)).keep("gpu-01", "deploy", left, run=f"{socket.gethostname()} 4194304 1")
    fleet.master.states.update(dict.fromkeys(left, "drain"))
    log = fleet.deploy(changed=False)
    assert fleet.master.states == {"gpu-01:vllm-0": "ready", "gpu-01:vllm-1": "ready", "gpu-02:vllm-0": "drain"}
    asked = [json.loads(line[2]) for line in log if line[:2] == ["lb", "router_backend"]]
    both = ["gpu-01", "gpu-02"]
    assert [each.get("hosts", each.get("host")) for each in asked] == [both, both, "gpu-01"]
    # And once all is well, one look for all hosts and either kind of run is what it costs.
    log = fleet.deploy(changed=False)
    assert [line[:2] for line in log if line[0] == "lb"] == [["lb", "router_backend"]] * 2


@pytest.mark.parametrize("run", ["", f"{socket.gethostname()} 4194304 1"], ids=["failed", "interrupted"])
def test_what_a_rollout_has_left_comes_back_unless_it_could_not_be_put_right(fleet: Fleet, run: str) -> None:
    fleet.master.states["gpu-02:vllm-0"] = "drain"
    DrainMarks(str(fleet.folder)).keep("gpu-02", "rollout", ["gpu-02:vllm-0"], run=run)
    fleet.deploy(changed=True, vllm_max_unavailable="100%", vllm_allow_outage=True)
    state = "ready" if run else "drain"
    assert fleet.master.states == {"gpu-01:vllm-0": "ready", "gpu-01:vllm-1": "ready", "gpu-02:vllm-0": state}
    assert fleet.said.count("A rollout could neither change this host nor bring it back") == (not run)
    assert DrainMarks(str(fleet.folder)).of("gpu-02", "rollout") == ([] if run else ["gpu-02:vllm-0"])
