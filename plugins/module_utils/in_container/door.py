# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside vLLM's API server, as its ASGI middleware: counts requests, turns new ones away, and knows the keys.

vLLM has no means of its own that leaves running requests alone and tells new ones to go elsewhere: before 0.18 SIGTERM
aborts what runs; from 0.18 on, with a shutdown-timeout, it lets that finish but answers what comes with status 500
(seen with 0.32). So C(vllm serve --middleware gpufleet_door.Door) loads this file. It is mounted beside a file
C(closed) that the host writes to close the door: it holds the time, in seconds since the epoch, at which the door opens
again by itself, in case whoever closed it is killed.

While the door is closed, each new POST (and websocket) is answered with 503, C(Retry-After) and C(Connection: close),
so that clients and routers try another server; GET goes on, but C(/health) answers 503 too, which takes the server
out of a router's rotation. C(/health) always tells the counts in headers:

==================== ==================================================================================================
x-gpufleet-running   requests (and websockets) that have no complete answer, which a drain waits for
x-gpufleet-waiting   those of them for which it is vLLM's turn, which the watchdog (server_health) goes by: the whole
                     request was read, and no part of its answer waits to be read by the client. Whoever sends half a
                     body or stops reading waits for nothing; what a websocket waits for is not known
x-gpufleet-refused   requests turned away
x-gpufleet-gpus      what the host last found of this server's GPUs, where it has written that beside this file
==================== ==================================================================================================

Of several API processes of one server, each counts its own requests.

vLLM learns its key when it starts, and never another one. So the host may write a file C(keys.sha256) beside this one:
the SHA-256 sums of the keys that are taken now, one a line, with the time, in seconds since the epoch, until which it
is taken, if that ends. A request with such a key is handed on with vLLM's own, any other without a key, so that vLLM
decides what needs one. C(/health) needs none, but answers 401 to a wrong one: a router asks with its own, and so sends
nothing to a server that does not take it. Without the file keys are left to vLLM.

Standard library only, Python 3.9: it runs on the image's interpreter.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Awaitable, MutableMapping
from typing import Any, Callable

CLOSED = "closed"
KEYS = "keys.sha256"
RUNNING_HEADER = "x-gpufleet-running"
WAITING_HEADER = "x-gpufleet-waiting"
REFUSED_HEADER = "x-gpufleet-refused"
GPUS_HEADER = "x-gpufleet-gpus"
GPUS = "gpu-health.json"
LONGEST_HEADER = 4096
AUTHORIZATION = b"authorization"
RETRY_AFTER_S = 5

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Door:
    """ASGI middleware in front of vLLM's application.

    Args:
        app: vLLM's application.
        folder: where the files are that the host writes; that of this file.
        clock: returns seconds since the epoch.
    """

    def __init__(self, app: Callable[..., Any], folder: str = "", clock: Callable[[], float] = time.time) -> None:
        self.running = 0
        self.waiting = 0
        self.refused = 0
        self._app = app
        self._folder = folder or os.path.dirname(os.path.abspath(__file__))
        self._clock = clock
        self._own_key = os.environ.get("VLLM_API_KEY", "")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        kind = scope["type"]
        scope, wrong_key = self._with_own_key(scope)
        if kind == "http" and scope["method"] == "GET" and scope["path"].endswith("/health"):
            if wrong_key:
                await _answer(send, 401, {"error": "Unauthorized"}, [])
                return
            await self._health(scope, receive, send)
        elif kind == "websocket" or (kind == "http" and scope["method"] == "POST"):
            await self._request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._closed():
            self.refused += 1
            await self._refuse(scope["type"], send)
            return
        turn = _Turn(self, receive, send)
        self.running += 1
        try:
            if scope["type"] == "http":
                await self._app(scope, turn.receive, turn.send)
            else:
                await self._app(scope, receive, send)
        finally:
            self.running -= 1
            turn.end()

    def _with_own_key(self, scope: Message) -> tuple[Message, bool]:
        """Return the request with vLLM's own key in place of one that is taken, and whether it had a wrong one."""
        headers = list(scope.get("headers") or ())
        given = [value for name, value in headers if name == AUTHORIZATION]
        if not given or not self._own_key:
            return scope, False
        try:
            with open(os.path.join(self._folder, KEYS), encoding="utf-8") as stream:
                keys = parse_keys(stream.read())
        except FileNotFoundError:
            return scope, False
        except (OSError, ValueError):
            keys = {}
        scheme, _space, key = given[0].partition(b" ")
        taken = scheme.lower() == b"bearer" and self._clock() < keys.get(key_sum(key), 0)
        headers = [header for header in headers if header[0] != AUTHORIZATION]
        if taken:
            headers.append((AUTHORIZATION, f"Bearer {self._own_key}".encode()))
        return {**scope, "headers": headers}, not taken

    async def _health(self, scope: Message, receive: Receive, send: Send) -> None:
        counts = [
            (RUNNING_HEADER.encode(), str(self.running).encode()),
            (WAITING_HEADER.encode(), str(self.waiting).encode()),
            (REFUSED_HEADER.encode(), str(self.refused).encode()),
        ]
        gpus = told_in(self._folder)
        if gpus:
            counts.append((GPUS_HEADER.encode(), gpus))
        if self._closed():
            await _answer(send, 503, {"state": "draining", "running": self.running, "refused": self.refused}, counts)
            return

        async def with_counts(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *counts]}
            await send(message)

        await self._app(scope, receive, with_counts)

    async def _refuse(self, kind: str, send: Send) -> None:
        if kind == "websocket":
            # 1012: the service restarts.
            await send({"type": "websocket.close", "code": 1012})
            return
        error = {
            "message": "This server is being stopped and takes no new requests. Try again, or another server.",
            "type": "ServiceUnavailableError",
            "code": 503,
        }
        headers = [(b"retry-after", str(RETRY_AFTER_S).encode()), (b"connection", b"close")]
        await _answer(send, 503, {"object": "error", "error": error, **error}, headers)

    def _closed(self) -> bool:
        try:
            with open(os.path.join(self._folder, CLOSED), encoding="utf-8") as stream:
                return self._clock() < float(stream.read())
        except (OSError, ValueError):
            return False


class _Turn:
    """Counts one request among the door's C(waiting) ones for as long as it is the application's turn.

    Args:
        door: whose count.
        receive: the request's.
        send: the request's.
    """

    def __init__(self, door: Door, receive: Receive, send: Send) -> None:
        self._door, self._receive, self._send = door, receive, send
        self._read = self._sending = self._ended = self._counted = False

    async def receive(self) -> Message:
        """Hand on what the client sends; its turn ends with its request, and no other begins once it is gone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._ended = True
        else:
            self._read = not message.get("more_body", False)
        self._count()
        return message

    async def send(self, message: Message) -> None:
        """Hand on a part of the answer; until it is taken it is the client's turn."""
        self._sending = True
        self._count()
        try:
            await self._send(message)
        finally:
            self._sending = False
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            self._ended = self._ended or last
            self._count()

    def end(self) -> None:
        """Count it no more."""
        self._ended = True
        self._count()

    def _count(self) -> None:
        counts = self._read and not self._sending and not self._ended
        self._door.waiting += counts - self._counted
        self._counted = counts


def told_in(folder: str) -> bytes:
    """Return what the host wrote of this server's GPUs; nothing where it wrote none, or what no header can be."""
    try:
        with open(os.path.join(folder, GPUS), "rb") as stream:
            text = stream.read(LONGEST_HEADER + 1).strip()
    except OSError:
        return b""
    return text if len(text) <= LONGEST_HEADER and all(32 <= byte < 127 for byte in text) else b""


def key_sum(key: bytes) -> str:
    """Return what the file of keys has of a key."""
    return hashlib.sha256(key).hexdigest()


def parse_keys(text: str) -> dict[str, float]:
    """Return the sums in the text of the file of keys, with the time until which each is taken.

    Raises:
        ValueError: for a time that is none.
    """
    lines = (line.split() for line in text.splitlines())
    return {words[0]: float(words[1]) if len(words) > 1 else math.inf for words in lines if words}


async def _answer(send: Send, status: int, document: dict[str, Any], headers: list[tuple[bytes, bytes]]) -> None:
    """Send a JSON document."""
    body = json.dumps(document).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})
