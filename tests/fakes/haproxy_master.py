# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's master process, as far as its socket shows it: it answers as HAProxy 2.6 does."""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

STATE_HEADS = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state"
ADMIN = {"ready": 0, "drain": 8, "maint": 1}


class Master:
    """A master with one worker (process id 2) and an old one (3); C(sessions) are the requests at each server."""

    def __init__(self) -> None:
        self.states = {"gpu-01:vllm-0": "ready", "gpu-01:vllm-1": "ready", "gpu-02:vllm-0": "ready"}
        self.sessions = {2: {"gpu-01:vllm-0": [2, 1, 0]}, 3: {"gpu-01:vllm-0": [1, 1, 1, 0]}}
        self.commands: list[str] = []

    def answer(self, line: str) -> str:
        """Return what HAProxy says to a line."""
        if line == "show proc":
            return "#<PID> <type>\n1 master 0 0d 2.6\n# workers\n2 worker 0 0d 2.6\n# old workers\n3 worker 1 0d 2.6\n"
        found = re.match(r"@!(\d+) (.*)", line)
        assert found, line
        worker, command = int(found[1]), found[2]
        if command == "show stat":
            lines = ["# pxname,svname,scur,status,weight", "api,FRONTEND,9,OPEN,", "replicas,BACKEND,9,UP,3"]
            return (
                "\n".join([*lines, *(f"replicas,{name},{self.at(worker, name)},UP,1" for name in self.states)]) + "\n"
            )
        if command == "show servers state":
            rows = [f"4 replicas 1 {name} 10.0.0.1 2 {ADMIN[state]}" for name, state in self.states.items()]
            return "\n".join(["1", STATE_HEADS, *rows]) + "\n"
        self.commands.append(line)
        name, state = re.fullmatch(r"set server replicas/(\S+) (?:state|health) (\w+)", command).groups()  # type: ignore[union-attr]
        if state != "down":
            self.states[name] = state
        return "\n"

    def at(self, worker: int, name: str) -> int:
        """Return the requests at a server now; with every look, running ones have ended."""
        left = self.sessions.get(worker, {}).get(name, [0])
        return left.pop(0) if len(left) > 1 else left[0]


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[Master]:
    """Have a master listen in a folder."""
    found = Master()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(found.answer(self.rfile.readline().decode().strip()).encode())

    server = socketserver.ThreadingUnixStreamServer(str(folder / "master.sock"), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
