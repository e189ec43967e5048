# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server behind a router that tells which one it is, and what it was sent."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.door import GPUS_HEADER, told_in


class ModelReplica:
    """One that listens at C(port); C(bodies) are the lengths of what it was sent, C(hold) makes it wait that long.

    C(broken) has it hang up instead of answering.
    """

    def __init__(self, name: str) -> None:
        self.name, self.port, self.hold = name, 0, 0.0
        # Where its host writes what it found of the GPUs, for the door to tell.
        self.control = ""
        self.bodies: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.most = 0
        self.broken = False
        self.lock = threading.Lock()


class Server(http.server.ThreadingHTTPServer):
    """One that takes as many connections at once as a test makes."""

    request_queue_size = 512
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that is gone."""

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name."""
        socketserver.TCPServer.server_bind(self)


@contextlib.contextmanager
def answering(name: str, hold: float = 0.0, port: int = 0) -> Iterator[ModelReplica]:
    """Answer each request with this name."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({"replica": name, "path": self.path})

        def do_POST(self) -> None:
            came = self._chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else self._body()
            with found.lock:
                found.bodies.append(came)
                found.headers.append({key.lower(): value for key, value in self.headers.items()})
                found.running += 1
                found.most = max(found.most, found.running)
            time.sleep(found.hold)
            if found.broken:
                self.wfile.write(b"no HTTP")
                self.close_connection = True
                return
            with found.lock:
                found.running -= 1
            self._answer({"replica": name, "path": self.path, "bytes": came})

        def _body(self) -> int:
            return self._read(int(self.headers.get("Content-Length") or 0))

        def _chunks(self) -> int:
            came = 0
            while size := int(self.rfile.readline().split(b";")[0], 16):
                came += self._read(size)
                self.rfile.readline()
            self.rfile.readline()
            return came

        def _read(self, length: int) -> int:
            left = length
            while left > 0 and (part := self.rfile.read(min(left, 1 << 20))):
                left -= len(part)
            return length - left

        def _answer(self, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if found.control:
                self.send_header(GPUS_HEADER, told_in(found.control).decode())
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    found = ModelReplica(name)
    found.hold = hold
    with Server(("127.0.0.1", port), Handler) as server:
        found.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield found
        server.shutdown()
