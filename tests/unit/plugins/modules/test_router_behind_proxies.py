# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The router behind load balancers that end TLS, by the HAProxy of this machine."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import security
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_server
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import router_in

HERE, CLIENT = "127.0.0.1", "203.0.113.7"
MOST = 3  # requests of one client
pytestmark = pytest.mark.skipif(
    program_path("haproxy") is None or os.geteuid() != 0 or os.path.isdir("/run/systemd/system"),
    reason="no HAProxy here, or not ours to start",
)


class Telling(http.server.BaseHTTPRequestHandler):
    """A replica that answers with the clients' addresses that it is told."""

    def do_GET(self) -> None:
        text = ", ".join(self.headers.get_all("X-Forwarded-For") or []).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def args(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options of a router in a folder of the test; what was started is ended."""
    with http.server.ThreadingHTTPServer((HERE, 0), Telling) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with router_in(
            tmp_path,
            hosts={"gpu-01": [{"name": "vllm-0", "address": HERE, "port": server.server_address[1]}]},
            host="0.0.0.0",
            tls=False,
            allow_unauthenticated=True,
            rate_limit=MOST,
            trusted_proxies=["127.0.0.0/8", "192.0.2.1"],
        ) as found:
            yield found
        server.shutdown()


def started(run_module: RunModule, args: dict[str, Any]) -> None:
    """Have the router run, its replica up."""
    first = run_module(router_server.main, args)
    assert (first.get("msg"), first["action"]) == (None, "started")
    where = {"run_dir": args["run_dir"], "state_dir": args["state_dir"]}
    run_module(router_backend.main, {"host": "gpu-01", "state": "ready", **where})


def ask(args: dict[str, Any], *forwarded: str, address: str = HERE, preamble: bytes = b"") -> tuple[int, str]:
    """Return status and text of an answer; of a connection that was closed 0."""
    lines = [
        "GET /v1/models HTTP/1.1",
        "Host: x",
        "Connection: close",
        *(f"X-Forwarded-For: {one}" for one in forwarded),
    ]
    try:
        with contextlib.closing(socket.create_connection((address, args["port"]), timeout=10)) as connection:
            connection.sendall(preamble + "\r\n".join([*lines, "", ""]).encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""


def asked_until_limited(args: dict[str, Any], *forwarded: str, preamble: bytes = b"") -> bool:
    """Return whether a client was let in as often as one may be, and then no more."""
    statuses = [ask(args, *forwarded, preamble=preamble)[0] for _number in range(MOST + 1)]
    return statuses == [200] * MOST + [429]


def other_address() -> str:
    """Return an address, not loopback, from which this machine reaches itself; packet filters may put another there."""
    for address in security.own_addresses():
        with contextlib.closing(socket.socket()) as listener:
            if ":" in address:
                continue
            listener.bind((address, 0))
            listener.listen(1)
            with contextlib.closing(socket.create_connection(listener.getsockname(), timeout=5)):
                connection, peer = listener.accept()
                connection.close()
            if peer[0] == address:
                return address
    pytest.skip("this machine reaches itself from loopback addresses alone")


def test_the_last_address_that_is_no_proxys_is_the_clients(run_module: RunModule, args: dict[str, Any]) -> None:
    started(run_module, args)
    assert asked_until_limited(args, CLIENT)
    assert ask(args, "198.51.100.9")[0] == 200  # another client
    # What a client says itself, and what stands before an address that is none, counts for nothing.
    assert ask(args, f"8.8.8.8, {CLIENT}")[0] == 429
    assert ask(args, "8.8.8.8", CLIENT)[0] == 429
    assert ask(args, f"8.8.4.4, {CLIENT}, 192.0.2.1")[0] == 429  # through another proxy
    assert ask(args, "2001:db8::7") == (200, "2001:db8::7")  # kept as it came
    assert ask(args) == (200, HERE)


def test_what_stands_before_no_address_counts_for_nothing(run_module: RunModule, args: dict[str, Any]) -> None:
    started(run_module, args)
    assert asked_until_limited(args, "8.8.8.8, unknown")  # as the proxy itself
    assert ask(args, "8.8.4.4, unknown")[0] == 429
    assert ask(args, "8.8.4.4")[0] == 200


def test_plain_http_is_for_the_proxies_alone(run_module: RunModule, args: dict[str, Any]) -> None:
    address = other_address()
    started(run_module, args)
    assert [ask(args, address=where)[0] for where in (HERE, address)] == [200, 0]
    trusting = {**args, "trusted_proxies": [f"{address}/32"]}
    assert run_module(router_server.main, trusting)["action"] == "reloaded"
    assert ask(args, CLIENT, address=address) == (200, CLIENT)
    assert ask(args, CLIENT) == (200, HERE)  # this host may ask, and is not believed


def test_the_header_of_the_proxy_protocol_is_needed_and_believed(run_module: RunModule, args: dict[str, Any]) -> None:
    started(run_module, {**args, "proxy_protocol": True})
    header = f"PROXY TCP4 {CLIENT} 192.0.2.9 4711 443\r\n".encode()
    assert asked_until_limited(args, preamble=header)
    assert ask(args, "8.8.8.8", preamble=header)[0] == 429  # the client's own word
    assert ask(args, preamble=header.replace(b"113.7", b"113.8")) == (200, "203.0.113.8")
    assert ask(args)[0] == 0
    address = other_address()
    assert ask(args, preamble=header.replace(b"113.7", b"113.9"), address=address)[0] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trusted_proxies": []}, "in the clear"),
        ({"trusted_proxies": ["10.0.0.0/33"]}, "'10.0.0.0/33' is neither address nor network"),
        ({"trusted_proxies": ["10.0.0.1", "::/0"]}, "::/0 is everyone"),
        ({"trusted_proxies": [], "tls": True, "proxy_protocol": True}, "router_proxy_protocol"),
    ],
)
def test_what_would_be_unsafe_is_refused(
    run_module: RunModule, args: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    result = run_module(router_server.main, {**args, **changes})
    assert result["error"]["name"] == "invalid-router" and said in result["msg"]
    assert "router_trusted_proxies" in result["msg"]
