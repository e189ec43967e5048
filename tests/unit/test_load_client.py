# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The load client counts what really becomes of its requests: each test has a server that behaves in one way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tests.load import client
from ansible_collections.gpufleet.vllm.tests.load.client import Load, Options, Record, Sender

Behaviour = Callable[[socket.socket], None]
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EVENT = b'data: {"choices": [{"text": " city", "finish_reason": %s}]}\n\n'


def read_head(connection: socket.socket) -> bytes:
    """Return what the client sends before it waits for the server, and leave what it may have sent after that."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        received = connection.recv(1)
        if not received:
            raise ConnectionError(f"the client has gone after {data!r}")
        data += received
    return data


def document(finish_reason: str = "length") -> bytes:
    """Return a completion with its head."""
    body = json.dumps({"choices": [{"text": " city", "finish_reason": finish_reason}]}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def stream(*events: bytes) -> bytes:
    """Return a chunked stream of events, broken off: its last chunk is missing."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks


def saying(*parts: bytes) -> Behaviour:
    """Return a behaviour: reads the head of a request, says the parts, and closes the connection."""

    def behave(connection: socket.socket) -> None:
        read_head(connection)
        for part in parts:
            connection.sendall(part)
            if part == CONTINUE:
                connection.recv(65536)

    return behave


ANSWERS = saying(CONTINUE, document())
STREAMS = saying(CONTINUE, stream(EVENT % b"null", EVENT % b'"length"', b"data: [DONE]\n\n"))


@contextlib.contextmanager
def server(*behaviours: Behaviour) -> Iterator[str]:
    """Serve connections one behaviour after the other, the last one for ever; yield the address."""
    queue = list(behaviours)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            (queue.pop(0) if len(queue) > 1 else queue[0])(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 1000  # on a busy machine many are waiting to be accepted

    with Server(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def send(
    behaviour: Behaviour, kind: str = client.SHORT, retries: int = 0, *more: Behaviour, timeout: float = 60
) -> Record:
    """Send one request to a server that behaves so, and return what became of it."""
    with server(behaviour, *more) as url:
        options = Options(url, "m", retries=retries, retry_pause=0.01, timeout=timeout)
        return asyncio.run(Sender(options).send(0, kind))


def test_a_whole_answer_is_answered() -> None:
    record = send(ANSWERS)
    assert (record.outcome, record.attempts, record.first_byte_s) == ("answered", 1, 0.0)


def test_a_whole_stream_is_answered_with_the_time_of_its_first_token() -> None:
    record = send(STREAMS, client.STREAMED)
    assert record.outcome == "answered"
    assert 0 < record.first_byte_s <= record.seconds


@pytest.mark.parametrize(
    ("kind", "behaviour", "outcome", "says"),
    [
        ("short", saying(), "refused", "before the server took it"),
        (
            "short",
            saying(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nsorry"),
            "refused",
            "503: sorry",
        ),
        ("short", saying(CONTINUE), "lost", "after the server took it"),
        ("short", saying(CONTINUE, document()[:-9]), "lost", "IncompleteReadError"),
        ("short", saying(CONTINUE, document("abort")), "lost", "the server aborted it"),
        ("short", saying(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"), "lost", "status 502"),
        ("streamed", saying(b"HTTP/1.1 500 Engine died\r\nContent-Length: 0\r\n\r\n"), "lost", "status 500"),
        ("short", saying(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), "failed", "status 401"),
        ("streamed", saying(CONTINUE, stream(EVENT % b"null")), "lost", "after the server took it"),
        ("streamed", saying(CONTINUE, stream(EVENT % b"null") + b"0\r\n\r\n"), "lost", "without [DONE]"),
        ("streamed", saying(CONTINUE, stream(EVENT % b'"abort"', b"data: [DONE]\n\n")), "lost", "aborted"),
        ("streamed", saying(CONTINUE, stream(b'data: {"error": {"code": 500}}\n\n')), "lost", '"code": 500'),
    ],
)
def test_what_is_not_answered_is_told_apart(kind: str, behaviour: Behaviour, outcome: str, says: str) -> None:
    record = send(behaviour, kind)
    assert record.outcome == outcome, record
    assert says in record.reason


def test_nobody_listening_is_refused() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        record = asyncio.run(Sender(Options(url, "m")).send(0, client.SHORT))
    assert (record.outcome, record.reason.partition(":")[0]) == ("refused", "connecting")


def test_a_server_that_asks_for_no_body_gets_it_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONTINUE_S", 0.05)

    def behave(connection: socket.socket) -> None:
        read_head(connection)
        assert json.loads(connection.recv(65536))["model"] == "m"
        connection.sendall(document())

    assert send(behave).outcome == "answered"


def test_a_server_that_takes_a_request_and_says_nothing_has_lost_it() -> None:
    def behave(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CONTINUE)
        connection.recv(65536)
        connection.recv(1)  # until the client has gone

    record = send(behave, timeout=2)
    assert (record.outcome, record.reason) == ("lost", "no end within 2 s")


def test_a_refused_request_is_sent_again_and_a_lost_one_is_not() -> None:
    record = send(saying(), client.SHORT, 3, saying(), ANSWERS)
    assert (record.outcome, record.attempts) == ("answered", 3)
    record = send(saying(CONTINUE), client.SHORT, 3, ANSWERS)
    assert (record.outcome, record.attempts) == ("lost", 1)


def test_the_key_is_sent_and_shown_nowhere() -> None:
    seen: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        seen.append(read_head(connection))
        connection.sendall(CONTINUE + document())

    with server(behave) as url:
        options = Options(url, "m", api_key="sk-secret")
        asyncio.run(Sender(options).send(0, client.SHORT))
    assert b"Authorization: Bearer sk-secret\r\n" in seen[0]
    assert "sk-secret" not in repr(options)


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "ftp://127.0.0.1", "127.0.0.1:8000"])
def test_only_the_loopback_interface_is_sent_to(url: str) -> None:
    with pytest.raises(ValueError, match=r"loopback|no address of a server"):
        Options(url, "m")


def test_a_load_keeps_its_beat_and_every_request_is_counted_once() -> None:
    def by_kind(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CONTINUE)
        streamed = json.loads(connection.recv(65536))["stream"]
        connection.sendall(stream(EVENT % b'"length"', b"data: [DONE]\n\n") if streamed else document())

    with server(by_kind) as url, Load(Options(url, "m", rate=50, streamed_share=0.25)) as load:
        time.sleep(0.5)
        before, middle = load.began, time.time()
        early = load.settled(before, middle)
        time.sleep(0.3)
        sending = time.time() - load.began
    told = client.summary(load.records())
    assert 0 < told["sent"] <= 50 * (sending + 0.1) + 1
    assert told["answered"] == told["sent"]
    assert abs(sum(record.kind == client.STREAMED for record in load.records()) - told["sent"] / 4) < 1
    assert early == load.records(before, middle)
    assert [record.number for record in sorted(load.records(), key=lambda r: r.number)] == list(range(told["sent"]))


def test_a_load_has_no_more_open_than_it_may() -> None:
    holding = threading.Semaphore(0)

    def hold(connection: socket.socket) -> None:
        read_head(connection)
        holding.acquire()
        connection.sendall(document())

    with server(hold) as url, Load(Options(url, "m", rate=200, max_open=3)) as load:
        deadline = time.monotonic() + 60
        while load.open_requests() < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # in which forty more would have begun
        assert load.open_requests() == 3
        holding.release(1000)


def test_the_summary_adds_up() -> None:
    outcomes = ["answered", "refused", "lost", "answered", "failed", "refused"]
    records = [
        Record(number, client.SHORT, 100.0 + number, 0.5, outcome, attempts=2 if number == 3 else 1)
        for number, outcome in enumerate(outcomes)
    ]
    told = client.summary(records)
    assert (told["sent"], told["answered"], told["refused"], told["lost"], told["failed"]) == (6, 2, 2, 1, 1)
    assert (told["retried"], told["attempts_refused"]) == (1, 3)
    assert told["outages"] == [{"from": 101.0, "seconds": 2.0}, {"from": 104.0, "seconds": 1.0}]
    assert told["latency_s"]["short"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5, "max": 0.5}


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [client.percentile(values, share) for share in (50, 90, 99, 100)] == [50.0, 90.0, 99.0, 100.0]
    assert client.percentile([], 50) == 0.0


@pytest.mark.parametrize("ended_by", ["file", "signal", "time"])
def test_the_program_stops_when_told_and_leaves_its_counts(ended_by: str, tmp_path: Path) -> None:
    out, stop, records = tmp_path / "load.json", tmp_path / "stop", tmp_path / "records"
    with server(ANSWERS) as url:
        command = [sys.executable, client.__file__, f"--url={url}", "--model=m", "--rate=50", f"--out={out}"]
        command += [f"--stop-file={stop}", f"--records={records}", "--streamed-share=0"]
        command += ["--seconds=0.5"] if ended_by == "time" else []
        environment = {**os.environ, "VLLM_API_KEY": "sk-secret"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
            deadline = time.monotonic() + 120
            while not (out.exists() and json.loads(out.read_text())["sent"]) and time.monotonic() < deadline:
                if running.poll() is not None:
                    break
                time.sleep(0.05)
            if ended_by == "file":
                stop.touch()
            elif ended_by == "signal":
                running.send_signal(signal.SIGTERM)
            assert running.wait(120) == 0
    told = json.loads(out.read_text())
    assert told["finished"] is True
    assert told["sent"] == told["answered"] == len(records.read_text().splitlines()) > 0
    assert "sk-secret" not in out.read_text() + records.read_text()


def test_the_program_tells_a_wrong_rate() -> None:
    command = [sys.executable, client.__file__, "--url=http://127.0.0.1:1", "--model=m", "--rate=0"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, "rate is 0" in said.stderr) == (2, True)
