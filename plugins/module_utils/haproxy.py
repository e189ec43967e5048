# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running HAProxy, asked through the socket of its master process.

After a configuration was loaded again, the workers that had the earlier one go on until their last connection ends.
What is asked or told here is asked of and told to all of them: a server is idle when no worker has a request at it, and
a drained one gets no request through an old worker's connection either.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router_config import BACKEND

TIMEOUT_S = 5.0
POLL_S = 0.2
# For how long a master that loads a configuration may not answer.
RENEWAL_S = 2.0
STATES = ("ready", "drain", "maint")
# Of srv_admin_state: what was set here, and what came by the configuration or another server.
ADMIN_MAINT, ADMIN_DRAIN = 0x01 | 0x02 | 0x04, 0x08 | 0x10
# Of srv_op_state: running, and starting slowly.
OPERATING = (1, 2)


@dataclass(frozen=True)
class Processes:
    """What the master runs: process ids of the current worker and of those that only finish their work."""

    master: int
    current: tuple[int, ...]
    old: tuple[int, ...]

    def workers(self) -> tuple[int, ...]:
        """Return all workers, the current one first."""
        return self.current + self.old


@dataclass(frozen=True)
class Server:
    """One server as the current worker sees it.

    Attributes:
        name: in HAProxy's configuration.
        state: ready, drain or maint: what an administrator made of it, whatever its health.
        up: whether its health check passes.
        status: HAProxy's word for both, such as UP, DOWN, DRAIN or MAINT.
        sessions: requests at it now, those of old workers among them.
    """

    name: str
    state: str
    up: bool
    status: str
    sessions: int

    def usable(self) -> bool:
        """Return whether it gets requests."""
        return self.up and self.state == "ready"


class Master:
    """HAProxy's master process.

    Args:
        path: its socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def ask(self, command: str, worker: int | None = None) -> str:
        """Return the answer to a command, of the master or of the worker with that process id.

        While the master executes itself anew to load a configuration, it refuses connections for a moment.

        Raises:
            GpufleetError: C(router-not-running).
        """
        line = f"@!{worker} {command}" if worker else command
        deadline = time.monotonic() + RENEWAL_S
        while True:
            try:
                return self._ask(line)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or time.monotonic() > deadline:
                    raise GpufleetError(
                        f"The front end does not answer at {self.path}.",
                        name="router-not-running",
                        remedy="Have it run with the playbook gpufleet.vllm.router; router_run_dir must be the same in"
                        " both.",
                        evidence=str(error),
                    ) from error
                time.sleep(POLL_S)

    def _ask(self, line: str) -> str:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(self.path)
            connection.sendall(f"{line}\n".encode())
            connection.shutdown(socket.SHUT_WR)
            parts: list[bytes] = []
            while True:
                part = connection.recv(65536)
                if not part:
                    return b"".join(parts).decode(errors="replace")
                parts.append(part)

    def processes(self) -> Processes:
        """Return what runs."""
        return parse_processes(self.ask("show proc"))

    def servers(self) -> dict[str, Server]:
        """Return every server of the replicas, by its name, with the requests of all workers."""
        processes = self.processes()
        found: dict[str, Server] = {}
        for worker in processes.current:
            answers = (self.ask("show servers state", worker), self.ask("show stat", worker))
            found.update(parse_servers(*answers))
        for worker in processes.old:
            with contextlib.suppress(GpufleetError):  # it may end at any moment
                for name, (_status, sessions) in parse_loads(self.ask("show stat", worker)).items():
                    if name in found:
                        found[name] = replace(found[name], sessions=found[name].sessions + sessions)
        return found

    def set_state(self, names: Sequence[str], state: str) -> None:
        """Have every worker treat the servers as ready, drain or maint.

        Raises:
            GpufleetError: C(router-refused) when the current worker does not do it.
        """
        processes = self.processes()
        for name in names:
            for worker in processes.workers():
                answer = self.ask(f"set server {BACKEND}/{name} state {state}", worker).strip()
                if answer and worker in processes.current:
                    raise GpufleetError(
                        f"The front end does not set {name} to {state}.", name="router-refused", evidence=answer
                    )

    def distrust(self, names: Sequence[str]) -> None:
        """Have the current worker take the servers for dead until their health checks say otherwise."""
        for name in names:
            for worker in self.processes().current:
                self.ask(f"set server {BACKEND}/{name} health down", worker)

    def wait(self, names: Sequence[str], state: str, timeout: float) -> tuple[dict[str, Server], float]:
        """Wait until the servers are idle (drain, maint) or up (ready), at most C(timeout) seconds.

        Returns:
            The servers as they are then, and the seconds that it took.
        """
        started = time.monotonic()
        while True:
            found = self.servers()
            servers = {name: found[name] for name in names if name in found}
            waited = time.monotonic() - started
            done = all(server.up if state == "ready" else server.sessions == 0 for server in servers.values())
            if done or waited >= timeout:
                return servers, waited
            time.sleep(POLL_S)


def parse_processes(text: str) -> Processes:
    """Return the processes in the answer to C(show proc)."""
    found: dict[str, list[int]] = {"master": [], "worker": [], "old": []}
    old = False
    for line in text.splitlines():
        if line.startswith("#"):
            old = "old workers" in line
            continue
        match = re.match(r"(\d+)\s+(\[was: )?(master|worker)", line)
        if match:
            kind = match[3] if match[3] == "master" or not old else "old"
            found[kind].append(int(match[1]))
    return Processes(next(iter(found["master"]), 0), tuple(found["worker"]), tuple(found["old"]))


def parse_servers(states: str, statistics: str) -> dict[str, Server]:
    """Return the servers of the replicas in the answers to C(show servers state) and C(show stat)."""
    loads = parse_loads(statistics)
    lines = [line for line in states.splitlines() if line.strip()]
    heads = next((line[2:].split() for line in lines if line.startswith("# ")), [])
    found = {}
    for line in lines:
        row = dict(zip(heads, line.split()))
        name = row.get("srv_name", "")
        if row.get("be_name") == BACKEND and name in loads:
            admin = int(row["srv_admin_state"])
            state = "maint" if admin & ADMIN_MAINT else "drain" if admin & ADMIN_DRAIN else "ready"
            found[name] = Server(name, state, int(row["srv_op_state"]) in OPERATING, *loads[name])
    return found


def parse_loads(statistics: str) -> dict[str, tuple[str, int]]:
    """Return status and number of requests of each server of the replicas in the answer to C(show stat)."""
    begin = statistics.find("# pxname")
    rows = csv.DictReader(io.StringIO(statistics[begin + 2 :])) if begin >= 0 else []
    return {
        row["svname"]: (row["status"], int(row["scur"] or 0))
        for row in rows
        if row["pxname"] == BACKEND and row["svname"] not in ("BACKEND", "FRONTEND")
    }
