# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frontend of HAProxy's configuration: who may ask for what, and how much."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import bracketed
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.browsers import browser_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    BACKEND,
    CERTIFICATE,
    KEYS,
    OWN_HEADERS,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.load_limits import Limits
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_paths import one_model_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import Route, all_named
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_rules import list_rules, model_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.request_forms import (
    body_rules,
    key_rules,
    method_rules,
    too_long,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

RATE_WINDOW_S = 10
ADDRESSES = "addresses"
# For how long a client may be silent while it is its turn.
SILENT_S = 30
# For how long the head of a request may take.
HEAD_S = 30
# Of one address, in a window.
WRONG_KEYS = 100


def frontend(settings: RouterSettings, found: Sequence[Route], most: Limits, folder: str) -> list[str]:
    """Return the frontend that clients speak to."""
    host = bracketed(settings.host)
    crypt = f" ssl crt {folder}/{CERTIFICATE} alpn h2,http/1.1" if settings.tls else ""
    lines = [
        "frontend api",
        f"bind {host}:{settings.port}{crypt}",
        f"maxconn {most.connections + most.reserved}",
        # Also of a handshake that does not come; an answer may be silent for longer.
        f"timeout client {SILENT_S}s",
        f"timeout http-request {HEAD_S}s",
        *connection_rules(settings, most),
        "monitor-uri /health",
        f"monitor fail if {{ nbsrv({BACKEND}) lt 1 }}",
        "",
        deny(
            503,
            "The router has as many connections as it may. Try again later.",
            f"{{ fe_conn gt {most.connections} }} !operator",
            " hdr Retry-After 5 hdr Connection close",
        ),
        f"http-request del-header {OWN_HEADERS} -m beg",
    ]
    lines += browser_rules(settings.cors_origins)
    if settings.keys:
        lines += key_rules()
    lines += _key_rules(settings, folder)
    lines += [
        *one_model_rules(found, settings.endpoints),
        f"acl allowed_path path -m str {' '.join(settings.endpoints)}",
        deny(404, "There is no such endpoint here.", "!allowed_path"),
        *method_rules(),
        too_long(settings),
    ]
    lines += _request_limits(settings, most)
    lines += ["", "http-request del-header X-Forwarded-For", "option forwardfor"]
    if all_named(found):
        lines += list_rules(folder, BACKEND)
    lines += body_rules(settings)
    return [*lines, *model_rules(settings, found, folder), f"default_backend {BACKEND}"]


def _key_rules(settings: RouterSettings, folder: str) -> list[str]:
    """Return the rules that let in who has a key."""
    if not settings.keys:
        return []
    known = f"req.fhdr(authorization),sha2(256),hex,lower -m str -f {folder}/{KEYS}"
    wanted = "A valid API key is needed: send it as Authorization: Bearer <key>."
    return [
        # A second one would be looked at here and not counted below, or the other way round.
        deny(400, "A request may have one Authorization.", "{ req.fhdr_cnt(authorization) gt 1 }"),
        f"acl known_key {known}",
        "http-request sc-inc-gpc0(1) if !known_key !operator",
        deny(
            429,
            f"More than {WRONG_KEYS} requests with a wrong key in {RATE_WINDOW_S} seconds.",
            f"!known_key !operator {{ sc1_gpc0_rate gt {WRONG_KEYS} }}",
            " hdr Retry-After 10",
        ),
        deny(401, wanted, "!known_key", " hdr WWW-Authenticate Bearer"),
    ]


def connection_rules(settings: RouterSettings, most: Limits) -> list[str]:
    """Return what bounds the connections before anything is known of them but their addresses."""
    operators = " ".join(settings.operators)
    lines = [f"acl operator src {operators}" if operators else "acl operator always_false"]
    lines += ["tcp-request connection accept if operator", f"tcp-request connection track-sc1 src table {ADDRESSES}"]
    if most.address:
        lines.append(f"tcp-request connection reject if {{ sc1_conn_cur gt {most.address} }}")
    if settings.connection_rate:
        lines.append(f"tcp-request connection reject if {{ sc1_conn_rate gt {settings.connection_rate} }}")
    # Half of what is reserved gets an answer, and the rest is the operators'.
    lines.append(f"tcp-request connection reject if {{ fe_conn gt {most.connections + most.reserved // 2} }}")
    return lines


def _request_limits(settings: RouterSettings, most: Limits) -> list[str]:
    """Return what bounds the requests of one key, or of one address where there are no keys."""
    if not (settings.rate_limit or most.key):
        return []
    tracked = "req.fhdr(authorization),sha2(256)" if settings.keys else "src"
    lines = [f"http-request track-sc0 {tracked} table requests"]
    if settings.rate_limit:
        message = f"More than {settings.rate_limit} requests in {RATE_WINDOW_S} seconds."
        beyond = f"{{ sc0_http_req_rate gt {settings.rate_limit} }}"
        lines.append(deny(429, message, beyond, " hdr Retry-After 10"))
    if most.key:
        message = f"More than {most.key} requests of this key at once."
        lines.append(deny(429, message, f"{{ sc0_conn_cur gt {most.key} }}", " hdr Retry-After 1"))
    return lines


def tables(settings: RouterSettings) -> list[list[str]]:
    """Return the tables that count what each key, or each address, does."""
    kind = "binary len 32" if settings.keys else "ipv6"
    window = f"{RATE_WINDOW_S}s"
    return [
        ["backend requests", f"stick-table type {kind} size 100k expire 1m store http_req_rate({window}),conn_cur"],
        [
            f"backend {ADDRESSES}",
            f"stick-table type ipv6 size 100k expire 1m store conn_cur,conn_rate({window}),gpc0,gpc0_rate({window})",
        ],
    ]
