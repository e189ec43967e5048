# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A deployment that was interrupted while a host was drained: the next one puts the host back.

What playbooks/deploy.yml does from its look at the servers on is run for real, and so is the module that speaks to
HAProxy; the hosts are not there, and the master process of HAProxy is its double (tests/fakes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils import rollout
from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import Master, listening

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = Path(rollout.__file__).parents[5]
FIRST = "Behind a front end, look first whether a server would be replaced"
PLAN = {"replicas": [], "image": {"tag": "t:1"}, "model_source": {}, "device": "cpu", "gpu_access": "none"}


class Fleet:
    """Two hosts behind a front end, and the end of a deployment to them."""

    def __init__(self, folder: Path, master: Master) -> None:
        self.folder, self.master, self.said = folder, master, ""
        play = yaml.safe_load((ROOT / "playbooks" / "deploy.yml").read_text(encoding="utf-8"))[0]
        names = [task["name"] for task in play["tasks"]]
        play["tasks"] = play["tasks"][names.index(FIRST) :]
        (folder / "plays.yml").write_text(json.dumps([play]), encoding="utf-8")
        common = {
            "ansible_connection": "wire",
            "ansible_python_interpreter": sys.executable,
            "vllm_venv": sys.prefix,
            "vllm_accept_license": True,
            "vllm_plan": {**PLAN, "network_mode": "bridge"},
            "router_run_dir": str(folder),
            "__vllm_ca_bundle": "",
        }
        groups: dict[str, Any] = {"vllm": {"hosts": {"gpu-01": {}, "gpu-02": {}}}, "router": {"hosts": {"lb": {}}}}
        hosts = {"all": {"children": groups, "vars": common}}
        (folder / "hosts.json").write_text(json.dumps(hosts), encoding="utf-8")

    def deploy(self, changed: bool, breaks: dict[str, str]) -> list[list[str]]:
        """Deploy; C(changed) is whether the servers are to be replaced. Returns the log of this run."""
        server = {"changed": changed, "replicas": [], "removed": []}
        wire: dict[str, Any] = {"results": {"vllm_server": server}, "breaks": breaks}
        (self.folder / "wire.json").write_text(json.dumps(wire), encoding="utf-8")
        (self.folder / "log").unlink(missing_ok=True)
        run = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "plays.yml"],
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "ANSIBLE_CONNECTION_PLUGINS": str(ROOT / "tests" / "fakes" / "connection"),
                "ANSIBLE_PIPELINING": "false",
                "GPUFLEET_WIRE": str(self.folder),
            },
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        self.said = run.stdout + run.stderr
        assert (run.returncode != 0) is bool(breaks), self.said
        return [line.split("\t") for line in (self.folder / "log").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose front end sends requests to every replica."""
    with listening(tmp_path) as master:
        master.sessions = {}
        yield Fleet(tmp_path, master)


def test_the_next_deployment_puts_back_what_an_interrupted_one_has_drained(fleet: Fleet) -> None:
    # The first run of the module only looks. Lost in the second one, the block's "always" is not run, as by Ctrl-C.
    replaced = r'\tvllm_server\t(?!.*"_ansible_check_mode": true)'
    log = fleet.deploy(changed=True, breaks={"gpu-01": replaced})
    runs = [json.loads(line[2])["_ansible_check_mode"] for line in log if line[:2] == ["gpu-02", "vllm_server"]]
    assert runs == [True, False], "a server was replaced before its host was drained"
    drained = {"gpu-01:vllm-0": "drain", "gpu-01:vllm-1": "drain", "gpu-02:vllm-0": "ready"}
    assert fleet.master.states == drained, fleet.said
    fleet.master.states["gpu-02:vllm-0"] = "drain"  # by hand
    log = fleet.deploy(changed=False, breaks={})
    assert fleet.master.states == {"gpu-01:vllm-0": "ready", "gpu-01:vllm-1": "ready", "gpu-02:vllm-0": "drain"}
    asked = [json.loads(line[2]) for line in log if line[0] == "lb"]
    assert [each.get("hosts", each.get("host")) for each in asked] == [["gpu-01", "gpu-02"], "gpu-01"]
    # And once all is well, one look for all hosts is what it costs.
    log = fleet.deploy(changed=False, breaks={})
    assert [line[:2] for line in log if line[0] == "lb"] == [["lb", "router_backend"]]
