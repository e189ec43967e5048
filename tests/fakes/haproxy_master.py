# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's master process, as far as its socket shows it: it answers as HAProxy 2.6 does."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

STATE_HEADS = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight"
    " srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state"
    " bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr"
    " srv_agent_addr srv_agent_port"
)
ADMIN = {"ready": 0, "drain": 8, "maint": 1}


class Master:
    """A master with one worker (process id 2) and an old one (3).

    C(sessions) are the requests at each server, C(lost) how often a state that was set is gone at once, and C(dying)
    how often the worker that C(show proc) tells is gone when it is asked; C(down) are servers whose check does not
    pass.
    """

    def __init__(self) -> None:
        self.states = {"gpu-01:vllm-0": "ready", "gpu-01:vllm-1": "ready", "gpu-02:vllm-0": "ready"}
        self.sessions = {2: {"gpu-01:vllm-0": [2, 1, 0]}, 3: {"gpu-01:vllm-0": [1, 1, 1, 0]}}
        self.down: set[str] = set()
        self.commands: list[str] = []
        self.lost = self.dying = 0

    def answer(self, line: str) -> str:
        """Return what HAProxy says to a line."""
        if line == "show proc":
            return "#<PID> <type>\n1 master 0 0d 2.6\n# workers\n2 worker 0 0d 2.6\n# old workers\n3 worker 1 0d 2.6\n"
        found = re.match(r"@!(\d+) (.*)", line)
        assert found, line
        worker, command = int(found[1]), found[2]
        if self.dying:
            self.dying -= 1
            return f"Can't find the target PID matching the prefix '@!{worker}'\n"
        if command == "show stat":
            head = "# pxname,svname,scur,status,weight,check_status,check_code,last_chk,check_desc"
            lines = [head, "api,FRONTEND,9,OPEN,,,,,", "replicas,BACKEND,9,UP,3,,,,"]
            passed, refused = "UP,1,L7OK,200,OK,Layer7 check passed", "DOWN,1,L4CON,,Connection refused,Layer4 problem"
            words = {name: refused if name in self.down else passed for name in self.states}
            rows = [f"replicas,{name},{self.at(worker, name)},{word}" for name, word in words.items()]
            return "\n".join([*lines, *rows]) + "\n"
        if command == "show servers state":
            health = {name: 0 if name in self.down else 2 for name in self.states}
            rows = [
                f"4 replicas 1 {name} 10.0.0.1 {health[name]} {ADMIN[state]} 1 1 465 15 3 3 6 0 0 0 - 8000 - 0 0 - - 0"
                for name, state in self.states.items()
            ]
            return "\n".join(["1", STATE_HEADS, *rows]) + "\n"
        self.commands.append(line)
        name, state = re.fullmatch(r"set server replicas/(\S+) (?:state|health) (\w+)", command).groups()  # type: ignore[union-attr]
        if state != "down" and worker == 2:
            if self.lost:
                self.lost -= 1
            else:
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


@contextlib.contextmanager
def busy(folder: Path) -> Iterator[socket.socket]:
    """Listen in a folder with every place for a connection taken, as a master does that a whole fleet asks."""
    path = str(folder / "master.sock")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(path)
        yield listener
