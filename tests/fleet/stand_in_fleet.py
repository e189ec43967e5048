# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet on one machine: hosts whose server is tests/fakes/vllm_stand_in.py, behind a real HAProxy.

Each host has an address of the loopback network, folders and containers of its own on one Docker engine; the
collection's own playbooks work on them. Everything is in a temporary folder and under names made of it, so that several
fleets stand beside each other; what this started is ended by its id.

As in tests/bench/bench_deploy.py, Docker asks for the servers' health once an hour here, not every 15 s, by one changed
number in a copy of the collection: the health checks of 40 idle hosts would take the processors that the plays need.
HAProxy asks for it as often as always.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import on_systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import service
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import FOLDER as FOLDER_OF_MARKS
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.tests.bench.bench_deploy import (
    BIN,
    PORTS_APART,
    ROOT,
    altered_collection,
    variables,
)
from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import debian_program
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import import_stand_in

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

ROUTER = "lb"
MODEL = "stand-in"
CLIENT_KEY, REPLICA_KEY = "fleet-client-key", "fleet-replica-key"
FIRST_LENGTH, SECOND_LENGTH = 1024, 2048
LINES_OF_A_START = 13  # between which the stand-in waits
LONGEST_PLAY_S = 1800.0
SHOWN_OF_LOG = 6000
QUIET_LOOKS = 3  # without a container, a second apart, before the fleet is taken to be gone
# Of fifty hosts, apart from those of other fleets on this machine.
FIRST_PORT = 12000 + os.getpid() % 20 * 1000
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class At:
    """What is done at a step of a play, see callback/at_step.py.

    Attributes:
        host: whose step.
        task: its name.
        nth: of that name on that host, from 1.
        do: a line for the shell; C($PLAY) is the id of ansible-playbook.
        begins: whether it is done when the step begins, not when it has ended.
    """

    host: str
    task: str
    nth: int
    do: str
    begins: bool = False

    def environment(self) -> dict[str, str]:
        """Return the variables by which the callback is told."""
        at = {"host": self.host, "task": self.task, "nth": self.nth, "begins": self.begins}
        return {"GPUFLEET_AT": json.dumps(at), "GPUFLEET_AT_DO": self.do}


@dataclass
class Played:
    """What became of a play: its exit status, what it printed, when it ran (seconds since the epoch), its steps."""

    playbook: str
    status: int
    text: str
    began: float
    ended: float
    steps: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class StandInFleet:
    """The fleet; C(with StandInFleet(...) as fleet:) removes it at the end.

    Args:
        size: number of hosts.
        docker_host: address of the engine.
        start_s: seconds that a server takes to start.
        token_s: seconds between two tokens of a stream.
        forks: of every play that does not say otherwise.
        wishes: variables of all hosts, besides those that make the fleet.

    Attributes:
        environment: further variables of the environment of every play.
        collections: where the plays find the collection.
        known: the only variables of the collection in the inventory, for a version that has no others; None for all.
    """

    def __init__(
        self,
        size: int,
        docker_host: str,
        *,
        start_s: float = 4.0,
        token_s: float = 0.1,
        forks: int = 10,
        wishes: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine: DockerClient = connect(docker_host)
        self.hosts = [f"host-{number:02d}" for number in range(1, size + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="gpufleet-fleet-"))
        self.forks = forks
        self.wishes: dict[str, Any] = {"vllm_max_model_len": FIRST_LENGTH, **(wishes or {})}
        self.key = REPLICA_KEY
        self.environment: dict[str, str] = {}
        self.collections = self.folder / "collections"
        self.known: frozenset[str] | None = None
        self._docker_host = docker_host
        self._delays = {"STAND_IN_DELAY": str(round(start_s / LINES_OF_A_START, 3)), "STAND_IN_PACE": str(token_s)}
        self._plays: list[subprocess.Popen[bytes]] = []
        self._image = f"{self.folder.name.replace('_', '0')}/stand-in:1"  # an image has no _ behind a -
        self.router_port = free_port()

    def __enter__(self) -> StandInFleet:
        """Make the image and the copy of the collection; the hosts have nothing yet."""
        try:
            if on_systemd() and os.path.exists(service.UNIT.path):
                raise SystemExit(f"This machine is a router already ({service.UNIT.path}); take another one.")
            import_stand_in(self.engine, self._image, debian_program("busybox-static", "bin/busybox"))
            altered_collection(self.collections)
            (self.folder / "dead").mkdir()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        """Remove everything."""
        self.close()

    def close(self) -> None:
        """End the plays, the router and the servers that this started, and remove their files."""
        for play in self._plays:
            if play.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(play.pid, signal.SIGKILL)
                play.wait()
        if (self.folder / "router").exists():
            folders = (str(self.folder / "router"), self.run_dir, str(self.folder / "router-state"))
            service.RouterService(*folders, str(self.folder / "router.log")).remove()
        while left := processes_of(self.folder):
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)
        self._remove_containers()
        with contextlib.suppress(Exception):  # it was not made
            self.engine.images.remove(self._image, force=True)
        self.engine.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_containers(self) -> None:
        """Remove the fleet's containers; the engine may still create one that a killed module had asked for."""
        from docker.errors import NotFound

        quiet = 0
        while quiet < QUIET_LOOKS:
            boxes = self.engine.containers.list(
                all=True, ignore_removed=True, filters={"name": f"^/?{self.folder.name}-"}
            )
            for box in boxes:
                with contextlib.suppress(NotFound):
                    box.remove(force=True)
            quiet = 0 if boxes else quiet + 1
            time.sleep(1)

    # What it is

    @property
    def run_dir(self) -> str:
        """The folder of HAProxy's sockets."""
        return str(self.folder / "run")

    @property
    def url(self) -> str:
        """The router's address."""
        return f"https://127.0.0.1:{self.router_port}"

    @property
    def certificate(self) -> str:
        """The file with which a client checks it."""
        return str(self.folder / "certificates" / f"{ROUTER}.pem")

    def address(self, host: str) -> str:
        """Return a host's own address, which no other fleet has at the same time."""
        number = self.hosts.index(host)
        return f"127.{16 + os.getpid() % 224}.{number // 250}.{number % 250 + 1}"

    def port(self, host: str) -> int:
        """Return a host's port; containers of one engine and one port are taken to be in each other's way."""
        return FIRST_PORT + self.hosts.index(host) * PORTS_APART

    def prefix(self, host: str) -> str:
        """Return how the names of a host's containers begin."""
        return f"{self.folder.name}-{host}"

    def host_of(self, container: str) -> str | None:
        """Return the host of the container of that name; None if it is not of this fleet."""
        for host in self.hosts:
            if container.startswith(f"{self.prefix(host)}-"):
                return host
        return None

    def containers(self) -> dict[str, list[str]]:
        """Return the names of each host's containers, running or not, without what they have in common."""
        found: dict[str, list[str]] = {host: [] for host in self.hosts}
        for box in self.engine.containers.list(all=True, ignore_removed=True):
            host = self.host_of(str(box.name))
            if host:
                found[host].append(str(box.name).removeprefix(f"{self.prefix(host)}-"))
        return {host: sorted(names) for host, names in found.items()}

    def create_container(self, host: str, labels: Mapping[str, str]) -> Container:
        """Create a container of a host that no play knows, and do not start it."""
        return self.engine.containers.create(self._image, name=f"{self.prefix(host)}-other", labels=dict(labels))

    def served(self) -> dict[str, int]:
        """Return the longest request of what each host serves now; 0 for a host that does not serve."""
        return {host: self._length(host) for host in self.hosts}

    def _length(self, host: str) -> int:
        import requests

        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            answer = requests.get(
                f"http://{self.address(host)}:{self.port(host)}/v1/models", headers=headers, timeout=10
            )
            return int(answer.json()["data"][0]["max_model_len"])
        except (requests.exceptions.RequestException, LookupError, ValueError, TypeError):
            return 0

    def die(self, host: str) -> str:
        """Return the line for the shell that makes a host stop answering to Ansible."""
        return f"touch {self.folder / 'dead' / host}"

    def revive(self) -> None:
        """Make all hosts answer again."""
        for path in (self.folder / "dead").iterdir():
            path.unlink()

    # What a person does with it

    def _write_inventory(self) -> Path:
        common = {
            **variables(self._image, self._docker_host),
            "ansible_connection": "mortal",
            "ansible_python_interpreter": "/usr/bin/python3",
            "vllm_served_model_name": MODEL,
            "vllm_environment": self._delays,
            "vllm_api_key": self.key,
            "vllm_completion_chat": "false",
            "vllm_drain_timeout": 120,
            "vllm_report_dir": str(self.folder / "reports"),
            "vllm_rollout_verify_canary": ["basic"],
            "vllm_baseline_dir": str(self.folder / "baselines"),
            "router_host": "127.0.0.1",
            "router_port": self.router_port,
            "router_names": ["127.0.0.1", "localhost"],
            "router_api_keys": [CLIENT_KEY],
            "router_certificate_dir": str(self.folder / "certificates"),
            "router_dir": str(self.folder / "router"),
            "router_run_dir": self.run_dir,
            "router_state_dir": str(self.folder / "router-state"),
            "router_log_file": str(self.folder / "router.log"),
            "router_access_log": str(self.folder / "requests" / "access.log"),
            **self.wishes,
        }
        each = {
            host: {
                "vllm_host": self.address(host),
                "vllm_port": self.port(host),
                "vllm_router_address": self.address(host),
                "vllm_state_dir": str(self.folder / host / "state"),
                "vllm_config_dir": str(self.folder / host / "etc"),
                "vllm_container_prefix": self.prefix(host),
            }
            for host in self.hosts
        }
        each = {host: self._of_version(own) for host, own in each.items()}
        common = self._of_version(common)
        groups = {"vllm": {"hosts": each}, "router": {"hosts": {ROUTER: {}}}}
        path = self.folder / "hosts.json"
        path.write_text(json.dumps({"all": {"children": groups, "vars": common}}), encoding="utf-8")
        return path

    def _of_version(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in variables.items()
            if self.known is None or name in self.known or not name.startswith(("vllm_", "router_"))
        }

    def start(
        self,
        playbook: str,
        *,
        limit: str = "",
        forks: int = 0,
        at: At | None = None,
        name: str = "play",
        words: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a playbook in a session of its own, with further words of its command line.

        Its output and steps go to files named C(name).
        """
        command = [str(BIN / "ansible-playbook"), f"gpufleet.vllm.{playbook}", f"--inventory={self._write_inventory()}"]
        command += [f"--limit={limit}"] if limit else []
        command += words
        (self.folder / f"{name}.steps").unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_CONNECTION_PLUGINS": str(HERE / "connection"),
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": str(forks or self.forks),
            "GPUFLEET_DEAD_HOSTS": str(self.folder / "dead"),
            "GPUFLEET_STEPS": str(self.folder / f"{name}.steps"),
            **({**at.environment(), "GPUFLEET_PLAY": f"{self.folder.name}-{name}"} if at else {}),
            **self.environment,
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            play = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._plays.append(play)
        return play

    def run(
        self,
        playbook: str,
        *,
        limit: str = "",
        forks: int = 0,
        at: At | None = None,
        name: str = "play",
        words: Sequence[str] = (),
    ) -> Played:
        """Run a playbook to its end, however it ends."""
        began = time.time()
        play = self.start(playbook, limit=limit, forks=forks, at=at, name=name, words=words)
        return self.finish(play, playbook, began, name)

    def finish(self, play: subprocess.Popen[bytes], playbook: str, began: float, name: str = "play") -> Played:
        """Wait for a play that was started, and return what became of it."""
        status = play.wait(LONGEST_PLAY_S)
        text = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return Played(playbook, status, text, began, time.time(), read_steps(self.folder / f"{name}.steps"))

    def must(self, playbook: str, **options: Any) -> Played:
        """Run a playbook; raise SystemExit with the end of what it said unless it succeeds."""
        played = self.run(playbook, **options)
        if played.status != 0:
            raise SystemExit(f"{playbook} exited {played.status}:\n{played.text[-SHOWN_OF_LOG:]}")
        return played

    def deploy_first(self) -> Played:
        """Deploy all hosts and the router; the first host alone where the libraries that all share are not there."""
        if not os.path.exists(os.path.join(variables("x:1", "")["vllm_venv"], "bin", "python")):
            self.must("deploy", limit=f"{self.hosts[0]},{ROUTER}")
        return self.must("deploy", forks=4 * (os.cpu_count() or 1))

    def put_right(self) -> None:
        """Forget what was begun, have the router send requests to every host, and deploy: for what the plays cannot."""
        shutil.rmtree(self.folder / "reports", ignore_errors=True)
        shutil.rmtree(self.folder / "router-state" / FOLDER_OF_MARKS, ignore_errors=True)
        master = Master(os.path.join(self.run_dir, MASTER_SOCKET), str(self.folder / "router-state"))
        master.set_state(list(master.servers()), "ready")
        self.must("deploy")


def processes_of(folder: Path) -> list[int]:
    """Return the processes that the plays of a fleet have started: killed ones leave modules at work."""
    mark = f"GPUFLEET_DEAD_HOSTS={folder / 'dead'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return what the callback has written; nothing where it had no time to."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def free_port() -> int:
    """Return a port that is free at every address of this machine now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def as_root(arguments: Sequence[str]) -> int | None:
    """Run this program again as root unless it runs so: its exit status, or None as root."""
    if os.geteuid() == 0:
        return None
    kept = [f"{name}={os.environ[name]}" for name in ("PYTHONPATH", "DOCKER_HOST") if name in os.environ]
    return subprocess.run(["sudo", "-E", "env", *kept, sys.executable, sys.argv[0], *arguments], check=False).returncode
