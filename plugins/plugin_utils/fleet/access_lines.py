# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How clients reach a router, in lines that a person reads and can paste."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import authority, is_loopback

KEY_VARIABLE = "LLM_KEY"


def resolves(name: str) -> bool:
    """Return whether this machine knows an address of a name."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except (OSError, UnicodeError):
        return False


@dataclass(frozen=True)
class Access:
    """What the variables of a router's host say of it.

    Attributes:
        names: those that its certificate has, the first one being what clients use.
        host: the address that it listens on.
        port: the port that it listens on.
        tls: whether it speaks TLS.
        connect_to: where this machine reaches it, if it is none of the names.
        ansible_host: where Ansible reaches its host.
        made_certificate: file on the controller with the certificate that was made for it; empty where one was given.
        authorities: file with the authorities of the one that was given; empty for the system's.
        asks_for_key: whether it wants a key.
        models: names of what it serves.
    """

    names: Sequence[str]
    host: str
    port: int
    tls: bool
    connect_to: str
    ansible_host: str
    made_certificate: str
    authorities: str
    asks_for_key: bool
    models: Sequence[str]


def access_lines(access: Access, is_known: Callable[[str], bool] = resolves) -> list[str]:
    """Return the router's address, what clients have to trust, and a line that asks it."""
    name, detour = _way(access, is_known)
    url = f"{'https' if access.tls else 'http'}://{authority(name, access.port)}"
    models = f" for {', '.join(access.models)}" if access.models else ""
    lines = [f"OpenAI's API is at {url}/v1{models}."]
    if is_loopback(access.host):
        lines.append(f"Only its own host reaches it, as router_host is {access.host}.")
    trusted = ""
    if access.tls and access.made_certificate:
        trusted = os.path.abspath(access.made_certificate)
        lines.append(
            f"Clients have to trust its certificate, {trusted}: curl by --cacert, OpenAI's Python client by"
            " SSL_CERT_FILE in its environment."
        )
    elif access.tls:
        trusted = access.authorities
    words = ["curl", *(["--cacert", trusted] if trusted else []), *detour, f"{url}/v1/models"]
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if access.asks_for_key else ""
    with_key = f", with a key in the environment variable {KEY_VARIABLE}" if access.asks_for_key else ""
    return [*lines, f"To ask which models it has{with_key}:", f"  {shlex.join(words)}{key}"]


def _way(access: Access, is_known: Callable[[str], bool]) -> tuple[str, list[str]]:
    """Return the name by which to ask, and the options of curl that lead to it where the name alone does not."""
    names = list(access.names) or [access.ansible_host]
    if is_loopback(access.host):
        reached = access.host
    elif access.connect_to:
        reached = access.connect_to
    else:
        known = next((name for name in names if is_known(name)), "")
        if known:
            return known, []
        reached = access.ansible_host
    if reached in names or not access.tls:
        return reached, []
    return names[0], ["--connect-to", f"::{authority(reached, access.port)}"]
