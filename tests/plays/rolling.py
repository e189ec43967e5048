# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollouts through hosts that are not there, behind a front end whose HAProxy is a double, for tests."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import rollout

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = Path(rollout.__file__).parents[5]
REPLICA = {"name": "vllm-0", "host": "0.0.0.0", "port": 8000, "gpus": [0], "config": {}, "environment": {}}
PLAN = {
    "model": "m",
    "device": "cuda",
    "gpu_access": "toolkit",
    "network_mode": "bridge",
    "model_source": {"kind": "path"},
    "image": {"reference": "r:1", "tag": "t:1", "platform": "linux/amd64", "source": "present", "digest": ""},
    "replicas": [REPLICA],
}
SYSTEM = {"operating_system": "Linux", "architecture": "x86_64", "platform": "linux/amd64", "euid": 0}
RESULTS: dict[str, dict[str, Any]] = {
    "vllm_image": {"changed": False},
    "vllm_gpu_access": {"changed": False},
    "vllm_config": {"changed": True},
    "vllm_server": {"changed": True, "replicas": [], "removed": []},
    "vllm_server_info": {"plan": PLAN, "servers": [], "deployments": []},
    "vllm_completion": {"changed": False},
    "vllm_accuracy": {"changed": False, "gates": []},
    "vllm_benchmark": {"changed": False, "gates": []},
    "router_server": {"changed": False, "action": "none", "diff": []},
    "router_certificate": {"changed": False, "certificate": ""},
    "host_info": {
        "system": SYSTEM,
        "venv": {"satisfied": True, "exists": True},
        "engine": {"running": True},
        "ca_bundle": None,
        "programs": {"haproxy": "/usr/sbin/haproxy", "openssl": "/usr/bin/openssl"},
    },
    "gpu_info": {"gpus": [], "driver_version": ""},
    "slurp": {"content": base64.b64encode(json.dumps(PLAN).encode()).decode(), "encoding": "base64"},
}
ARRANGED = """
- hosts: vllm
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: gpufleet.vllm.rollout, tasks_from: arrange}
- ansible.builtin.import_playbook: gpufleet.vllm.rollout
"""


class Rolling:
    """A fleet and the rollouts through it.

    Args:
        folder: for what this writes, with the sockets of the front end and the rollouts' state.
        hosts: with their variables.
    """

    def __init__(self, folder: Path, hosts: dict[str, dict[str, Any]]) -> None:
        self.folder, self.hosts, self.said = folder, hosts, ""
        self.state_dir = folder / "state"

    def run(
        self,
        playbook: str = "",
        *,
        succeeds: bool,
        results: dict[str, Any] | None = None,
        breaks: dict[str, str] | None = None,
        **variables: Any,
    ) -> list[list[str]]:
        """Run a playbook, by default from the arrangement of an upgrade on, and return the log of this run."""
        common = {
            "ansible_connection": "wire",
            "ansible_python_interpreter": sys.executable,
            "vllm_venv": sys.prefix,
            "vllm_accept_license": True,
            "vllm_plan": PLAN,
            "vllm_rollout_batches": [1],
            "vllm_rollout_verify_canary": ["basic"],
            "vllm_rollout_state_dir": str(self.state_dir),
            "vllm_baseline_dir": str(self.folder / "baselines"),
            "router_run_dir": str(self.folder),
            "router_host": "127.0.0.1",
            **variables,
        }
        groups = {"vllm": {"hosts": self.hosts}, "router": {"hosts": {"lb": {}}}}
        inventory = {"all": {"children": groups, "vars": common}}
        (self.folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
        plays = f"- ansible.builtin.import_playbook: gpufleet.vllm.{playbook}\n" if playbook else ARRANGED
        (self.folder / "plays.yml").write_text(plays, encoding="utf-8")
        wire = {"results": {**RESULTS, **(results or {})}, "breaks": breaks or {}}
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
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_NOCOLOR": "true",
                "GPUFLEET_WIRE": str(self.folder),
            },
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        self.said = run.stdout + run.stderr
        (self.folder / "said").write_text(self.said, encoding="utf-8")
        assert (run.returncode == 0) is succeeds, self.said
        log = self.folder / "log"
        return [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []

    def last(self) -> dict[str, Any]:
        """Return what is kept of the hosts of the last rollout, by host."""
        text = (self.state_dir / "last.json").read_text(encoding="utf-8")
        hosts: dict[str, Any] = json.loads(text)["hosts"]
        return hosts


def changed(*, serves: bool = True, changes: tuple[str, ...] = ("x",), before: str = "before") -> dict[str, Any]:
    """Return the variables of a host for which the preparation found that."""
    return {
        "__vllm_prepared": {"plan": PLAN, "changes": list(changes), "serves": serves, "gates": {"floors": []}},
        "__vllm_rollout_before": {"deployment": before},
    }
