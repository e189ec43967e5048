# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of vllm_security, against a router that is a Python server with TLS of its own."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import security
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate, public_part
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_security
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port

KEY = "router-key"
MOST = 1000


class QuietServer(http.server.ThreadingHTTPServer):
    """One that says nothing of connections which break, because the checks break some."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class RouterService:
    """A server that refuses what it should, until its attributes say otherwise."""

    def __init__(self, certificate: str) -> None:
        self.open_paths = {"/v1/models"}
        self.asks_for_key = True
        self.keys_in_clear: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments: Any) -> None:
                pass

            def respond(self) -> None:
                self.send_response(outer.status(self.path, self.headers))
                self.end_headers()
                self.wfile.write(json.dumps({"error": {"message": "words"}}).encode())

            do_GET = do_POST = respond

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def status(self, path: str, headers: Any) -> int:
        """Return the status for a request."""
        if path == "/health":
            return 200
        if self.asks_for_key and headers.get("Authorization") != f"Bearer {KEY}":
            return 401
        if path not in self.open_paths and path != "/v1/completions":
            return 404
        return 413 if int(headers.get("Content-Length", 0)) > MOST else 200

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def certificate(tmp_path: Path) -> str:
    """The path of a certificate for localhost."""
    if program_path("openssl") is None:
        pytest.skip("no openssl here; Molecule installs it")
    path = str(tmp_path / "site.pem")
    make_certificate(path, ["localhost"], 2)
    return path


@pytest.fixture
def router(certificate: str) -> Iterator[RouterService]:
    """A router with TLS."""
    server = RouterService(certificate)
    yield server
    server.close()


def arguments(router: RouterService, certificate: str, **changes: Any) -> dict[str, Any]:
    """Return the module's options for it."""
    whole = {"address": "127.0.0.1", "server_name": "localhost", "port": router.port, "api_key": KEY}
    trust = {"authorities": public_part(certificate), "max_request_bytes": MOST}
    return {**whole, **trust, **changes}


def failed(result: dict[str, Any]) -> list[str]:
    """Return which checks failed."""
    return [check["what"] for check in result["checks"] if not check["passed"]]


def test_a_router_that_refuses_everything_it_should_passes(
    run_module: RunModule, router: RouterService, certificate: str
) -> None:
    result = run_module(vllm_security.main, arguments(router, certificate))
    assert not result["failed"], result["msg"]
    tried = " ".join(check["what"] for check in result["checks"])
    for needed in ("/invocations", "/pause", "/tokenize", "/metrics", "without a key", "plain HTTP"):
        assert needed in tried
    assert KEY not in str(result)


def test_one_path_left_open_fails_and_is_named(run_module: RunModule, router: RouterService, certificate: str) -> None:
    router.open_paths.add("/pause")
    result = run_module(vllm_security.main, arguments(router, certificate))
    assert result["failed"] and result["error"]["name"] == "not-secure"
    assert failed(result) == ["GET /pause with the key is refused", "POST /pause with the key is refused"]


def test_keys_that_are_not_asked_for_fail(run_module: RunModule, router: RouterService, certificate: str) -> None:
    router.asks_for_key = False
    found = failed(run_module(vllm_security.main, arguments(router, certificate)))
    assert "/v1/models without a key is refused" in found
    assert "/v1/models with a wrong key is refused" in found


def test_a_certificate_for_another_name_fails(run_module: RunModule, router: RouterService, certificate: str) -> None:
    found = failed(run_module(vllm_security.main, arguments(router, certificate, server_name="other.example.com")))
    assert "/v1/models with the key is answered" in found


def test_plain_http_fails_where_tls_should_be(run_module: RunModule, certificate: str) -> None:
    server = RouterService("")
    try:
        found = failed(run_module(vllm_security.main, arguments(server, certificate)))
    finally:
        server.close()
    assert "plain HTTP is refused" in found and "/v1/models with the key is answered" in found


def test_nothing_there_is_not_taken_for_refusal(run_module: RunModule, router: RouterService, certificate: str) -> None:
    router.close()
    found = failed(run_module(vllm_security.main, arguments(router, certificate)))
    assert "/metrics" in " ".join(found) and "/health is answered" in found


def test_a_replicas_port_that_others_reach_fails(
    run_module: RunModule, router: RouterService, certificate: str
) -> None:
    replica = {"host": "gpu-01", "name": "vllm-0", "port": router.port, "addresses": ["127.0.0.1"]}
    open_port = security.closed_port(replica, "127.0.0.1", 5)
    assert not open_port.passed and "gpu-01" in open_port.what
    router.close()
    refused = security.closed_port(replica, "127.0.0.1", 5)
    assert (refused.passed, refused.tried) == (True, True)
    assert f"([::1]:{router.port})" in security.closed_port(replica, "::1", 5).what
    unknown = security.closed_port(replica, "no-such-host.invalid", 5)
    assert (unknown.passed, unknown.tried) == (False, False)


@pytest.mark.parametrize("other", ["listens", "refuses", "silent"])
def test_silence_proves_something_only_where_the_host_is_reached(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    def connect(address: tuple[str, int], timeout: float) -> Any:
        if address[1] == 8000 or other == "silent":
            raise TimeoutError("timed out")
        if other == "refuses":
            raise ConnectionRefusedError("refused")
        return contextlib.nullcontext()

    monkeypatch.setattr(socket, "create_connection", connect)
    replica = {"host": "gpu-01", "name": "vllm-0", "port": 8000, "other_port": 2222}
    check = security.closed_port(replica, "192.0.2.1", 1)
    assert (check.passed, check.tried) == ((False, False) if other == "silent" else (True, True))
    assert "2222" in check.found


def test_what_is_not_reached_is_told_and_is_no_success_of_the_check(
    run_module: RunModule, router: RouterService, certificate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = {"host": "gpu-01", "name": "vllm-0", "address": "127.0.0.1", "port": free_port()}
    far = {**near, "host": "gpu-02", "address": "no-such-host.invalid"}
    reached_at = {"gpu-01": "localhost", "gpu-02": "no-such-host.invalid"}
    asked = arguments(router, certificate, replicas=[near, far], parts=["replicas"], reached_at=reached_at)
    found = run_module(vllm_security.main, asked)
    assert not found["failed"]
    assert (found["tried"], found["not_tried"]) == ([near], [far])
    assert {check["tried"] for check in found["checks"] if "gpu-02" in check["what"]} == {False}


def test_a_router_that_is_not_reached_was_not_tried(
    run_module: RunModule, router: RouterService, certificate: str
) -> None:
    found = run_module(vllm_security.main, arguments(router, certificate, address="no-such-host.invalid"))
    assert found["failed"] and found["error"]["name"] == "router-not-reached"
    assert found["checks"] == []


def test_this_machines_addresses_stand_for_those_of_a_server_on_loopback(tmp_path: Path) -> None:
    table = tmp_path / "proc" / "net"
    table.mkdir(parents=True)
    (table / "fib_trie").write_text(
        "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.5\n        /32 host LOCAL\n"
        "     |-- 10.0.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n",
        encoding="utf-8",
    )
    (table / "if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe800000000000000000000000000005 02 40 20 80     eth0\n"
        "fd000000000000000000000000000005 02 40 00 80     eth0\n",
        encoding="utf-8",
    )
    assert security.outside_addresses(["127.0.0.1"], str(tmp_path)) == ["10.0.0.5", "fd00::5"]
    assert security.outside_addresses(["::1"], str(tmp_path)) == ["10.0.0.5", "fd00::5"]
    assert security.outside_addresses(["127.0.0.1", "192.0.2.7"], str(tmp_path)) == ["192.0.2.7"]
