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
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    BACKEND,
    CERTIFICATE,
    KEYS,
    OWN_HEADERS,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import Route, all_named
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.request_forms import (
    body_rules,
    key_rules,
    method_rules,
    too_long,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

RATE_WINDOW_S = 10


def frontend(settings: RouterSettings, found: Sequence[Route], folder: str) -> list[str]:
    """Return the frontend that clients speak to."""
    host = bracketed(settings.host)
    crypt = f" ssl crt {folder}/{CERTIFICATE} alpn h2,http/1.1" if settings.tls else ""
    models = sorted({name for route in found for name in route.names})
    return [
        "frontend api",
        f"bind {host}:{settings.port}{proxies_config.bind_option(settings)}{crypt}",
        # A connection that waits for the next request ends with the answer to that, or it is cut by a reload.
        "option idle-close-on-response",
        *proxies_config.connection_rules(settings, folder),
        "monitor-uri /health",
        f"monitor fail if {{ nbsrv({BACKEND}) lt 1 }}",
        "",
        *access_log.frontend_lines(settings),
        f"http-request del-header {OWN_HEADERS} -m beg",
        *proxies_config.client_rules(settings, folder),
        *browser_rules(settings.cors_origins),
        *(_who_may_ask(settings, folder) if settings.wants_key() else []),
        *model_paths.model_rules(models, settings.endpoints),
        f"acl allowed_path path -m str {' '.join(settings.endpoints)}",
        deny(404, "There is no such endpoint here.", "!allowed_path"),
        *access_log.request_rules(settings),
        *method_rules(),
        too_long(settings),
        *_how_often(settings, folder),
        *body_rules(settings),
        *access_log.answer_rules(settings),
        *(model_rules.list_rules(folder, BACKEND) if all_named(found) else []),
        *model_rules.model_rules(settings, found, folder),
        "",
        f"default_backend {BACKEND}",
    ]


def _who_may_ask(settings: RouterSettings, folder: str) -> list[str]:
    """Return the rules that let in who has a key, and find out whose it is."""
    wanted = "A valid API key is needed: send it as Authorization: Bearer <key>."
    return [
        *key_rules(),
        # A second one would be looked at here and not counted below, or the other way round.
        deny(400, "A request may have one Authorization.", "{ req.fhdr_cnt(authorization) gt 1 }"),
        *clients.identity_rules(folder),
        f"acl known_key var(txn.key_sum) -m str -f {folder}/{KEYS}",
        deny(401, wanted, "!known_key !named_client", " hdr WWW-Authenticate Bearer"),
        *(clients.expiry_rules(folder) if settings.clients else []),
    ]


def _how_often(settings: RouterSettings, folder: str) -> list[str]:
    """Return the rules that bound how often a client may ask."""
    lines = clients.rate_rules(folder) if settings.clients else []
    if settings.rate_limit:
        tracked = "req.fhdr(authorization),sha2(256)" if settings.wants_key() else "src"
        others = " if !own_rate" if settings.clients else ""
        too_often = f"More than {settings.rate_limit} requests in {RATE_WINDOW_S} seconds."
        lines += [
            f"http-request track-sc0 {tracked} table requests{others}",
            deny(429, too_often, f"{{ sc0_http_req_rate gt {settings.rate_limit} }}", " hdr Retry-After 10"),
        ]
    return lines


def requests_table(settings: RouterSettings) -> list[str]:
    """Return the table that counts the requests of each key, or of each address."""
    kind = "binary len 32" if settings.wants_key() else "ipv6"
    return [
        "backend requests",
        f"stick-table type {kind} size 100k expire 1m store http_req_rate({RATE_WINDOW_S}s)",
    ]
