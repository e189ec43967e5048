# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server behind a router that tells what reached it, and answers in the forms that clients' libraries read."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

MODEL = "org/model-1"
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "input_tokens": 1, "output_tokens": 1}
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 0,
    "model": MODEL,
    "usage": USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}
EMBEDDINGS = {
    "object": "list",
    "model": MODEL,
    "usage": USAGE,
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
}
ANSWERS: dict[str, dict[str, Any]] = {
    "/health": {},
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "vllm"}]},
    "/v1/chat/completions": CHAT,
    "/v1/messages": MESSAGE,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": {"results": []},
    "/v1/score": {"data": []},
    "/tokenize": {"tokens": [1]},
}


class QuietServer(http.server.ThreadingHTTPServer):
    """One that says nothing of connections which break: a router's health checks hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class SmallReplica:
    """One that listens at C(port); C(asked) are the method, path and headers of each request, and the body's bytes."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[str, str, dict[str, str], int]] = []


@contextlib.contextmanager
def serving() -> Iterator[SmallReplica]:
    """Serve at a free port, for the block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._respond(b"")

        def do_POST(self) -> None:
            self._respond(self._body())

        def _respond(self, body: bytes) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            if self.path != "/health":
                found.asked.append((self.command, self.path, headers, len(body)))
            if b'"stream":true' in body.replace(b" ", b""):
                self._stream()
                return
            answer = ANSWERS.get(self.path)
            text = json.dumps({"detail": "Not Found"} if answer is None else answer).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Allow-Credentials", "true")
            self.end_headers()
            self.wfile.write(text)

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            chunk = {**CHAT, "object": "chat.completion.chunk", "usage": None}
            for part in ("hel", "lo"):
                data = {**chunk, "choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]}
                self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def _body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with QuietServer(("127.0.0.1", 0), Handler) as server:
        found = SmallReplica()
        found.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
