# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages in browsers as clients: which sites' pages may ask, and what a browser is told before it does (CORS).

vLLM lets every page read its answers. Here only the pages of named origins may, so what a replica says of it is left
out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

EVERY_ORIGIN = "*"
ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]+)?")
REMEMBERED_S = 600
SAID_BY_REPLICAS = ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Expose-Headers")


def origin_problems(origins: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the origins, in words for whoever set them."""
    for origin in origins:
        if origin != EVERY_ORIGIN and not ORIGIN.fullmatch(origin):
            yield (
                f"router_cors_origins: {origin!r} is no origin such as https://chat.example.com, without a path; '*'"
                " stands for every site"
            )
    if EVERY_ORIGIN in origins and len(origins) > 1:
        yield "router_cors_origins: '*' lets in every site, so nothing can be named beside it"


def browser_rules(origins: Sequence[str]) -> list[str]:
    """Return the rules of a frontend; they come before the key is asked for, which a preflight does not carry."""
    from_replicas = [f"http-response del-header {name}" for name in SAID_BY_REPLICAS]
    if not origins:
        return from_replicas
    everyone = EVERY_ORIGIN in origins
    known = "-m found" if everyone else f"-m str {' '.join(origins)}"
    allowed = f"str({EVERY_ORIGIN})" if everyone else "req.fhdr(origin)"
    asked = "{ var(txn.origin) -m found }"
    return [
        f"http-request set-var(txn.origin) {allowed} if {{ req.fhdr(origin) {known} }}",
        "http-request return status 204 hdr Access-Control-Allow-Methods 'GET, HEAD, POST'"
        " hdr Access-Control-Allow-Headers %[req.fhdr(access-control-request-headers)]"
        f" hdr Access-Control-Max-Age {REMEMBERED_S}"
        f" if METH_OPTIONS {asked} {{ req.hdr(access-control-request-method) -m found }}",
        *from_replicas,
        f"http-after-response set-header Access-Control-Allow-Origin %[var(txn.origin)] if {asked}",
        f"http-after-response set-header Access-Control-Expose-Headers 'Retry-After, X-Request-Id' if {asked}",
        "http-after-response add-header Vary Origin",
    ]
