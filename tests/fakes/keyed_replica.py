# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server behind a router, as far as keys go: health to everyone, the rest to who has its key."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator


class KeyedReplica:
    """One that listens at C(port); C(asked) are the paths that it was asked for, C(key) what it wants."""

    def __init__(self, key: str, port: int) -> None:
        self.key, self.port = key, port
        self.asked: list[str] = []


@contextlib.contextmanager
def serving(
    key: str, port: int = 0, host: str = "127.0.0.1", *, health_needs_key: bool = False
) -> Iterator[KeyedReplica]:
    """Serve with a key, at a free port unless one is given; health may want it, too, as behind a door of ours."""

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            open_to_all = self.path == "/health" and not health_needs_key
            known = open_to_all or self.headers["Authorization"] == f"Bearer {found.key}"
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with Server((host, port), Handler) as server:
        found = KeyedReplica(key, server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
