# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hosts behind a router that are deployed to, for tests.

What playbooks/deploy.yml does from its look at the servers on is run for real, and so is the module that speaks to
HAProxy; the hosts are not there, and the master process of HAProxy is its double (tests/fakes).
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import Master
from ansible_collections.gpufleet.vllm.tests.plays.wired import ROOT, log_of, play

FIRST = "Look first whether a server would be replaced, behind a router or with caches of other hosts"
PLAN = {
    "image": {"reference": "r:1", "tag": "t:1"},
    "model_source": {},
    "device": "cpu",
    "gpu_access": "none",
    "network_mode": "bridge",
}


class Fleet:
    """Two hosts behind routers, and the end of a deployment to them.

    Args:
        folder: for what this writes, with the sockets of the first router.
        master: of that one.
        routers: their hosts; all but the first one cannot be reached.
    """

    def __init__(self, folder: Path, master: Master, routers: tuple[str, ...] = ("lb",)) -> None:
        self.folder, self.master, self.said = folder, master, ""
        self._down = list(routers[1:])
        plays = yaml.safe_load((ROOT / "playbooks" / "deploy.yml").read_text(encoding="utf-8"))[:2]
        names = [task["name"] for task in plays[0]["tasks"]]
        plays[0]["tasks"] = plays[0]["tasks"][names.index(FIRST) :]
        (folder / "plays.yml").write_text(json.dumps(plays), encoding="utf-8")
        self._groups: dict[str, Any] = {
            "vllm": {"hosts": {"gpu-01": {}, "gpu-02": {}}},
            "router": {"hosts": dict.fromkeys(routers)},
        }

    def deploy(
        self,
        changed: bool,
        *,
        succeeds: bool = True,
        breaks: dict[str, str] | None = None,
        results: dict[str, dict[str, Any]] | None = None,
        serves: tuple[str, ...] = (),
        **variables: Any,
    ) -> list[list[str]]:
        """Deploy, and return the log of this run.

        Args:
            changed: whether the servers are to be replaced.
            succeeds: whether the play's exit status is to be 0.
            breaks: which run of a host is lost, see tests/fakes/connection.
            results: of further modules.
            serves: names of the replicas of the plan, and so of what serves afterwards.
            variables: of the inventory.
        """
        replicas = [{"name": name, "host": "0.0.0.0", "port": 8000 + number} for number, name in enumerate(serves)]
        common = {
            "ansible_connection": "wire",
            "ansible_python_interpreter": sys.executable,
            "vllm_venv": sys.prefix,
            "vllm_accept_license": True,
            "vllm_plan": {**PLAN, "replicas": replicas},
            "router_run_dir": str(self.folder),
            "router_state_dir": str(self.folder),
            "__vllm_ca_bundle": "",
            **variables,
        }
        hosts = {"all": {"children": self._groups, "vars": common}}
        (self.folder / "hosts.json").write_text(json.dumps(hosts), encoding="utf-8")
        plan = base64.b64encode(json.dumps({"replicas": replicas}).encode()).decode()
        table = {
            "vllm_config": {"changed": False},
            "vllm_server": {"changed": changed, "replicas": [], "removed": []},
            "router_server": {"changed": False, "action": "none", "diff": []},
            "slurp": {"changed": False, "content": plan, "encoding": "base64"},
            **(results or {}),
        }
        wire: dict[str, Any] = {"results": table, "breaks": breaks or {}, "down": self._down}
        (self.folder / "wire.json").write_text(json.dumps(wire), encoding="utf-8")
        run = play(self.folder)
        self.said = run.stdout + run.stderr
        assert (run.returncode == 0) is succeeds, self.said
        return log_of(self.folder)
