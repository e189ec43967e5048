# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The router's files: HAProxy's configuration, and beside it what must not be shown.

The configuration itself holds no secret and may be seen in a difference. Clients' keys are kept as SHA-256 sums in a
file of their own; the key with which the router asks the replicas is in another, which HAProxy reads as root before
it becomes its own user. Everything used here is in HAProxy 2.4 and later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import authority, bracketed, is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import (
    ADDRESS,
    ENDPOINT,
    SERVER_NAME,
    Replica,
    key_sum,
)

BACKEND = "replicas"
CONFIG = "haproxy.cfg"
KEYS = "keys.sha256"
REPLICA_KEY = "replica.key"
CERTIFICATE = "site.pem"
REPLICAS = "replicas.json"
MASTER_SOCKET = "master.sock"
ADMIN_SOCKET = "admin.sock"
SERVER_STATE = "server-state"


RATE_WINDOW_S = 10
# What HAProxy answers of itself. Quotes would end the text in the configuration.
ERRORS = {
    400: "The request is no valid HTTP.",
    408: "The request did not come in time.",
    502: "The server that had the request broke off.",
    503: "No server is available now. Try again later.",
    504: "The server that has the request does not answer.",
}


@dataclass(frozen=True)
class RouterSettings:
    """What the router does, besides where the replicas are.

    Attributes:
        host: address to listen on.
        port: port to listen on.
        tls: whether clients must speak TLS.
        keys: keys of the clients; empty lets in everyone.
        replica_key: key with which the replicas are asked; empty sends none.
        endpoints: paths that pass.
        max_request_bytes: largest body of a request.
        rate_limit: requests of one key (or, without keys, of one address) in ten seconds; 0 for no limit.
        max_connections: connections of clients at once.
        max_requests_per_replica: requests at one replica at once, beyond which they wait here; 0 for no limit.
        buffer_bytes: a request up to this size can be sent again when a replica dies.
        timeout: seconds for which an answer may be silent.
        check_interval_ms: between two health checks of a replica.
        run_dir: folder of the sockets.
        state_dir: folder of what has to outlive a reboot.
        user: HAProxy's own user and group.
        chroot: folder HAProxy locks itself into; empty for none.
    """

    host: str
    port: int
    tls: bool
    keys: tuple[str, ...]
    replica_key: str
    endpoints: tuple[str, ...]
    max_request_bytes: int
    rate_limit: int
    max_connections: int
    max_requests_per_replica: int
    buffer_bytes: int
    timeout: int
    check_interval_ms: int
    run_dir: str
    state_dir: str
    user: str = "haproxy"
    chroot: str = ""


def check_settings(settings: RouterSettings, replicas: Sequence[Replica], allow_unauthenticated: bool) -> None:
    """Refuse what would be unsafe, or would not be a configuration.

    Raises:
        GpufleetError: C(invalid-router), naming every problem at once.
    """
    problems = list(_unsafe(settings, allow_unauthenticated))
    problems += [
        f"router_endpoints: {path!r} is not a path such as /v1/completions"
        for path in settings.endpoints
        if not ENDPOINT.fullmatch(path)
    ]
    if not settings.endpoints:
        problems.append("router_endpoints: is empty, so nothing could pass; leave it at its default")
    for key in (*settings.keys, settings.replica_key):
        if re.search(r"[\s\x00-\x1f\x7f]", key):
            problems.append("router_api_keys or vllm_api_key: a key has white space in it, which no header can carry")
    for replica in replicas:
        if not SERVER_NAME.fullmatch(replica.server()):
            problems.append(
                f"{replica.server()}: HAProxy's names have letters, digits and _ . : - alone; rename the host"
            )
        if not ADDRESS.fullmatch(replica.address):
            problems.append(f"vllm_router_address: {replica.address!r} of {replica.host} is neither name nor address")
    if problems:
        raise GpufleetError(
            "The router cannot be had like this:\n" + "\n".join(f"  - {problem}" for problem in problems),
            name="invalid-router",
            remedy="Set the variables as said above; ansible-doc -t role gpufleet.vllm.router lists them.",
            details={"problems": problems},
        )


def _unsafe(settings: RouterSettings, allow_unauthenticated: bool) -> Iterable[str]:
    if is_loopback(settings.host):
        return
    if not settings.keys and not allow_unauthenticated:
        yield (
            f"router_host: {settings.host} lets other machines in, and there is no key; set vllm_api_key or"
            " router_api_keys, set router_host: 127.0.0.1, or say vllm_allow_unauthenticated: true"
        )
    if not settings.tls:
        yield (
            f"router_tls: false on router_host: {settings.host} would send keys and prompts in the clear; leave it at"
            " true, or set router_host: 127.0.0.1"
        )


def files(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> dict[str, str]:
    """Return the files of the router, name to text, for the folder that they will be in."""
    return {
        CONFIG: config(settings, replicas, folder),
        KEYS: "".join(f"{digest}\n" for digest in sorted(map(key_sum, settings.keys))),
        REPLICA_KEY: f"replica {settings.replica_key}\n" if settings.replica_key else "",
        REPLICAS: json.dumps([vars(replica) for replica in replicas], indent=1) + "\n",
    }


def config(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> str:
    """Return HAProxy's configuration; it names files in C(folder)."""
    sections = (
        _global(settings),
        _defaults(settings),
        _front(settings, folder),
        *([_table(settings)] if settings.rate_limit else []),
        _backend(settings, replicas, folder),
    )
    return "# Written by the collection gpufleet.vllm (role router). Changes made here are overwritten.\n" + "\n".join(
        "\n".join((section[0], *(f"    {line}" if line else "" for line in section[1:]))) + "\n" for section in sections
    )


def _global(settings: RouterSettings) -> list[str]:
    lines = [
        "global",
        f"user {settings.user}",
        f"group {settings.user}",
        "log stdout format raw local0",
        f"stats socket {settings.run_dir}/{ADMIN_SOCKET} mode 600 level admin expose-fd listeners",
        # What was drained stays so when the configuration is loaded again, HAProxy started again or the host rebooted.
        f"server-state-file {settings.state_dir}/{SERVER_STATE}",
        f"maxconn {settings.max_connections}",
        f"hard-stop-after {settings.timeout}s",
        f"tune.bufsize {settings.buffer_bytes}",
        "tune.ssl.default-dh-param 2048",
        "ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
    ]
    return [*lines, f"chroot {settings.chroot}"] if settings.chroot else lines


def _defaults(settings: RouterSettings) -> list[str]:
    return [
        "defaults",
        "mode http",
        "log global",
        "option httplog",
        "option dontlog-normal",
        # A client that goes away ends its request at the replica, too.
        "option abortonclose",
        "timeout connect 3s",
        "timeout http-request 60s",
        "timeout http-keep-alive 60s",
        "timeout queue 60s",
        f"timeout client {settings.timeout}s",
        f"timeout server {settings.timeout}s",
        # A refused connection fails a health check at once; a server that is only slow, as under load, has this long.
        "timeout check 10s",
        *(_http_error(status, message) for status, message in ERRORS.items()),
        "load-server-state-from-file global",
    ]


def _front(settings: RouterSettings, folder: str) -> list[str]:
    host = bracketed(settings.host)
    crypt = f" ssl crt {folder}/{CERTIFICATE} alpn h2,http/1.1" if settings.tls else ""
    lines = [
        "frontend api",
        f"bind {host}:{settings.port}{crypt}",
        "monitor-uri /health",
        f"monitor fail if {{ nbsrv({BACKEND}) lt 1 }}",
        "",
    ]
    if settings.keys:
        known = f"req.fhdr(authorization),sha2(256),hex,lower -m str -f {folder}/{KEYS}"
        wanted = "A valid API key is needed: send it as Authorization: Bearer <key>."
        # A second one would be looked at here and not counted below, or the other way round.
        lines.append(_deny(400, "A request may have one Authorization.", "{ req.fhdr_cnt(authorization) gt 1 }"))
        lines += [f"acl known_key {known}", _deny(401, wanted, "!known_key", " hdr WWW-Authenticate Bearer")]
    most = settings.max_request_bytes
    lines += [
        f"acl allowed_path path -m str {' '.join(settings.endpoints)}",
        _deny(404, "There is no such endpoint here.", "!allowed_path"),
        _deny(405, "This method is not allowed.", "!METH_GET !METH_POST"),
        _deny(411, "A request needs its Content-Length.", "METH_POST !{ req.hdr(content-length) -m found }"),
        _deny(413, f"A request may have {most} bytes at most.", f"{{ req.hdr_val(content-length) gt {most} }}"),
    ]
    if settings.rate_limit:
        tracked = "req.fhdr(authorization),sha2(256)" if settings.keys else "src"
        lines += [
            f"http-request track-sc0 {tracked} table requests",
            _deny(
                429,
                f"More than {settings.rate_limit} requests in {RATE_WINDOW_S} seconds.",
                f"{{ sc0_http_req_rate gt {settings.rate_limit} }}",
                " hdr Retry-After 10",
            ),
        ]
    return [*lines, "", "http-request del-header X-Forwarded-For", "option forwardfor", f"default_backend {BACKEND}"]


def _deny(status: int, message: str, condition: str, more: str = "") -> str:
    """Return a rule that answers with an error in the form of OpenAI's API."""
    answer = f"return status {status} content-type application/json string '{_error(status, message)}'"
    return f"http-request {answer}{more} if {condition}"


def _http_error(status: int, message: str) -> str:
    """Return the line that gives an error of HAProxy's own the form of OpenAI's API."""
    return f"http-error status {status} content-type application/json string '{_error(status, message)}'"


def _error(status: int, message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}})


def _table(settings: RouterSettings) -> list[str]:
    kind = "binary len 32" if settings.keys else "ipv6"
    return [
        "backend requests",
        f"stick-table type {kind} size 100k expire 1m store http_req_rate({RATE_WINDOW_S}s)",
    ]


def _backend(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> list[str]:
    interval = settings.check_interval_ms
    limit = f" maxconn {settings.max_requests_per_replica}" if settings.max_requests_per_replica else ""
    replica_key = f'"Bearer %[str(replica),map({folder}/{REPLICA_KEY})]"' if settings.replica_key else ""
    lines = [
        f"backend {BACKEND}",
        "balance leastconn",
        "option httpchk",
        # With the key, so that a server that does not take it gets no request.
        f"http-check send meth GET uri /health{f' hdr Authorization {replica_key}' if replica_key else ''}",
        "http-check expect status 200",
        # Sent again, elsewhere: what found no connection, what a dying replica had answered nothing to, and what one
        # turned away that is about to stop. For that a request must be here whole. (In the frontend this would have the
        # rules wait for the body.)
        "option http-buffer-request",
        "option redispatch 1",
        "retries 3",
        "retry-on conn-failure empty-response 503",
    ]
    if replica_key:
        lines.append(f"http-request set-header Authorization {replica_key}")
    elif settings.keys:
        lines.append("http-request del-header Authorization")
    # A name that has another address now is followed; the last known one serves where names cannot be resolved.
    # One failed connection takes a replica out; two passed checks take it back.
    checks = f"inter {interval}ms fastinter {max(interval // 4, 100)}ms downinter {max(interval // 2, 100)}ms"
    lines.append(
        f"default-server check {checks} fall 2 rise 2 observe layer4 error-limit 1 on-error mark-down"
        f" pool-purge-delay 2s init-addr libc,last,none{limit}"
    )
    lines += [f"server {replica.server()} {_at(replica)}" for replica in replicas]
    return lines


def _at(replica: Replica) -> str:
    return authority(replica.address, replica.port)


def as_settings(params: Mapping[str, Any], chroot: str, replica_key: str) -> RouterSettings:
    """Return the settings in the options of the module router_server."""
    keys = tuple(dict.fromkeys(str(key) for key in params["api_keys"] if key))
    names = set(RouterSettings.__dataclass_fields__) - {"keys", "chroot", "user", "replica_key", "endpoints"}
    return RouterSettings(
        keys=keys,
        replica_key=replica_key,
        endpoints=tuple(params["endpoints"]),
        chroot=chroot,
        user=params["user"],
        **{name: params[name] for name in names},
    )
