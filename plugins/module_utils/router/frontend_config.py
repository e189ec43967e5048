# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frontend of HAProxy's configuration: who may ask for what, and how much."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import bracketed
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import proxies_config
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    BACKEND,
    CERTIFICATE,
    KEYS,
    OWN_HEADERS,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import Route, all_named
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_rules import list_rules, model_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

RATE_WINDOW_S = 10


def frontend(settings: RouterSettings, found: Sequence[Route], folder: str) -> list[str]:
    """Return the frontend that clients speak to."""
    host = bracketed(settings.host)
    crypt = f" ssl crt {folder}/{CERTIFICATE} alpn h2,http/1.1" if settings.tls else ""
    lines = [
        "frontend api",
        f"bind {host}:{settings.port}{proxies_config.bind_option(settings)}{crypt}",
        *proxies_config.connection_rules(settings, folder),
        "monitor-uri /health",
        f"monitor fail if {{ nbsrv({BACKEND}) lt 1 }}",
        "",
        f"http-request del-header {OWN_HEADERS} -m beg",
        *proxies_config.client_rules(settings, folder),
    ]
    if settings.keys:
        known = f"req.fhdr(authorization),sha2(256),hex,lower -m str -f {folder}/{KEYS}"
        wanted = "A valid API key is needed: send it as Authorization: Bearer <key>."
        # A second one would be looked at here and not counted below, or the other way round.
        lines.append(deny(400, "A request may have one Authorization.", "{ req.fhdr_cnt(authorization) gt 1 }"))
        lines += [f"acl known_key {known}", deny(401, wanted, "!known_key", " hdr WWW-Authenticate Bearer")]
    most = settings.max_request_bytes
    lines += [
        f"acl allowed_path path -m str {' '.join(settings.endpoints)}",
        deny(404, "There is no such endpoint here.", "!allowed_path"),
        deny(405, "This method is not allowed.", "!METH_GET !METH_POST"),
        deny(411, "A request needs its Content-Length.", "METH_POST !{ req.hdr(content-length) -m found }"),
        deny(413, f"A request may have {most} bytes at most.", f"{{ req.hdr_val(content-length) gt {most} }}"),
    ]
    if settings.rate_limit:
        tracked = "req.fhdr(authorization),sha2(256)" if settings.keys else "src"
        lines += [
            f"http-request track-sc0 {tracked} table requests",
            deny(
                429,
                f"More than {settings.rate_limit} requests in {RATE_WINDOW_S} seconds.",
                f"{{ sc0_http_req_rate gt {settings.rate_limit} }}",
                " hdr Retry-After 10",
            ),
        ]
    lines.append("")
    if all_named(found):
        lines += list_rules(folder, BACKEND)
    return [*lines, *model_rules(settings, found, folder), f"default_backend {BACKEND}"]


def requests_table(settings: RouterSettings) -> list[str]:
    """Return the table that counts the requests of each key, or of each address."""
    kind = "binary len 32" if settings.keys else "ipv6"
    return [
        "backend requests",
        f"stick-table type {kind} size 100k expire 1m store http_req_rate({RATE_WINDOW_S}s)",
    ]
