# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""deploy gives a host what another one compiled: its plays from the look at the servers on, on a real engine.

Each host has folders and a port of its own on this machine. The program in the containers stands in for vLLM. What a
host does without another one that is lost is in tests/plays/test_caches_fleet.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.tests.plays.deployments import FIRST
from ansible_collections.gpufleet.vllm.tests.plays.wired import COLLECTIONS, ROOT
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

if TYPE_CHECKING:
    from docker import DockerClient

COMPILED = "cache/vllm/torch_compile_cache/1a/graph"
VARIABLES = {"STAND_IN_COMPILES": "/root/.cache/vllm/torch_compile_cache/1a/graph", "STAND_IN_COMPILE_S": "4"}


class Hosts:
    """Hosts without a server, and deploy.

    Args:
        folder: of the test; each host has one in it.
        image: the stand-in's.
        docker_host: address of the engine.
        prefix: of the containers' names.
    """

    def __init__(self, folder: Path, image: str, docker_host: str, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        plays = yaml.safe_load((ROOT / "playbooks" / "deploy.yml").read_text(encoding="utf-8"))[:2]
        names = [task["name"] for task in plays[0]["tasks"]]
        plays[0]["tasks"] = plays[0]["tasks"][names.index(FIRST) :]
        (folder / "plays.yml").write_text(json.dumps(plays), encoding="utf-8")
        source = {"kind": "path", "location": str(model), "mount": str(model), "argument": "/models/stand-in"}
        self._plan = {
            "image": {"reference": image, "tag": image, "digest": ""},
            "model_source": source,
            "device": "cpu",
            "gpu_access": "none",
            "network_mode": "bridge",
        }
        self._common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vllm_venv": sys.prefix,
            "vllm_accept_license": True,
            "vllm_caches_from": "fleet",
            "vllm_docker_host": docker_host,
            "vllm_ready_timeout": 60,
            "vllm_ca_bundle": "",
        }
        self._ports: dict[str, int] = {}

    def at(self, host: str) -> Path:
        """Return the folder of a host."""
        return self.folder / host

    def variables(self, host: str, **config: Any) -> dict[str, Any]:
        """Return the variables of a host, with its plan."""
        port = self._ports.setdefault(host, free_port())
        options = {name.replace("_", "-"): value for name, value in config.items()}
        replica = {
            "name": f"{self.prefix}-{host}-0",
            "host": "127.0.0.1",
            "port": port,
            "config": {"host": "0.0.0.0", "port": 8000, "served-model-name": "stand-in", **options},
            "environment": VARIABLES,
            "gpus": [],
            "gpu_uuids": [],
            "tensor_parallel_size": 1,
        }
        return {
            "vllm_plan": {**self._plan, "replicas": [replica]},
            "vllm_container_prefix": f"{self.prefix}-{host}",
            "vllm_config_dir": str(self.at(host) / "etc"),
            "vllm_hf_home": str(self.at(host) / "hf"),
            "vllm_cache_dir": str(self.at(host) / "cache"),
        }

    def deploy(self, *hosts: str, forks: int = 5, **config: Any) -> str:
        """Deploy to some hosts, and return what was said."""
        servers = {host: self.variables(host, **config) for host in hosts}
        inventory = {"all": {"vars": self._common, "children": {"vllm": {"hosts": servers}}}}
        (self.folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_FORKS": str(forks),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "controller"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "plays.yml"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert list((self.folder / "controller").glob("*")) == [], "something is left on the controller"
        return said

    def ready_s(self, said: str, host: str) -> int:
        """Return after how many seconds the server of a host was ready."""
        found = re.search(rf"{self.prefix}-{host}-0: \w+ .*ready after (\d+) s", said)
        assert found, said
        return int(found[1])

    def compiled(self, host: str) -> str:
        """Return what a host has compiled."""
        return (self.at(host) / COMPILED).read_text()


@pytest.fixture
def hosts(engine: DockerClient, docker_host: str, run_name: str, stand_in: str, tmp_path: Path) -> Iterator[Hosts]:
    """Hosts without servers."""
    made = Hosts(tmp_path, stand_in, docker_host, f"{run_name}-warm")
    yield made
    for container in engine.containers.list(all=True, ignore_removed=True):
        if str(container.name).startswith(f"{made.prefix}-"):
            container.remove(force=True)


def test_new_hosts_start_with_what_a_ready_one_compiled(hosts: Hosts) -> None:
    first = hosts.deploy("one")
    assert "compile caches" not in first
    second = hosts.deploy("one", "two", "three")
    assert second.count("compile caches: 0.0 MiB from one") == 2, second
    assert hosts.compiled("two") == hosts.compiled("three") == "compiled"
    cold, warm = hosts.ready_s(first, "one"), hosts.ready_s(second, "two")
    assert cold - warm >= 3, (cold, warm)
    third = hosts.deploy("one", "two", "three")
    assert third.count("changed=0") == 3
    assert "compile caches" not in third
    # By another plan the first host that has its turn compiles, and gives it to the others.
    fourth = hosts.deploy("one", "two", "three", forks=1, max_num_seqs=7)
    assert (fourth.count("ok: [two -> one]"), fourth.count("ok: [three -> one]")) == (1, 1), fourth


def test_hosts_that_start_together_wait_for_none(hosts: Hosts) -> None:
    said = hosts.deploy("one", "two")
    assert "compile caches" not in said
    assert hosts.compiled("one") == hosts.compiled("two") == "compiled"


def test_damaged_caches_cost_a_second_start_and_no_more(hosts: Hosts) -> None:
    hosts.deploy("one")
    (hosts.at("one") / COMPILED).write_text("damaged")
    said = hosts.deploy("one", "two")
    assert "from one" in said
    assert "did not start with the caches that came from one (compile-cache-damaged" in " ".join(said.split()), said
    assert hosts.compiled("two") == "compiled"
    assert hosts.deploy("one", "two").count("changed=0") == 2


def test_a_host_that_gives_nothing_is_told_and_others_start_cold(hosts: Hosts) -> None:
    hosts.deploy("one")
    shutil.rmtree(hosts.at("one") / "cache" / "vllm" / "torch_compile_cache")
    said = hosts.deploy("one", "two")
    assert "starts without the caches of one: The caches in" in said, said
    assert hosts.compiled("two") == "compiled"
