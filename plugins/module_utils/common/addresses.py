# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of hosts and servers."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from its own machine alone."""
    try:
        return ipaddress.ip_address(bare(host)).is_loopback
    except ValueError:
        return host == "localhost"


def bare(host: str) -> str:
    """Return an address without the brackets in which URLs have those of IPv6."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def host_of(server: str) -> str:
    """Return the host of a server of HAProxy's configuration; an address of IPv6 as a host's name has colons, too."""
    return server.rpartition(":")[0]


def bracketed(host: str) -> str:
    """Return an address as it stands before a port."""
    return f"[{bare(host)}]" if ":" in host else host


def reachable(host: str) -> str:
    """Return the address at which a server that listens on C(host) is reached from its own machine."""
    return bracketed({"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(bare(host), host))  # noqa: S104


def authority(host: str, port: int) -> str:
    """Return a host and a port as they stand in an address: `127.0.0.1:8000`, `[::1]:8000`."""
    return f"{bracketed(host)}:{port}"
