# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server behind a router that answers as vLLM does, as far as its answers' form and their C(usage) go.

A request says how much it wants: C(max_tokens) letters in one JSON document with its C(usage), or, with C(stream), as
many events, and the C(usage) in the last one where C(stream_options.include_usage) asks for that.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

PROMPT_TOKENS = 7


class CountingReplica:
    """One that listens at C(port); C(bodies) are the requests that it got, C(pace) the seconds between two events."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.bodies: list[bytes] = []
        self.pace = 0.0


class Server(http.server.ThreadingHTTPServer):
    """One that many may ask at once."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


@contextlib.contextmanager
def counting() -> Iterator[CountingReplica]:
    """Serve at a free port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer({"object": "list", "data": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.bodies.append(body)
            try:
                wish = json.loads(body)
            except ValueError:
                wish = {}
            number = wish.get("max_tokens", 1)
            usage = {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": number,
                "total_tokens": PROMPT_TOKENS + number,
            }
            if wish.get("stream"):
                self.stream(number, usage if (wish.get("stream_options") or {}).get("include_usage") else None)
            else:
                self.answer({"choices": [{"text": "x" * number}], "usage": usage})

        def answer(self, document: dict[str, Any]) -> None:
            data = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def stream(self, number: int, usage: dict[str, int] | None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for _number in range(number):
                self.event({"choices": [{"text": "x"}]})
                time.sleep(found.pace)
            if usage:
                self.event({"choices": [], "usage": usage})
            self.wfile.write(b"0\r\n\r\n")

        def event(self, document: dict[str, Any]) -> None:
            data = f"data: {json.dumps(document)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with Server(("127.0.0.1", 0), Handler) as server:
        found = CountingReplica(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
