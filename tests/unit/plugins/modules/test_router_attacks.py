# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries attacks and mistakes at a real HAProxy, with a client beside each of them that is answered."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import (
    config,
    frontend_config,
    model_rules,
    router_settings,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS
from ansible_collections.gpufleet.vllm.tests.fakes.model_replica import ModelReplica, answering
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_attacks import (
    BEGIN,
    CLOSED,
    END,
    FLOODS,
    GUIDE,
    KEY,
    ROWS,
    SLOW,
    UNREAD,
    Row,
    chat,
    head,
    post,
    table,
)
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import needs_haproxy

OTHER_KEY = "another-client-key"
# Of the package: without it who is not root could not pass the folders of a test.
CHROOT = "/var/lib/haproxy"
ATTACKER, CLIENT, OPERATOR = "127.0.0.1", "127.0.0.2", "127.0.0.3"
pytestmark = [needs_haproxy, pytest.mark.skipif(program_path("openssl") is None, reason="no openssl here")]


def version() -> tuple[int, int]:
    """Return HAProxy's."""
    said = subprocess.run([str(program_path("haproxy")), "-v"], capture_output=True, text=True, check=True).stdout
    numbers = re.search(r"version (\d+)\.(\d+)", said)
    assert numbers
    return int(numbers[1]), int(numbers[2])


class Router:
    """A router with TLS before two models."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        options = {name: option.get("default") for name, option in ARGUMENTS.items()}
        self.port = free_port()
        own = {"host": "127.0.0.1", "port": self.port, "api_keys": [KEY, OTHER_KEY], "user": "daemon", "tls": True}
        folders = {"run_dir": str(folder / "run"), "state_dir": str(folder)}
        limits = {"max_request_bytes": 1000000, "max_connections": "200", "max_connections_per_address": "60"}
        given = {**options, **own, **folders, **limits, "operators": [OPERATOR], **changes}
        self.settings = router_settings.as_settings(given, CHROOT, "")
        self.folder = folder
        self.service = RouterService(str(folder), str(folder / "run"), str(folder), str(folder / "log"))

    def run(self, replicas: dict[str, ModelReplica], **more: int) -> None:
        """Let it run until it answers."""
        of = [Replica(name, "vllm-0", "127.0.0.1", replica.port, (name,), **more) for name, replica in replicas.items()]
        make_certificate(str(self.folder / "site.pem"), ["127.0.0.1"], 1)
        self.service.check(lambda place: config.files(self.settings, of, place))
        self.service.load(config.files(self.settings, of, str(self.folder)))
        deadline = time.monotonic() + 15
        while not (self.is_answered() and self.answer(post(b'{"a": "' + b"x" * 100000 + b'"}'), CLIENT)[0] == "400"):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def tcp(self, source: str = ATTACKER) -> socket.socket:
        """Return a connection of an address."""
        return socket.create_connection(("127.0.0.1", self.port), 15, (source, 0))

    def tls(self, source: str = ATTACKER) -> ssl.SSLSocket:
        """Return a connection with TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(self.tcp(source))

    def answer(self, sent: bytes, source: str = ATTACKER) -> tuple[str, str]:
        """Return the status with which a request is answered, or that the connection is closed, and all that came."""
        try:
            with self.tls(source) as connection:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                    connection.sendall(sent)
                return read(connection)
        except (ConnectionError, ssl.SSLError):
            return CLOSED, ""

    def is_answered(self, key: str = OTHER_KEY, source: str = CLIENT) -> bool:
        """Return whether a client that does nothing wrong is answered soon."""
        body = b'{"model": "small"}'
        sent = head("POST /v1/chat/completions", f"Content-Length: {len(body)}", key=key) + body
        began = time.monotonic()
        status, text = self.answer(sent, source)
        return status == "200" and '"replica": "small"' in text and time.monotonic() - began < 5


def read(connection: socket.socket) -> tuple[str, str]:
    """Return the status of an answer, or that there is none, and the answer."""
    text = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while b"}" not in text and (part := connection.recv(65536)):
            text += part
    words = text.decode("latin-1").split()
    return (words[1] if len(words) > 1 else CLOSED), text.decode("latin-1")


@contextlib.contextmanager
def running(
    folder: Path, more: dict[str, int] | None = None, **changes: Any
) -> Iterator[tuple[Router, dict[str, ModelReplica]]]:
    """Run a router with changes before two servers."""
    with ExitStack() as stack:
        replicas = {name: stack.enter_context(answering(name)) for name in ("large", "small")}
        router = Router(folder, **changes)
        stack.callback(router.service.remove)
        router.run(replicas, **(more or {}))
        yield router, replicas


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Router, dict[str, ModelReplica]]]:
    """One router for what leaves nothing behind; times are a tenth of what they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontend_config, "SILENT_S", 3)
        patch.setattr(frontend_config, "HEAD_S", 3)
        patch.setattr(model_rules, "BODY_TIMEOUT_S", 6)
        with running(tmp_path_factory.mktemp("router")) as found:
            yield found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_it_gets_its_answer_and_no_server_sees_it(shared: tuple[Router, dict[str, ModelReplica]], row: Row) -> None:
    router, replicas = shared
    before = {name: len(replica.bodies) for name, replica in replicas.items()}
    status, text = router.answer(row.sent)
    newer = row.since_3 if version() >= (3, 0) else ""
    assert status == (newer or row.answer), text[:300]
    if text:
        assert status == "200" or newer or row.what in UNREAD or '{"error": {"message": "' in text
        assert "X-A" not in text.partition("\r\n\r\n")[0]
    assert {name: len(replica.bodies) for name, replica in replicas.items()} == before
    assert router.is_answered()


def test_what_haproxy_answers_of_itself_is_json(shared: tuple[Router, dict[str, ModelReplica]]) -> None:
    """Each status that it has a text of its own for; but for what it cannot read, in versions before 3.3."""
    router, replicas = shared
    seen: dict[str, str] = {}
    replicas["large"].broken = True
    try:
        seen["502"] = router.answer(post(chat("large")))[1]
    finally:
        replicas["large"].broken = False
    if version() >= (3, 3):
        seen.update({row.answer: router.answer(row.sent)[1] for row in ROWS if row.what in UNREAD})
    for status, text in seen.items():
        if status != "200":
            head_of, _end, body = text.partition("\r\n\r\n")
            assert "content-type: application/json" in head_of.lower() and f" {status} " in head_of, text
            assert json.loads(body)["error"]["code"] == int(status)
    status, text = router.answer(head("GET /health", key=""))
    assert status == "200" and "application/json" in text


@pytest.mark.parametrize(
    "sent",
    [
        post(chat("small"), "Expect: 100-continue"),
        post(chat("small", "x" * 200000), "Expect: 100-continue"),
        post(chat("small")).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
        post(chat("small").replace(b'"small"', b'"sm\\u0061ll"')),
        post(b'{"messages": [{"content": "\\ud83d\\ude00 {\\"model\\": \\"large\\"}"}], "model": "small"}'),
        post(b'\n {"messages": [{"content": [{"model": "large"}]}], "model" : "small"}'),
    ],
    ids=["announced", "announced, long", "HTTP/1.0", "a name with an escape", "a text with one", "nested first"],
)
def test_what_is_unusual_and_right_is_answered(shared: tuple[Router, dict[str, ModelReplica]], sent: bytes) -> None:
    router, _replicas = shared
    _status, text = router.answer(sent, CLIENT)
    assert '"replica": "small"' in text, text


def one_byte_at_a_time(connection: socket.socket, sent: bytes) -> None:
    """Send that slowly, until it is not taken any more."""
    with contextlib.suppress(OSError):
        for byte in sent:
            connection.sendall(bytes([byte]))
            time.sleep(0.2)


def test_slow_and_silent_clients_end_in_time(shared: tuple[Router, dict[str, ModelReplica]]) -> None:
    router, _replicas = shared
    body = head("POST /v1/completions", "Content-Length: 500000")
    sent = {
        "a connection that says nothing": (router.tcp, b"", 0),
        "a TLS handshake that does not come": (router.tcp, b"\x16\x03\x01", 0),
        "TLS, and then nothing": (router.tls, b"", 0),
        "half a head, and then nothing": (router.tls, head("GET /v1/models")[:40], 0),
        "a head byte by byte": (router.tls, head("GET /v1/models"), 1),
        "half a body, and then nothing": (router.tls, body + b"x" * 1000, 0),
        "a body byte by byte": (router.tls, body, 2),
        "HTTP instead of TLS": (router.tcp, head("GET /v1/models"), 0),
    }
    assert list(sent) == list(SLOW)
    found: dict[str, tuple[str, float]] = {}

    def attack(what: str) -> None:
        connect, text, slow = sent[what]
        began = time.monotonic()
        with connect() as connection:
            if slow == 1:
                threading.Thread(target=one_byte_at_a_time, args=(connection, text), daemon=True).start()
            else:
                connection.sendall(text)
            if slow == 2:
                threading.Thread(target=one_byte_at_a_time, args=(connection, b"x" * 100), daemon=True).start()
            found[what] = (read(connection)[0], time.monotonic() - began)

    threads = [threading.Thread(target=attack, args=(what,)) for what in sent]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert router.is_answered()
        time.sleep(0.3)
    for what, promised in SLOW.items():
        status, seconds = found[what]
        wanted, _after, rest = promised.partition(" after ")
        assert status in (wanted, "408" if what == "TLS, and then nothing" else wanted), (what, found[what])
        assert seconds < float(rest.split()[0] if rest else 5) / 10 + 2, (what, found[what])


def hold(stack: ExitStack, connect: Any, count: int, sources: Any = None) -> list[socket.socket]:
    """Open connections and keep them; return those that were let in."""
    let_in = []
    for number in range(count):
        with contextlib.suppress(OSError):
            let_in.append(stack.enter_context(connect(sources(number) if sources else ATTACKER)))
    return let_in


def test_connections_are_bounded_by_address_and_in_all(tmp_path: Path) -> None:
    with (
        running(tmp_path, max_connections="60", max_connections_per_address="20") as (router, _replicas),
        ExitStack() as stack,
    ):
        mine = hold(stack, router.tls, 40)
        assert len(mine) == 20, next(iter(FLOODS))
        assert router.is_answered()
        # Many addresses fill what is left: the next ones get an answer, and then none; operators still do.
        more = hold(stack, router.tls, 60, lambda number: f"127.0.1.{number + 1}")
        assert 40 <= len(more) <= 50
        asked = [router.answer(head("GET /v1/models"), f"127.0.2.{number + 1}") for number in range(3)]
        assert {status for status, _text in asked} <= {"503", CLOSED}
        assert all("retry-after: 5" in text.lower() for status, text in asked if status == "503")
        assert router.answer(head("GET /health", key=""), OPERATOR)[0] == "200"
        assert router.answer(head("GET /v1/models"), OPERATOR)[0] == "200"


def test_a_full_router_says_so(tmp_path: Path) -> None:
    with (
        running(tmp_path, max_connections="60", max_connections_per_address="0") as (router, _replicas),
        ExitStack() as stack,
    ):
        assert len(hold(stack, router.tls, 60)) == 60
        began = time.monotonic()
        status, text = router.answer(head("GET /v1/models"), CLIENT)
        assert status == "503" and "as many connections" in text and "retry-after: 5" in text.lower()
        assert time.monotonic() - began < 2
        assert router.answer(head("GET /health", key=""), CLIENT)[0] == "200"


def test_new_connections_are_bounded_by_address(tmp_path: Path) -> None:
    with running(tmp_path, connection_rate=50) as (router, _replicas):
        seen = Counter(router.answer(head("GET /v1/models"))[0] for _turn in range(70))
        assert seen == {"200": 50, CLOSED: 20}
        assert router.is_answered()


def test_wrong_keys_are_bounded_by_address_and_the_right_one_passes(tmp_path: Path) -> None:
    with running(tmp_path) as (router, _replicas):
        seen = Counter(router.answer(head("GET /v1/models", key=f"guess-{number}"))[0] for number in range(120))
        assert seen == {"401": 100, "429": 20}
        assert router.answer(head("GET /v1/models"))[0] == "200"
        assert router.is_answered()


def test_requests_are_bounded_by_key(tmp_path: Path) -> None:
    with running(tmp_path, rate_limit=30) as (router, _replicas):
        answers = [router.answer(head("GET /v1/models")) for _turn in range(40)]
        assert Counter(status for status, _text in answers) == {"200": 30 - 0, "429": 10} or answers[0][0] == "200"
        assert "retry-after: 10" in answers[-1][1].lower()
        assert router.is_answered()


def ask_together(router: Router, count: int, key: str, model: str) -> list[tuple[str, str]]:
    """Return the answers to as many requests at once."""
    body = json.dumps({"model": model}).encode()
    sent = head("POST /v1/chat/completions", f"Content-Length: {len(body)}", key=key) + body
    answers: list[tuple[str, str]] = []
    threads = [threading.Thread(target=lambda: answers.append(router.answer(sent))) for _turn in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_one_key_leaves_room_for_another(tmp_path: Path) -> None:
    # Two replicas of four requests each: one key has six.
    with running(tmp_path, more={"requests": 2}) as (router, replicas):
        for replica in replicas.values():
            replica.hold = 2.0
        threads = [threading.Thread(target=ask_together, args=(router, 3, KEY, model)) for model in ("large", "small")]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        status, text = router.answer(post(chat("large")))
        assert status == "429" and "of this key at once" in text and "retry-after: 1" in text.lower()
        assert router.is_answered()
        for thread in threads:
            thread.join()


def test_what_may_neither_run_nor_wait_is_told_at_once(tmp_path: Path) -> None:
    with running(tmp_path, more={"requests": 2}, max_requests_per_key="0") as (router, replicas):
        replicas["large"].hold = 2.0
        began = time.monotonic()
        answers = ask_together(router, 14, KEY, "large")
        assert router.is_answered(), "another model"
        assert Counter(status for status, _text in answers) == {"200": 8, "503": 6}
        assert replicas["large"].most == 4
        full = [text.lower() for status, text in answers if status == "503"]
        assert all("retry-after: 5" in text and '"error"' in text for text in full)
        assert time.monotonic() - began < 10


def test_the_guide_shows_this_table() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0]
    assert shown == table(), "run python tests/unit/plugins/modules/router_attacks.py"
