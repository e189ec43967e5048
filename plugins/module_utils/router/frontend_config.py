# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frontend of HAProxy's configuration: who may ask for what, and how much."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import bracketed
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import (
    access_log,
    clients,
    model_paths,
    model_rules,
    proxies_config,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.browsers import browser_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.clients import RATE_WINDOW_S
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    BACKEND,
    CERTIFICATE,
    KEYS,
    OWN_HEADERS,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.load_limits import Limits
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import Route, all_named
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.request_forms import (
    key_rules,
    method_rules,
    too_long,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

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
    models = sorted({name for route in found for name in route.names})
    return [
        "frontend api",
        f"bind {host}:{settings.port}{proxies_config.bind_option(settings)}{crypt}",
        f"maxconn {most.connections + most.reserved}",
        # Also of a handshake that does not come; an answer may be silent for longer.
        f"timeout client {SILENT_S}s",
        f"timeout http-request {HEAD_S}s",
        # A connection that waits for the next request ends with the answer to that, or it is cut by a reload.
        "option idle-close-on-response",
        *_connection_rules(settings, most, folder),
        "monitor-uri /health",
        f"monitor fail if {{ nbsrv({BACKEND}) lt 1 }}",
        "",
        *access_log.frontend_lines(settings),
        _full(most),
        f"http-request del-header {OWN_HEADERS} -m beg",
        *proxies_config.client_rules(settings, folder),
        # Who is behind a load balancer is known by now.
        *([f"http-request track-sc1 src table {ADDRESSES} if !operator"] if settings.trusted_proxies else []),
        *browser_rules(settings.cors_origins),
        *(_who_may_ask(settings, folder) if settings.wants_key() else []),
        *model_paths.model_rules(models, settings.endpoints),
        f"acl allowed_path path -m str {' '.join(settings.endpoints)}",
        deny(404, "There is no such endpoint here.", "!allowed_path"),
        *access_log.request_rules(settings),
        *method_rules(),
        too_long(settings),
        *_request_limits(settings, most, folder),
        *access_log.answer_rules(settings),
        *(model_rules.list_rules(folder, BACKEND) if all_named(found) else []),
        *model_rules.model_rules(settings, found, folder),
        "",
        f"default_backend {BACKEND}",
    ]


def _full(most: Limits) -> str:
    """Return the rule that turns away who comes when there are as many connections as there may be."""
    return deny(
        503,
        "The router has as many connections as it may. Try again later.",
        f"{{ fe_conn gt {most.connections} }} !operator",
        " hdr Retry-After 5 hdr Connection close",
    )


def _who_may_ask(settings: RouterSettings, folder: str) -> list[str]:
    """Return the rules that let in who has a key, and find out whose it is."""
    wanted = "A valid API key is needed: send it as Authorization: Bearer <key>."
    return [
        *key_rules(),
        # A second one would be looked at here and not counted below, or the other way round.
        deny(400, "A request may have one Authorization.", "{ req.fhdr_cnt(authorization) gt 1 }"),
        *clients.identity_rules(folder),
        f"acl known_key var(txn.key_sum) -m str -f {folder}/{KEYS}",
        "http-request sc-inc-gpc0(1) if !known_key !named_client !operator",
        deny(
            429,
            f"More than {WRONG_KEYS} requests with a wrong key in {RATE_WINDOW_S} seconds.",
            f"!known_key !named_client !operator {{ sc1_gpc0_rate gt {WRONG_KEYS} }}",
            f" hdr Retry-After {RATE_WINDOW_S}",
        ),
        deny(401, wanted, "!known_key !named_client", " hdr WWW-Authenticate Bearer"),
        *(clients.expiry_rules(folder) if settings.clients else []),
    ]


def _connection_rules(settings: RouterSettings, most: Limits, folder: str) -> list[str]:
    """Return what bounds the connections before anything is known of them but their addresses."""
    operators = " ".join(settings.operators)
    lines = [
        *proxies_config.connection_rules(settings, folder),
        f"acl operator src {operators}" if operators else "acl operator always_false",
        "tcp-request connection accept if operator",
        # One address, and many clients behind it.
        *proxies_config.unbounded_rules(settings, folder),
        f"tcp-request connection track-sc1 src table {ADDRESSES}",
    ]
    if most.address:
        lines.append(f"tcp-request connection reject if {{ sc1_conn_cur gt {most.address} }}")
    if settings.connection_rate:
        lines.append(f"tcp-request connection reject if {{ sc1_conn_rate gt {settings.connection_rate} }}")
    # Half of what is reserved gets an answer, and the rest is the operators'.
    lines.append(f"tcp-request connection reject if {{ fe_conn gt {most.connections + most.reserved // 2} }}")
    return lines


def _request_limits(settings: RouterSettings, most: Limits, folder: str) -> list[str]:
    """Return what bounds the requests of one client, one key, or one address where there are no keys."""
    lines = clients.rate_rules(folder) if settings.clients else []
    if not (settings.rate_limit or most.key):
        return lines
    tracked = "req.fhdr(authorization),sha2(256)" if settings.wants_key() else "src"
    lines.append(f"http-request track-sc0 {tracked} table requests")
    if settings.rate_limit:
        message = f"More than {settings.rate_limit} requests in {RATE_WINDOW_S} seconds."
        others = " !own_rate" if settings.clients else ""
        beyond = f"{{ sc0_http_req_rate gt {settings.rate_limit} }}{others}"
        lines.append(deny(429, message, beyond, f" hdr Retry-After {RATE_WINDOW_S}"))
    if most.key:
        message = f"More than {most.key} requests of this key at once."
        lines.append(deny(429, message, f"{{ sc0_conn_cur gt {most.key} }}", " hdr Retry-After 1"))
    return lines


def tables(settings: RouterSettings) -> list[list[str]]:
    """Return the tables that count what each key, or each address, does."""
    kind = "binary len 32" if settings.wants_key() else "ipv6"
    window = f"{RATE_WINDOW_S}s"
    return [
        ["backend requests", f"stick-table type {kind} size 100k expire 1m store http_req_rate({window}),conn_cur"],
        [
            f"backend {ADDRESSES}",
            f"stick-table type ipv6 size 100k expire 1m store conn_cur,conn_rate({window}),gpc0,gpc0_rate({window})",
        ],
    ]
