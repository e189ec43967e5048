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
import errno
import io
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import BACKEND, MODEL_BACKEND
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.server_states import (
    ServerStates,
    rows_of,
    set_by_command,
)

TIMEOUT_S = 5.0
AGAIN_S = 0.2
# Its socket takes about ten connections at once, and a whole fleet may wait for it.
POLL_S = 1.0
# For how long a master that loads a configuration may refuse connections.
RENEWAL_S = 5.0
# For how long one that runs may not answer, such as on a machine that is busy.
PATIENCE_S = 30.0
NOT_RUNNING = (errno.ENOENT, errno.ECONNREFUSED)
PASSING = (errno.EAGAIN, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EINTR)
# For how long a state that gets lost is set again once the time is over.
LOST_S = 3.0
# Of the answers to show servers state and show stat.
STATES_HEAD, STATISTICS = "# be_id ", "# pxname"
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
class BackendServer:
    """One server as the current worker sees it.

    Attributes:
        name: in HAProxy's configuration.
        state: ready, drain or maint: what an administrator made of it, whatever its health.
        up: whether its health check passes.
        status: HAProxy's word for both, such as UP, DOWN, DRAIN or MAINT.
        sessions: requests at it now, for all its models, those of old workers among them.
        routes: backends by which it gets requests for its models; none where all replicas serve the same.
    """

    name: str
    state: str
    up: bool
    status: str
    sessions: int
    routes: frozenset[str] = frozenset()

    def serves_as(self, other: BackendServer) -> bool:
        """Return whether another server has a model of this one, too, by the same name."""
        return self.routes == other.routes or bool(self.routes & other.routes)

    def usable(self) -> bool:
        """Return whether it gets requests."""
        return self.up and self.state == "ready"


class Master:
    """HAProxy's master process.

    Args:
        path: its socket.
        state_dir: folder of what the router keeps over a reboot.
    """

    def __init__(self, path: str, state_dir: str) -> None:
        self.path = path
        self.states = ServerStates(state_dir)

    def ask(self, command: str, worker: int | None = None) -> str:
        """Return the answer to a command, of the master or of the worker with that process id.

        Raises:
            GpufleetError: C(router-not-running) where nothing listens, C(router-not-answering) for everything else.
        """
        line = f"@!{worker} {command}" if worker else command
        started = time.monotonic()
        while True:
            try:
                with self._connected() as connection:
                    return _say(connection, line)
            except OSError as error:
                self._retry_or_raise(error, started)

    def reload(self) -> None:
        """Ask for a reload, once; the master executes itself anew and may hang up without an answer.

        Raises:
            GpufleetError: C(router-not-running) or C(router-not-answering).
        """
        started = time.monotonic()
        while True:
            try:
                connection = self._connected()
                break
            except OSError as error:
                self._retry_or_raise(error, started)
        with connection, contextlib.suppress(OSError):
            _say(connection, "reload")

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(TIMEOUT_S)
            connection.connect(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _retry_or_raise(self, error: OSError, started: float) -> None:
        """Pause before the next attempt, or raise the error when there is none."""
        waited = time.monotonic() - started
        if error.errno in NOT_RUNNING:
            if error.errno == errno.ENOENT or waited > RENEWAL_S:
                raise GpufleetError(
                    f"The router does not run: nothing listens at {self.path}.",
                    name="router-not-running",
                    remedy="Have it run with the playbook gpufleet.vllm.router; router_run_dir must be the same in"
                    " both.",
                    evidence=str(error),
                ) from error
        elif waited > PATIENCE_S or not (isinstance(error, socket.timeout) or error.errno in PASSING):
            raise self._silent(str(error)) from error
        # Those who were turned away together do not come again together.
        time.sleep(AGAIN_S * (1 + os.getpid() % 10 / 10))

    def _silent(self, evidence: str) -> GpufleetError:
        return GpufleetError(
            f"The router cannot be asked at {self.path}, and may well run.",
            name="router-not-answering",
            remedy="Run the play again when its host is less busy; it needs become: true there. If it stays so, look at"
            " the router's messages (router_log_file, or journalctl --unit gpufleet-router) and restart it.",
            evidence=evidence,
        )

    def processes(self) -> Processes:
        """Return what runs."""
        return parse_processes(self.ask("show proc"))

    def servers(self) -> dict[str, BackendServer]:
        """Return every server of the replicas, by its name, with the requests of all workers.

        Raises:
            GpufleetError: C(router-not-running), or C(router-not-answering), also where no worker does.
        """
        found = parse_servers(self.states_now(), self._ask_current("show stat", STATISTICS))
        for worker in self.processes().old:
            for name, (_status, sessions) in parse_loads(self.ask("show stat", worker)).items():
                if name in found:
                    found[name] = replace(found[name], sessions=found[name].sessions + sessions)
        return found

    def states_now(self) -> str:
        """Return the answer of the current worker to C(show servers state).

        Raises:
            GpufleetError: C(router-not-running) or C(router-not-answering).
        """
        return self._ask_current("show servers state", STATES_HEAD)

    def statistics(self) -> str:
        """Return the answer of the current worker to C(show stat).

        Raises:
            GpufleetError: C(router-not-running) or C(router-not-answering).
        """
        return self._ask_current("show stat", STATISTICS)

    def _ask_current(self, command: str, head: str) -> str:
        """Return the answer of the current worker, which has this head; the worker may be replaced at any moment."""
        started = time.monotonic()
        while True:
            for worker in self.processes().current:
                answer = self.ask(command, worker)
                if head in answer:
                    return answer
            if time.monotonic() - started > PATIENCE_S:
                raise self._silent("no worker of it answers")
            time.sleep(AGAIN_S)

    def set_state(self, names: Sequence[str], state: str) -> None:
        """Tell every worker, and those that are yet to start, to treat the servers as ready, drain or maint.

        Raises:
            GpufleetError: C(router-refused) when the current worker does not do it.
        """
        with self.states.held("set state"):
            refused = {name: self._set(name, state) for name in names}
            self.keep_states()
        for name, answer in refused.items():
            if answer:
                raise GpufleetError(
                    f"The router does not set {name} to {state}.", name="router-refused", evidence=answer
                )

    def _set(self, name: str, state: str) -> str:
        """Set one server's state; return what the current worker has against it."""
        refused = ""
        for worker in self.processes().workers():
            answer = self.ask(f"set server {BACKEND}/{name} state {state}", worker).strip()
            if answer and worker in self.processes().current:
                refused = answer
        return refused

    def keep_states(self) -> None:
        """Write down what an administrator took out, for workers that start later."""
        self.states.write(set_by_command(self.states_now()))

    def distrust(self, names: Sequence[str]) -> None:
        """Tell the current worker that the servers are dead until their health checks say otherwise."""
        for name in names:
            for worker in self.processes().current:
                self.ask(f"set server {BACKEND}/{name} health down", worker)

    def wait(self, names: Sequence[str], state: str, timeout: float) -> tuple[dict[str, BackendServer], float]:
        """Wait until the servers are idle (drain, maint) or up (ready), at most C(timeout) seconds.

        The state is set again where it got lost, as when a new worker took over at that moment.

        Returns:
            The servers as they are then, and the seconds that it took.

        Raises:
            GpufleetError: C(router-refused) when a server does not stay in that state.
        """
        started = time.monotonic()
        while True:
            found = self.servers()
            servers = {name: found[name] for name in names if name in found}
            waited = time.monotonic() - started
            lost = [name for name, server in servers.items() if server.state != state]
            done = all(server.up if state == "ready" else server.sessions == 0 for server in servers.values())
            if not lost and (done or waited >= timeout):
                return servers, waited
            if lost and waited >= timeout + LOST_S:
                raise GpufleetError(
                    f"The router does not keep {', '.join(lost)} at {state}: it is {servers[lost[0]].state} again.",
                    name="router-refused",
                    remedy="See that no other program sets it meanwhile.",
                )
            if lost:
                self.set_state(lost, state)
            time.sleep(min(POLL_S, max(timeout - waited, AGAIN_S)))


def _say(connection: socket.socket, line: str) -> str:
    """Send a line and return the whole answer."""
    connection.sendall(f"{line}\n".encode())
    connection.shutdown(socket.SHUT_WR)
    parts: list[bytes] = []
    while True:
        part = connection.recv(65536)
        if not part:
            return b"".join(parts).decode(errors="replace")
        parts.append(part)


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


def parse_servers(states: str, statistics: str) -> dict[str, BackendServer]:
    """Return the servers of the replicas in the answers to C(show servers state) and C(show stat)."""
    loads = parse_loads(statistics)
    of: dict[str, list[str]] = {}
    for row in _server_rows(statistics):
        if row["pxname"] != BACKEND:
            of.setdefault(row["svname"], []).append(row["pxname"])
    found = {}
    for row in rows_of(states):
        name = row["srv_name"]
        if name in loads:
            admin = int(row["srv_admin_state"])
            state = "maint" if admin & ADMIN_MAINT else "drain" if admin & ADMIN_DRAIN else "ready"
            up, routes = int(row["srv_op_state"]) in OPERATING, frozenset(of.get(name, ()))
            found[name] = BackendServer(name, state, up, *loads[name], routes)
    return found


def parse_loads(statistics: str) -> dict[str, tuple[str, int]]:
    """Return status and number of requests of each server of the replicas in the answer to C(show stat)."""
    rows = _server_rows(statistics)
    running: dict[str, int] = {}
    for row in rows:
        running[row["svname"]] = running.get(row["svname"], 0) + int(row["scur"] or 0)
    return {row["svname"]: (row["status"], running[row["svname"]]) for row in rows if row["pxname"] == BACKEND}


def _server_rows(statistics: str) -> list[dict[str, str]]:
    """Return the rows of the replicas, one for each backend that has it."""
    begin = statistics.find(STATISTICS)
    rows = csv.DictReader(io.StringIO(statistics[begin + 2 :])) if begin >= 0 else []
    return [
        row
        for row in rows
        if (row["pxname"] == BACKEND or row["pxname"].startswith(MODEL_BACKEND))
        and row["svname"] not in ("BACKEND", "FRONTEND")
    ]
