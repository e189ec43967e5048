# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load balancers before the router: whose word counts for the address of a client, and who may connect at all."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import TRUSTED_PROXIES
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

HEADER = "x-forwarded-for"
A_PROXY = "a_proxy"
# Proxies behind each other that are looked through.
MOST_HOPS = 5


def proxies_file(settings: RouterSettings) -> dict[str, str]:
    """Return the file that the rules below name, name to text."""
    if not settings.trusted_proxies:
        return {}
    return {TRUSTED_PROXIES: "".join(f"{network}\n" for network in settings.trusted_proxies)}


def bind_option(settings: RouterSettings) -> str:
    """Return what a listening socket needs further; a connection without the header of that protocol is closed."""
    return " accept-proxy" if settings.proxy_protocol else ""


def connection_rules(settings: RouterSettings, folder: str) -> list[str]:
    """Return who may connect: the proxies alone where they vouch for their clients or have decrypted what they send.

    The address is that of the connection here, whatever the proxy says afterwards. Checks of this host go on working.
    """
    if not settings.trusted_proxies:
        return []
    known = f"acl {A_PROXY} src -f {folder}/{TRUSTED_PROXIES}"
    if settings.tls and not settings.proxy_protocol:
        return [known]
    return [known, "acl this_host src 127.0.0.0/8 ::1", f"tcp-request connection reject if !{A_PROXY} !this_host"]


def client_rules(settings: RouterSettings) -> list[str]:
    """Return what makes the last address of X-Forwarded-For that is no proxy's the client's; others have no say."""
    if not settings.trusted_proxies:
        return [f"http-request del-header {HEADER}", "option forwardfor"]
    lines = [
        "acl at_the_end var(txn.at_the_end) -m bool",
        f"http-request del-header {HEADER} if !{A_PROXY}",
    ]
    for hop in range(1, MOST_HOPS + 1):
        address = f"req.hdr_ip({HEADER},-{hop})"
        lines += [
            # What stands before something that is no address was written by who knows whom.
            f"http-request set-var(txn.at_the_end) bool(true) if {A_PROXY} !{{ {address} -m found }}",
            f"http-request set-src {address} if {A_PROXY} !at_the_end",
        ]
    return [*lines, "option forwardfor if-none"]
