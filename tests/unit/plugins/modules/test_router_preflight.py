# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of router_preflight, and of a certificate that is renewed while clients ask; by the HAProxy of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import certificate_end
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate
from ansible_collections.gpufleet.vllm.plugins.modules import (
    router_backend,
    router_certificate,
    router_preflight,
    router_server,
)
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import needs_haproxy, router_in

DAY_S = 24 * 3600
STREAM_S = 4.0
KEY = "the-client-key"
needs_openssl = pytest.mark.skipif(program_path("openssl") is None, reason="no openssl here")


@pytest.mark.parametrize(
    "text",
    [
        "Filename: /etc/site.pem\nStatus: Used\nnotAfter: Dec 24 16:00:00 2027 GMT\nSubject: /CN=x\n",
        "notAfter=Dec 24 16:00:00 2027 GMT\n",
    ],
)
def test_the_end_is_read_as_haproxy_and_openssl_show_it(text: str) -> None:
    end = certificate_end.end_in(text)
    assert end is not None
    assert end.as_result()["not_after"] == "2027-12-24T16:00:00Z"
    assert abs(end.at - time.time() - end.left) < 5


def test_nothing_is_said_of_what_has_no_end() -> None:
    assert certificate_end.end_in("Can't display the certificate: Not found") is None
    assert certificate_end.end_of("") is None


@needs_openssl
def test_a_given_certificate_is_read_and_what_is_none_is_left_out(run_module: RunModule, tmp_path: Path) -> None:
    make_certificate(str(tmp_path / "site.pem"), ["llm.example.com"], 20)
    asked = {"run_dir": str(tmp_path / "run"), "state_dir": str(tmp_path / "state")}
    found = run_module(router_preflight.main, {**asked, "certificate": (tmp_path / "site.pem").read_text()})
    assert 19 * DAY_S < found["wanted_certificate"]["seconds_left"] <= 20 * DAY_S
    assert (found["changed"], found["served_certificate"]) == (False, {})
    assert "PRIVATE KEY" not in str(found)
    assert run_module(router_preflight.main, {**asked, "certificate": "no PEM"})["wanted_certificate"] == {}


class Streaming(http.server.BaseHTTPRequestHandler):
    """A replica: short answers, and a stream that lasts."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path != "/v1/stream":
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        ends = time.monotonic() + STREAM_S
        while time.monotonic() < ends:
            self.wfile.write(b"5\r\ntoken\r\n")
            time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def replica() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Streaming) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def args(tmp_path: Path, replica: int) -> Iterator[dict[str, Any]]:
    """Options of a router in a folder of the test; what was started is ended."""
    with router_in(
        tmp_path,
        hosts={"gpu-01": [{"name": "vllm-0", "address": "127.0.0.1", "port": replica}]},
        host="127.0.0.1",
        api_keys=[KEY],
        replica_keys={"gpu-01": "the-replica-key"},
        endpoints=["/v1/models", "/v1/stream"],
    ) as found:
        yield found


def context() -> ssl.SSLContext:
    """Return one for a client that takes any certificate; which one it was is looked at."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def ask(port: int, path: str) -> tuple[bytes, str]:
    """Return the answer to a request over a connection of its own, and the sum of the certificate served there."""
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context())) as client:
        client.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        certificate = client.sock.getpeercert(binary_form=True)
        assert isinstance(certificate, bytes)
        answer = client.getresponse()
        assert answer.status == 200
        return answer.read(), hashlib.sha256(certificate).hexdigest()


class Clients:
    """Clients that ask one after another, each over a new connection, until they are told to end."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._over = threading.Event()
        self.served: list[str] = []
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _number in range(number)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._over.wait(0.01):
            try:
                self.served.append(ask(self._port, "/v1/models")[1])
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failed.append(repr(error))

    def end(self) -> None:
        """Tell them to end, and wait for that."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)


@needs_haproxy
@needs_openssl
def test_a_certificate_is_renewed_without_a_lost_request(run_module: RunModule, args: dict[str, Any]) -> None:
    own = {"path": f"{args['directory']}/site.pem", "names": ["127.0.0.1"]}
    run_module(router_certificate.main, {**own, "days": 10})
    assert run_module(router_server.main, args)["action"] == "started"
    where = {"run_dir": args["run_dir"], "state_dir": args["state_dir"]}
    run_module(router_backend.main, {"host": "gpu-01", "state": "ready", **where})
    before = run_module(router_preflight.main, where)["served_certificate"]["seconds_left"]
    clients, streams = Clients(args["port"], 3), []
    stream = threading.Thread(target=lambda: streams.append(ask(args["port"], "/v1/stream")))
    stream.start()
    time.sleep(0.5)
    assert run_module(router_certificate.main, {**own, "renew_days": 5})["changed"] is False
    assert run_module(router_certificate.main, own)["changed"]  # in its last 30 days
    assert run_module(router_server.main, args)["action"] == "reloaded"
    stream.join(30)
    clients.end()
    assert clients.failed == []
    assert len(set(clients.served)) == 2  # the one of before, and the new one
    assert clients.served[0] != clients.served[-1] == ask(args["port"], "/v1/models")[1]
    (whole, certificate), *_none = streams
    assert len(whole) > 40 * len(b"token") and certificate == clients.served[0]
    after = run_module(router_preflight.main, where)["served_certificate"]["seconds_left"]
    assert before <= 10 * DAY_S < 396 * DAY_S < after
    seen = run_module(router_backend.main, {"host": "gpu-01", "state": "ready", **where}, check=True)
    assert abs(seen["certificate"]["seconds_left"] - after) < 10
    assert run_module(router_server.main, args)["changed"] is False
