# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The middleware that turns requests away, called as vLLM's server calls it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.door import KEYS, Door, key_sum


class Client:
    """Sends requests through a door to an application that answers when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.control = Control(str(folder))
        self.go_on = asyncio.Event()
        self.read_on = asyncio.Event()
        self.read_on.set()
        self.door = Door(self.application, str(folder))

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self.go_on.wait()
            return
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/v1/completions":
            await self.go_on.wait()
        if scope["path"] == "/broken":
            raise RuntimeError("the application failed")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"server", b"uvicorn")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def ask(self, method: str, path: str, kind: str = "http", *, half: bool = False) -> list[dict[str, Any]]:
        """Return the messages of the answer; C(half) never sends the rest of the body."""
        sent: list[Any] = []
        parts = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def send(message: Any) -> None:
            if path != "/health":
                await self.read_on.wait()
            sent.append(message)

        async def receive() -> Any:
            if parts:
                return parts.pop()
            if half:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": b"}"}

        await self.door({"type": kind, "method": method, "path": path}, receive, send)
        return sent

    async def health(self) -> tuple[int, dict[str, str]]:
        """Return status and headers of /health."""
        start = (await self.ask("GET", "/health"))[0]
        return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}


def test_a_closed_door_turns_new_requests_away_and_leaves_running_ones_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(tmp_path)
        running = asyncio.create_task(client.ask("POST", "/v1/completions"))
        await asyncio.sleep(0)
        status, headers = await client.health()
        assert (status, headers["x-gpufleet-running"], headers["server"]) == (200, "1", "uvicorn")
        client.control.close(60)
        start, body = await client.ask("POST", "/v1/completions")
        assert start["status"] == 503
        assert {(b"retry-after", b"5"), (b"connection", b"close")} <= set(start["headers"])
        assert "Try again, or another server" in json.loads(body["body"])["error"]["message"]
        status, headers = await client.health()
        assert (status, headers["x-gpufleet-running"], headers["x-gpufleet-refused"]) == (503, "1", "1")
        assert (await client.ask("GET", "/metrics"))[0]["status"] == 200
        assert (await client.ask("", "/v1/realtime", "websocket")) == [{"type": "websocket.close", "code": 1012}]
        client.go_on.set()
        assert (await running)[0]["status"] == 200
        assert (await client.health())[1]["x-gpufleet-running"] == "0"
        assert client.control.open()
        assert (await client.health())[0] == 200

    asyncio.run(scenario())


async def counts(client: Client) -> tuple[str, str]:
    """Return the running and the waiting requests, once every task had its turn."""
    for _turn in range(10):
        await asyncio.sleep(0)
    _status, headers = await client.health()
    return headers["x-gpufleet-running"], headers["x-gpufleet-waiting"]


def test_health_tells_what_the_host_found_of_the_gpus(tmp_path: Path) -> None:
    """What no header can be is left out."""

    async def scenario() -> None:
        client = Client(tmp_path)
        assert "x-gpufleet-gpus" not in (await client.health())[1]
        (tmp_path / "gpu-health.json").write_text('{"sick": []}\n')
        assert (await client.health())[1]["x-gpufleet-gpus"] == '{"sick": []}'
        for text in ("two\nlines", "x" * 5000):
            (tmp_path / "gpu-health.json").write_text(text)
            assert "x-gpufleet-gpus" not in (await client.health())[1]

    asyncio.run(scenario())


def test_only_whole_requests_wait_for_the_server(tmp_path: Path) -> None:
    """A client that hangs must not make it look as if the engine did."""

    async def scenario() -> None:
        client = Client(tmp_path)
        half = asyncio.create_task(client.ask("POST", "/v1/completions", half=True))
        socket = asyncio.create_task(client.ask("", "/v1/realtime", "websocket"))
        assert await counts(client) == ("2", "0")
        whole = asyncio.create_task(client.ask("POST", "/v1/completions"))
        assert await counts(client) == ("3", "1")
        # Its answer is made, but it stops reading.
        client.read_on.clear()
        client.go_on.set()
        await socket
        assert await counts(client) == ("2", "0")
        client.read_on.set()
        assert (await whole)[-1]["body"] == b"ok"
        half.cancel()
        assert await counts(client) == ("0", "0")

    asyncio.run(scenario())


def test_a_stream_waits_for_the_server_between_its_parts(tmp_path: Path) -> None:
    async def scenario() -> None:
        more, client_gone = asyncio.Event(), asyncio.Event()

        async def streams(_scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await more.wait()
            await send({"type": "http.response.body", "body": b"b"})
            await receive()  # as Starlette does, until the client is gone
            await asyncio.Event().wait()

        async def receive() -> Any:
            if not sent:
                return {"type": "http.request", "body": b""}
            await client_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        sent: list[Any] = []
        door = Door(streams, str(tmp_path))
        answer = asyncio.create_task(door({"type": "http", "method": "POST", "path": "/v1/completions"}, receive, send))
        await asyncio.sleep(0.01)
        assert (len(sent), door.running, door.waiting) == (2, 1, 1)
        more.set()
        await asyncio.sleep(0.01)
        assert (len(sent), door.running, door.waiting) == (3, 1, 0)
        client_gone.set()
        await asyncio.sleep(0.01)
        assert (door.running, door.waiting) == (1, 0)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        assert (door.running, door.waiting) == (0, 0)

    asyncio.run(scenario())


def test_a_client_that_is_gone_waits_for_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def hangs(_scope: Any, receive: Any, _send: Any) -> None:
            await receive()
            await receive()
            await asyncio.Event().wait()

        async def receive() -> Any:
            return messages.pop(0)

        async def send(_message: Any) -> None:
            raise AssertionError("nothing is sent")

        messages: list[Any] = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]
        door = Door(hangs, str(tmp_path))
        answer = asyncio.create_task(door({"type": "http", "method": "POST", "path": "/v1/completions"}, receive, send))
        await asyncio.sleep(0.01)
        assert (door.running, door.waiting) == (1, 0)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)

    asyncio.run(scenario())


def test_the_door_opens_by_itself_when_nobody_opens_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(tmp_path)
        client.go_on.set()
        client.control.close(1.0)
        assert (await client.ask("POST", "/v1/completions"))[0]["status"] == 503
        time.sleep(1.1)
        assert (await client.ask("POST", "/v1/completions"))[0]["status"] == 200
        assert not client.control.closed()
        (tmp_path / "closed").write_text("no time")
        assert (await client.ask("POST", "/v1/completions"))[0]["status"] == 200

    asyncio.run(scenario())


def test_a_request_that_fails_runs_no_longer(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(tmp_path)
        with pytest.raises(RuntimeError):
            await client.ask("POST", "/broken")
        assert (client.door.running, client.door.waiting) == (0, 0)

    asyncio.run(scenario())


def asked_with(folder: Path, *headers: str, path: str = "/v1/models", kind: str = "http") -> tuple[int, list[str]]:
    """Return the status of an answer (0 for none), and the keys with which vLLM itself was asked."""
    seen: list[str] = []
    sent: list[Any] = []

    async def application(scope: Any, _receive: Any, send: Any) -> None:
        seen.extend(value.decode() for name, value in scope["headers"] if name == b"authorization")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    given = [(b"accept", b"*/*"), *((b"authorization", header.encode()) for header in headers)]
    scope = {"type": kind, "method": "GET", "path": path, "headers": given}
    asyncio.run(Door(application, str(folder), clock=lambda: 1000.0)(scope, receive, send))
    return sent[0].get("status", 0), seen


def write_keys(folder: Path, *lines: str) -> None:
    """Write the file of keys, each line a key and what follows it."""
    pairs = (line.partition(" ") for line in lines)
    (folder / KEYS).write_text("".join(f"{key_sum(key.encode())}{space}{end}\n" for key, space, end in pairs))


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_key_that_is_taken_becomes_vllm_s_own_and_any_other_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "first")
    write_keys(tmp_path, "new", "leaving 1001", "gone 999")
    for key in ("Bearer new", "bearer new", "Bearer leaving"):
        assert asked_with(tmp_path, key, kind=kind) == (200, ["Bearer first"])
    for key in ("Bearer first", "Bearer gone", "Basic new", "new", "Bearer ", ""):
        assert asked_with(tmp_path, key, kind=kind)[1] == []
    assert asked_with(tmp_path, "Bearer x", "Bearer new")[1] == [], "vLLM itself looks at the first one"
    assert asked_with(tmp_path)[1] == []


def test_a_wrong_key_at_health_is_refused_and_none_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a router, which sends its own, takes a server that would refuse it for one that is down."""
    monkeypatch.setenv("VLLM_API_KEY", "first")
    write_keys(tmp_path, "new")
    found = [asked_with(tmp_path, *keys, path="/health")[0] for keys in ([], ["Bearer new"], ["Bearer first"])]
    assert found == [200, 200, 401]


def test_without_the_file_or_a_key_of_its_own_vllm_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "first")
    assert asked_with(tmp_path, "Bearer any") == (200, ["Bearer any"])
    monkeypatch.delenv("VLLM_API_KEY")
    write_keys(tmp_path, "new")
    assert asked_with(tmp_path, "Bearer any", path="/health") == (200, ["Bearer any"])


@pytest.mark.parametrize("text", ["", "abc when\n", "\0"])
def test_a_file_that_cannot_be_read_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "first")
    (tmp_path / KEYS).write_text(text)
    assert asked_with(tmp_path, "Bearer first")[1] == []
    (tmp_path / KEYS).unlink()
    (tmp_path / KEYS).mkdir()
    assert asked_with(tmp_path, "Bearer first")[1] == []
