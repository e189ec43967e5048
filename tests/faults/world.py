# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deployments of the miniature of Scout on vLLM's CPU build, made by the playbooks as a user runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COLLECTIONS = Path(__file__).absolute().parents[5]
# The folder of the Molecule scenarios: what is expensive to make, the CPU image and the libraries, is shared with them.
SHARED = Path(os.environ.get("GPUFLEET_TEST_CACHE_DIR", "/var/cache/gpufleet-tests")) / "molecule" / "state"
MODEL = "scout"
LONGEST_PLAY_S = 1200
ANSWER_S = 90  # behind all requests that are open, beside servers that start
# By itself each server binds its work to the first core, so that one that starts waits for the one under load.
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
# All that were started.
PLAYS: list[subprocess.Popen[str]] = []
FATAL = re.compile(r"fatal: \[localhost\]: FAILED! => (?=\{)")


@dataclasses.dataclass(frozen=True)
class Play:
    """What a run of a playbook came to.

    Attributes:
        status: its exit status.
        text: everything it printed, as the user sees it.
        failure: the result of the task that failed; empty if none did.
        changed: how many tasks changed something.
        seconds: it took.
    """

    status: int
    text: str
    failure: dict[str, Any]
    changed: int
    seconds: float

    @property
    def error(self) -> str:
        """The name of the error that the user sees, of preflight's that of its only error; empty for none of ours."""
        error = self.failure.get("error") or {}
        if error.get("name") == "preflight-failed":
            (found,) = [finding for finding in error["details"]["findings"] if finding["severity"] == "error"]
            return str(found["name"])
        return str(error.get("name", ""))

    @property
    def message(self) -> str:
        """What the failed task said."""
        return str(self.failure.get("msg", ""))


def read_play(status: int, text: str, seconds: float) -> Play:
    """Return what a play came to, from what it printed with C(ANSIBLE_CALLBACK_RESULT_FORMAT=json)."""
    failure: dict[str, Any] = {}
    found = FATAL.search(text)
    if found:
        failure = json.JSONDecoder().raw_decode(text, found.end())[0]
    changed = re.search(r"^localhost\s.*\bchanged=(\d+)", text, re.MULTILINE)
    return Play(status, text, failure, int(changed.group(1)) if changed else 0, seconds)


class Site:
    """One deployment, as a host of its own would have it: its own folders, port and names of containers.

    Args:
        engine: client of the engine.
        docker_host: its address.
        folder: for what it makes.
        prefix: of its containers' names.
        port: of its server.
        model: folder of the model.
    """

    def __init__(
        self, engine: DockerClient, docker_host: str, folder: Path, prefix: str, port: int, model: Path
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.prefix = prefix
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.config_dir = folder / "etc"
        folder.mkdir(parents=True, exist_ok=True)
        self.wishes: dict[str, Any] = {
            "vllm_docker_host": docker_host,
            "vllm_state_dir": str(SHARED),
            "vllm_config_dir": str(self.config_dir),
            "vllm_hf_home": str(folder / "huggingface"),
            "vllm_cache_dir": str(folder / "cache"),
            "vllm_port": port,
            "vllm_container_prefix": prefix,
            "vllm_model": str(model),
            "vllm_model_source": "path",
            "vllm_accept_license": True,
            "vllm_served_model_name": MODEL,
            "vllm_max_model_len": 2048,
            # What the servers of one machine take together must fit it.
            "vllm_gpu_memory_utilization": 0.1,
            "vllm_extra_config": {"load-format": "dummy"},
            "vllm_progress_interval": 0,
            "vllm_environment": dict(UNBOUND),
        }

    # Plays

    def start(
        self, playbook: str, wishes: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a playbook, in a session of its own."""
        command = [
            str(BIN / "ansible-playbook"),
            f"gpufleet.vllm.{playbook}",
            f"--inventory={ROOT / 'inventories' / 'local'}",
            f"--extra-vars={json.dumps({**self.wishes, **wishes})}",
        ]
        variables = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
            **(environment or {}),
        }
        play = subprocess.Popen(
            command,
            cwd=self.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        PLAYS.append(play)
        return play

    def play(
        self,
        playbook: str = "deploy",
        wishes: Mapping[str, Any] | None = None,
        meanwhile: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Play:
        """Run a playbook to its end, doing C(meanwhile) after its start."""
        began = time.monotonic()
        with self.start(playbook, wishes or {}, environment) as process:
            try:
                if meanwhile:
                    meanwhile()
                text, _nothing = process.communicate(timeout=LONGEST_PLAY_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # else its end is waited for
                raise
        return read_play(process.returncode, text, time.monotonic() - began)

    # The state of it

    def containers(self) -> list[Container]:
        """Return the containers of this deployment, running or not, by their names."""
        found = self.engine.containers.list(all=True, ignore_removed=True)
        ours = [box for box in found if str(box.name).startswith(self.prefix + "-")]
        return sorted(ours, key=lambda box: str(box.name))

    def server(self) -> Container:
        """Return the container of the server."""
        return self.engine.containers.get(f"{self.prefix}-0")

    def answers(self) -> bool:
        """Return whether the server completes a text."""
        body = {"model": MODEL, "prompt": "San Francisco is a", "max_tokens": 1}
        try:
            return requests.post(f"{self.url}/v1/completions", json=body, timeout=ANSWER_S).status_code == 200
        except requests.exceptions.RequestException:
            return False

    def wait_until_it_answers(self, patience: float = 300) -> None:
        """Wait until the server completes a text; raise TimeoutError if it does not."""
        wait_for(self.answers, patience, f"{self.prefix}-0 does not answer")

    def processes(self) -> dict[int, str]:
        """Return the processes in this deployment's running containers: ids on this machine, and command lines."""
        found: dict[int, str] = {}
        for box in self.containers():
            with contextlib.suppress(Exception):  # it may end at any time
                top = box.top(ps_args="-eo pid,args")
                found.update({int(row[0]): " ".join(row[1:]) for row in top["Processes"]})
        return found

    def clean(self) -> None:
        """Remove what the deployment made."""
        for box in self.containers():
            with contextlib.suppress(Exception):
                box.remove(force=True)
        as_root("rm", "-rf", str(self.folder))


def end_plays() -> None:
    """End the plays that still run, as those of a test run that is interrupted."""
    for play in PLAYS:
        if play.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(play.pid, signal.SIGKILL)


def as_root(*command: str) -> str:
    """Run a command as root and return what it printed; raise OSError with what it said if it fails."""
    words = command if os.geteuid() == 0 else ("sudo", *command)
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    if said.returncode:
        raise OSError(f"{' '.join(words)}: {said.stderr.strip()}")
    return said.stdout


def wait_for(condition: Callable[[], Any], patience: float, otherwise: str) -> Any:
    """Wait until C(condition) is true and return what it gave; raise TimeoutError if it never is."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise TimeoutError(f"{otherwise} (within {patience:.0f} s)")


@dataclasses.dataclass
class World:
    """What the provocations work with.

    Attributes:
        engine: client of the engine.
        docker_host: its address.
        run_name: the beginning of every name that this run gives.
        folder: for what is made.
        model: folder of the miniature.
        image: the CPU image's name.
        lock: held by what makes something that all share.
    """

    engine: DockerClient
    docker_host: str
    run_name: str
    folder: Path
    model: Path
    image: str
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def site(self, name: str, port: int) -> Site:
        """Return a deployment of its own."""
        return Site(self.engine, self.docker_host, self.folder / name, f"{self.run_name}-{name}", port, self.model)
