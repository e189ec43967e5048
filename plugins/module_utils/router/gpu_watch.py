# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program on the router's host: asks each replica how its GPUs are, and takes those with sick ones out.

No host can tell a router what to do. Each replica's door tells in a header of C(/health) what its host found of its
GPUs and whether a sick one is a reason to take it out; the router decides, by the same rule as for every other host
that is taken out (`admission`), so that too many sick ones stay in service. A host of which one replica is out counts
as out there.

What it has taken out it takes back once the GPUs have been well for a while. What a person takes back stays in service
until something else is found. A replica that tells nothing, or only what is old, is left as it is.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import host_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.shares import share_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.admission import VARIABLE, Limit, obstacle
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    MASTER_SOCKET,
    REPLICA_KEY,
    REPLICAS,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import GPU_HEALTH, PERSON, DrainMarks
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import BackendServer, Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import (
    Replica,
    read_replicas,
    replica_key_of,
)

SETTINGS, REPORT, LOCK = "settings.json", "gpu-watch.json", "gpu-watch.lock"
# Of a replica's door.
HEADER = "x-gpufleet-gpus"
TIMEOUT_S = 3.0
AT_ONCE = 16
# What a host found longer ago says nothing of now.
OLD_S = 300.0
OUT, WANTED, ACCEPTED = "out", "wanted", "accepted"
MODE = 0o644


def ask(replica: Replica, key: str) -> dict[str, Any]:
    """Return what a replica tells of its GPUs; empty where it tells nothing."""
    connection = http.client.HTTPConnection(replica.address, replica.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {key}"} if key else {})
        told = json.loads(connection.getresponse().getheader(HEADER) or "{}")
        return told if isinstance(told, dict) else {}
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()


def ask_all(replicas: Sequence[Replica], key: str) -> dict[str, dict[str, Any]]:
    """Return what each replica tells, by its name in HAProxy."""
    if not replicas:
        return {}
    with ThreadPoolExecutor(min(AT_ONCE, len(replicas))) as pool:
        return dict(
            zip([replica.server() for replica in replicas], pool.map(lambda replica: ask(replica, key), replicas))
        )


class GpuWatch:
    """The watch of one router.

    Args:
        settings: C(directory), C(run_dir) and C(state_dir) of the router, C(max_unavailable), and C(recovered_s), how
            long GPUs have to be well.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._master = Master(os.path.join(settings["run_dir"], MASTER_SOCKET), settings["state_dir"])
        self._marks = DrainMarks(settings["state_dir"])
        self._path = os.path.join(settings["state_dir"], REPORT)
        self._known: dict[str, dict[str, Any]] = {}
        self._now = 0.0

    def look(self, now: float) -> None:
        """Ask all replicas once, act, and write down what is known.

        Raises:
            GpufleetError: as Master does, and `write-failed`.
        """
        replicas = read_replicas(read_text(self._settings["directory"], REPLICAS))
        told = ask_all(replicas, replica_key_of(read_text(self._settings["directory"], REPLICA_KEY)))
        self._now, self._known = now, read_report(self._path).get("replicas", {})
        with self._master.states.turn():
            servers = self._master.servers()
            self._known = {name: entry for name, entry in self._known.items() if name in servers}
            fresh = {name: found for name, found in told.items() if found and now - float(found.get("at", 0)) <= OLD_S}
            for replica in sorted(replicas, key=Replica.server):
                name = replica.server()
                if name in servers and name in fresh:
                    sick = fresh[name].get("sick") if fresh[name].get("action") == "drain" else []
                    self._judge(name, sick or [], servers, replica.requests)
                    if self._known.get(name, {}).get("state") == OUT:
                        servers[name] = replace(servers[name], state="drain")
        silent = sorted({replica.server() for replica in replicas} - set(fresh))
        report = {"at": now, "replicas": self._known, "silent": silent}
        write_file(self._path, json.dumps(report, indent=1) + "\n", MODE)

    def _judge(self, name: str, sick: Sequence[str], servers: Mapping[str, BackendServer], requests: int) -> None:
        """Take a replica out, or back, or leave it."""
        mark = self._marks.read(host_of(name))
        ours = mark.owner == GPU_HEALTH and name in mark.replicas
        entry = self._known.get(name) or ({"reasons": list(sick), "state": OUT, "since": self._now} if ours else None)
        if not sick:
            self._well(name, entry, mark.owner, bool(mark.run))
            return
        if entry is None or set(sick) - set(entry["reasons"]):
            entry = {"reasons": list(sick), "state": OUT if ours else WANTED, "since": self._now}
        self._known[name] = {**entry, "why": "", "well_since": 0.0}
        if entry["state"] == OUT and servers[name].state == "ready":
            self._known[name].update(state=ACCEPTED)
        elif entry["state"] == WANTED and servers[name].state == "ready":
            self._take_out(name, servers, requests)

    def _well(self, name: str, entry: dict[str, Any] | None, owner: str, in_turn: bool) -> None:
        """Put back what was taken out, once it has been well for long enough."""
        if entry is None or entry["state"] != OUT or owner == PERSON:
            self._known.pop(name, None)
            return
        entry = {**entry, "well_since": entry.get("well_since") or self._now}
        self._known[name] = entry
        if self._now - entry["well_since"] >= self._settings["recovered_s"] and not in_turn:
            self._master.set_state([name], "ready")
            if owner == GPU_HEALTH:
                self._marks.forget(host_of(name), [name])
            del self._known[name]

    def _take_out(self, name: str, servers: Mapping[str, BackendServer], requests: int) -> None:
        found = self._obstacle(name, servers, requests)
        if found:
            self._known[name].update(why=found.message)
            return
        host = host_of(name)
        self._known[name].update(state=OUT)
        if self._marks.read(host).owner in ("", GPU_HEALTH):
            # Before it is out, so that one that is killed in between takes it back.
            said = [
                reason for other, entry in self._known.items() if host_of(other) == host for reason in entry["reasons"]
            ]
            self._marks.keep(host, GPU_HEALTH, [name], reason=f"sick GPUs: {', '.join(sorted(set(said)))}")
        self._master.set_state([name], "drain")

    def _obstacle(self, name: str, servers: Mapping[str, BackendServer], requests: int) -> GpufleetError | None:
        """Return why a replica must stay in service."""
        host = host_of(name)
        degraded = {host_of(other) for other, entry in self._known.items() if entry["state"] == OUT} - {host}
        seen: dict[str, BackendServer] = {}
        for other, server in servers.items():
            if host_of(other) == host and other != name:
                # Others of its host serve on: to the rule they are those of another one.
                other = f"{host}+:{other}"
            state = "drain" if host_of(other) in degraded else server.state
            seen[other] = replace(server, name=other, state=state)
        everyone = len({host_of(other) for other in servers})
        most = share_of(self._settings["max_unavailable"], everyone, VARIABLE, least=1)
        return obstacle([host], seen, self._marks.in_turn(), Limit(str(most), requests_per_replica=requests))


def read_report(path: str) -> dict[str, Any]:
    """Return what a watch has written; empty where there is none."""
    try:
        found = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def main(folder: str) -> None:
    """Look again and again, until the settings are gone; become the new version when they name another one.

    Args:
        folder: that of the program, which has its settings.
    """
    path = os.path.join(folder, SETTINGS)
    first = json.loads(read_text(path) or "{}")
    if not first:
        return
    os.makedirs(first["run_dir"], mode=0o755, exist_ok=True)
    lock = os.open(os.path.join(first["run_dir"], LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    said = ""
    while True:
        settings = json.loads(read_text(path) or "{}")
        if not settings:
            return
        if settings["version"] != first["version"]:
            os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606  there is no shell
        try:
            GpuWatch(settings).look(time.time())
            said = ""
        except GpufleetError as error:
            # Such as a router that is being started; once is enough.
            if error.message != said:
                said = error.message
                sys.stderr.write(f"{said}\n")
        for _second in range(settings["interval"]):
            time.sleep(1)
            if not os.path.exists(path):
                return
