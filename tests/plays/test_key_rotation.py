# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Another key for servers behind a router, by the playbook router, under requests of which each is counted.

HAProxy is this machine's, the playbook and its modules are the real ones, and the servers are stand-ins behind the real
door.py. All hosts are this machine.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control_files import control_files
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.tests.load.client import Load, Options
from ansible_collections.gpufleet.vllm.tests.plays.wired import COLLECTIONS, ROOT
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

pytestmark = pytest.mark.skipif(
    program_path("haproxy") is None or os.geteuid() != 0 or os.path.isdir("/run/systemd/system"),
    reason="no HAProxy here, or not ours to start",
)
HOSTS = ("gpu-01", "gpu-02", "gpu-03")
OLD, NEW, CLIENTS = "sk-old-4711", "sk-new-4712", "sk-client-4713"
TASK = re.compile(r"TASK \[(.*?)\]")


class Site:
    """Three hosts with a server each, and a router before them.

    Args:
        folder: for all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {host: free_port() for host in HOSTS}
        self.router_port = free_port()
        self.router = RouterService(
            str(folder / "router"), str(folder / "run"), str(folder / "state"), str(folder / "haproxy.log")
        )
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, host: str) -> None:
        """Start a host's server with the old key, as a container of it does."""
        etc = self.folder / host
        control = Control(str(etc / "control" / "vllm-0"))
        for path, text in control_files(control.folder, 0).items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text)
        (etc / "vllm-0.yaml").write_text(f"host: 127.0.0.1\nport: {self.ports[host]}\n")
        (etc / "vllm-0.env").write_text(f"VLLM_API_KEY={OLD}\n")
        replica = {"name": "vllm-0", "host": "127.0.0.1", "port": self.ports[host]}
        (etc / "plan.json").write_text(json.dumps({"replicas": [replica]}))
        stand_in = str(ROOT / "tests" / "fakes" / "vllm_stand_in.py")
        words = ["serve", "stand-in", "--config", str(etc / "vllm-0.yaml"), "--middleware", "gpufleet_door.Door"]
        environment = {**os.environ, "VLLM_API_KEY": OLD, "PYTHONPATH": control.folder, "STAND_IN_SLOW": "0.3"}
        self._servers[host] = subprocess.Popen(
            [sys.executable, stand_in, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while self.status(self.ports[host], OLD) != 200:
            assert time.monotonic() < deadline, f"the server of {host} did not start"
            time.sleep(0.1)

    def stop(self, host: str) -> None:
        """End a host's server."""
        self._servers[host].kill()
        self._servers.pop(host).wait()

    def end(self) -> None:
        """End everything that was started."""
        for host in list(self._servers):
            self.stop(host)
        self.router.remove()

    def status(self, port: int, key: str) -> int:
        """Return with what the list of models is answered; 0 for not at all."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            try:
                connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
                return connection.getresponse().status
            except OSError:
                return 0

    def taken(self, key: str) -> list[int]:
        """Return with what each server answers a key."""
        return [self.status(port, key) for port in self.ports.values()]

    def has_moved(self) -> bool:
        """Return whether the router asks with the new key."""
        return NEW in self.router.text("replica.key")

    def play(
        self, key: str, *options: str, playbook: str = "router", until: str = "", succeeds: bool = True
    ) -> list[str]:
        """Run a playbook with a key for the servers, and return the names of its tasks.

        Args:
            key: the servers' key.
            options: of ansible-playbook.
            playbook: its name.
            until: the run is killed when this task begins.
            succeeds: whether its exit status is to be 0.
        """
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vllm_api_key": key,
            "vllm_router_address": "127.0.0.1",
            "router_api_keys": [CLIENTS],
            "router_host": "127.0.0.1",
            "router_port": self.router_port,
            "router_tls": False,
            "router_manage_package": False,
            "router_check_interval_ms": 200,
            "router_dir": str(self.folder / "router"),
            "router_run_dir": str(self.folder / "run"),
            "router_state_dir": str(self.folder / "state"),
            "router_log_file": str(self.folder / "haproxy.log"),
            "router_access_log": str(self.folder / "requests" / "access.log"),
        }
        hosts = {host: {"vllm_config_dir": str(self.folder / host)} for host in HOSTS}
        groups = {"vllm": {"hosts": hosts}, "router": {"hosts": {"lb": {}}}}
        inventory = self.folder / "hosts.json"
        inventory.write_text(json.dumps({"all": {"vars": variables, "children": groups}}))
        command = [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            f"gpufleet.vllm.{playbook}",
            "-i",
            str(inventory),
            *options,
        ]
        environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "true"}
        names, said = [], []
        with subprocess.Popen(
            [*command, "--diff", "-vv"],
            env={**environment, "PYTHONUNBUFFERED": "1"},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as run:
            for line in run.stdout or ():
                said.append(line)
                if found := TASK.search(line):
                    names.append(found[1])
                    if until and until in names[-1]:
                        os.killpg(run.pid, signal.SIGKILL)
        text = "".join(said)
        assert "DEPRECATION WARNING" not in text, text
        assert not any(secret in text for secret in (OLD, NEW, CLIENTS)), "a key was shown"
        if until:
            assert run.returncode == -signal.SIGKILL, text
        else:
            assert (run.returncode == 0) is succeeds, text
        self.said = text
        return names


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site that serves with the old key."""
    found = Site(tmp_path)
    try:
        for host in HOSTS:
            found.start(host)
        found.play(OLD)
        yield found
    finally:
        found.end()


@contextlib.contextmanager
def counted(site: Site) -> Iterator[None]:
    """Send requests to the router all the while; none of them may be refused, lost or failed."""
    url = f"http://127.0.0.1:{site.router_port}"
    load = Load(Options(url=url, model="stand-in", rate=20.0, streamed_share=0.0, api_key=CLIENTS, max_tokens=2))
    load.start()
    try:
        yield
        time.sleep(1.0)
    finally:
        load.stop()
    records = load.records()
    assert len(records) > 50
    assert Counter(record.outcome for record in records) == {"answered": len(records)}, {
        record.reason for record in records
    }


def readable_with_a_key(folder: Path) -> list[Path]:
    """Return the files that others may read and that have a key in them, but for the inventory."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o044]
    return [
        path
        for path in paths
        if path.name != "hosts.json" and any(key in path.read_text(errors="replace") for key in (OLD, NEW, CLIENTS))
    ]


def test_a_run_changes_the_key_and_loses_nothing_and_what_is_interrupted_is_finished_by_the_next_one(
    site: Site, tmp_path: Path
) -> None:
    with counted(site):
        site.play(NEW, "--check")
        assert (site.taken(NEW), site.has_moved()) == ([401, 401, 401], False)
        site.play(NEW, "--limit", "gpu-01,gpu-02,lb", succeeds=False)
        assert "router-key-refused" in site.said and "gpu-03" in site.said
        assert (site.taken(NEW), site.has_moved()) == ([200, 200, 401], False)
        site.play(NEW, until="Run")
        assert (site.taken(OLD), site.taken(NEW), site.has_moved()) == ([200] * 3, [200] * 3, False)
        site.play(NEW, until="Let its servers take only the new key")
        assert (site.taken(OLD), site.taken(NEW), site.has_moved()) == ([200] * 3, [200] * 3, True)
        site.play(NEW)
        # The end of the old key comes by itself, and is no change; here it is brought near.
        for path in tmp_path.glob("gpu-*/control/vllm-0/keys.sha256"):
            path.write_text(re.sub(r" \d+$", f" {int(time.time()) - 1}", path.read_text(), flags=re.MULTILINE))
        assert (site.taken(OLD), site.taken(NEW)) == ([401] * 3, [200] * 3)
        site.play(NEW)
        assert not re.search(r"changed=[1-9]", site.said), site.said
    assert readable_with_a_key(tmp_path) == []


def test_a_server_that_comes_back_with_the_old_key_alone_gets_no_requests(site: Site) -> None:
    site.stop("gpu-03")
    site.play(NEW, "--limit", "gpu-01,gpu-02,lb")
    assert site.has_moved()
    with counted(site):
        site.start("gpu-03")
        assert site.taken(NEW) == [200, 200, 401]
        time.sleep(3.0)
