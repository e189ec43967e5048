# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs plays on hosts that are not there, by the connection in tests/fakes/connection/wire.py."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import rollout

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
    "vllm_ports": {"changed": False, "closed": [], "sources": []},
    "vllm_keys": {"changed": False, "keys_changed": []},
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
    - ansible.builtin.include_role: {name: gpufleet.vllm.rollout, tasks_from: schedule}
- ansible.builtin.import_playbook: gpufleet.vllm.rollout
"""


def play(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the folder's C(plays.yml) on the hosts of its C(hosts.json), with what its C(wire.json) says of them."""
    (folder / "log").unlink(missing_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "plays.yml"],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_CONNECTION_PLUGINS": str(ROOT / "tests" / "fakes" / "connection"),
            "ANSIBLE_PIPELINING": "false",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_FORKS": "6",
            "GPUFLEET_WIRE": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def log_of(folder: Path) -> list[list[str]]:
    """Return the lines of the wire's log, each as host, module, arguments and what else it says."""
    log = folder / "log"
    return [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
