# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries what a router and the servers behind it must refuse.

Every check is a real attempt, and what must work is tried too: where nothing answers at all, nothing is proven. Only
the standard library is used, so that this runs wherever a check from outside makes sense.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text

# What vLLM offers without asking for its key, in some version, and what would get round a careless list of paths.
FORBIDDEN = (
    "/invocations",
    "/pause",
    "/resume",
    "/sleep",
    "/wake_up",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/tokenizer_info",
    "/metrics",
    "/version",
    "/load",
    "/server_info",
    "/scale_elastic_ep",
    "/inference/v1/abort_requests",
    "/docs",
    "/openapi.json",
    "/v1/load_lora_adapter",
    "//metrics",
    "/v1/../metrics",
    "/v1/models/../../metrics",
    "/%6detrics",
    "/v1/models/%2e%2e/%2e%2e/metrics",
    "/metrics?/v1/models",
)
REFUSED = (400, 401, 403, 404, 405)
SSH_PORT = 22
WRONG_KEY = "wrong-key"
SHOWN = 200


@dataclass(frozen=True)
class Endpoint:
    """The router: where it is, by which name its certificate is checked and with what, and a valid key."""

    address: str
    port: int
    server_name: str
    tls: bool
    authorities: str
    api_key: str
    timeout: float


@dataclass(frozen=True)
class Check:
    """One attempt: what was tried, what came of it, and whether that is as it must be.

    C(tried) is false where nothing is proven, as this machine does not reach the other one at all.
    """

    what: str
    found: str
    passed: bool
    tried: bool = True


def router_checks(endpoint: Endpoint, max_request_bytes: int) -> Iterator[Check]:
    """Yield every check of a router with keys and TLS.

    Args:
        endpoint: the router.
        max_request_bytes: body from which on it must refuse.
    """
    yield _expect(endpoint, "GET", "/v1/models", endpoint.api_key, (200,), "/v1/models with the key is answered")
    yield _expect(endpoint, "GET", "/health", "", (200,), "/health is answered")
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions")):
        yield _expect(endpoint, method, path, "", (401,), f"{path} without a key is refused")
    yield _expect(endpoint, "GET", "/v1/models", WRONG_KEY, (401,), "/v1/models with a wrong key is refused")
    for path in FORBIDDEN:
        for method in ("GET", "POST"):
            yield _expect(endpoint, method, path, endpoint.api_key, REFUSED, f"{method} {path} with the key is refused")
    yield _expect(
        endpoint,
        "POST",
        "/v1/completions",
        endpoint.api_key,
        (413,),
        f"a request of more than {max_request_bytes} bytes is refused",
        {"Content-Length": str(max_request_bytes + 1)},
    )
    if endpoint.tls:
        yield plain_http(endpoint)


def _expect(
    endpoint: Endpoint,
    method: str,
    path: str,
    key: str,
    statuses: Sequence[int],
    what: str,
    headers: Mapping[str, str] | None = None,
) -> Check:
    try:
        status, text = request_status(endpoint, method, path, key, headers or {})
    except (OSError, http.client.HTTPException) as error:
        return Check(what, f"no answer: {error}", False)
    return Check(what, f"HTTP {status}: {text}" if text else f"HTTP {status}", status in statuses)


def request_status(endpoint: Endpoint, method: str, path: str, key: str, headers: Mapping[str, str]) -> tuple[int, str]:
    """Return status and the beginning of the answer to a request; of one with a body only the head is sent."""
    given = dict(headers)
    if key:
        given["Authorization"] = f"Bearer {key}"
    if method == "POST":
        given.setdefault("Content-Length", "2")
    connection = http.client.HTTPConnection(endpoint.address, endpoint.port, timeout=endpoint.timeout)
    with contextlib.closing(connection):
        connection.connect()
        if endpoint.tls:
            context = ssl.create_default_context(cadata=endpoint.authorities or None)
            connection.sock = context.wrap_socket(connection.sock, server_hostname=endpoint.server_name)
        connection.putrequest(method, path)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders(b"{}" if given.get("Content-Length") == "2" else None)
        response = connection.getresponse()
        return response.status, _message(response.read(SHOWN * 10).decode(errors="replace"))


def _message(text: str) -> str:
    """Return the message in an answer of the router, or the beginning of any other text in one line."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["error"]["message"])
    return " ".join(text.split())[:SHOWN]


def plain_http(endpoint: Endpoint) -> Check:
    """Check that a request without TLS (and without the key, which would be seen) gets no answer of HTTP."""
    what = "plain HTTP is refused"
    try:
        with socket.create_connection((endpoint.address, endpoint.port), timeout=endpoint.timeout) as connection:
            connection.sendall(f"GET /health HTTP/1.1\r\nHost: {endpoint.server_name}\r\n\r\n".encode())
            answer = connection.recv(SHOWN)
    except OSError as error:
        return Check(what, f"connection ended: {error}", True)
    return Check(what, repr(answer.decode(errors="replace")) if answer else "connection closed", b"HTTP/" not in answer)


def closed_port(replica: Mapping[str, Any], address: str, timeout: float) -> Check:
    """Check that a replica's port cannot be connected to from this machine.

    A refusal proves it. Silence does so only where this machine reaches the host at all, which another port tells.

    Args:
        replica: with C(host), C(name) and C(port), and C(other_port), at which its host listens or refuses.
        address: at which other machines might reach it.
        timeout: seconds.
    """
    port = int(replica["port"])
    what = f"the port of {replica['name']} on {replica['host']} ({address}:{port}) is closed to this machine"
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return Check(what, "connected", False)
    except socket.gaierror as error:
        return Check(what, f"could not be tried: {error}", False, tried=False)
    except ConnectionRefusedError as error:
        return Check(what, str(error), True)
    except OSError as error:
        other = int(replica.get("other_port") or SSH_PORT)
        if reaches(address, other, timeout):
            return Check(what, f"{error}, and port {other} answers", True)
        found = f"could not be tried: {error}, and nothing of that host answers this machine, nor does port {other}"
        return Check(what, found, False, tried=False)


def reaches(address: str, port: int, timeout: float) -> bool:
    """Return whether this machine reaches another one: it connects to the port, or is refused."""
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return True
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def outside_addresses(given: Sequence[str], root: str = "/") -> list[str]:
    """Return those of the addresses that lead to another machine; if none does, this machine's own but loopback."""
    others = [address for address in dict.fromkeys(given) if not _only_here(address)]
    return others or own_addresses(root)


def _only_here(address: str) -> bool:
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(address, None)}
    except OSError:
        return False  # the attempt to connect will tell
    return all(ipaddress.ip_address(str(one).partition("%")[0]).is_loopback for one in found)


def own_addresses(root: str = "/") -> list[str]:
    """Return this machine's IPv4 addresses, without loopback."""
    found, last = [], ""
    for line in read_text(root, "proc/net/fib_trie").splitlines():
        text = line.strip(" |+-")
        if text.endswith("host LOCAL"):
            found.append(last)
        last = text.split()[0].partition("/")[0] if text else ""
    return sorted({address for address in found if not ipaddress.ip_address(address).is_loopback})
