# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host gets through to where images and models come from, with the standard library alone.

One small request to each, by the way that the download will take: the engine pulls by its own proxy and mirrors, a
server in a container knows only the proxy that it is given. Addresses of proxies may hold passwords and are not told.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Union
from urllib.parse import urlsplit

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import DOCKER_HUB, registry_of

TIMEOUT_S = 8.0
# A resolver that does not answer holds a request longer than its own timeout.
DEADLINE_S = 20.0

DOCKER_HUB_ADDRESS = "registry-1.docker.io"
PROXY_REFUSES = 407
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


class ReachInfo(TypedDict):
    """How a server answered."""

    url: str
    reachable: bool
    status: int | None
    cause: str
    reason: str
    proxied: bool


@dataclass(frozen=True)
class Route:
    """How requests leave the host.

    Attributes:
        proxies: scheme to the proxy's address, and C(no) to the hosts that are reached without it.
        ca_files: further CA certificates to trust.
        verify: whether certificates are checked.
        engine: whether the exceptions are read as the engine does, which is written in Go, and not as Python does.
    """

    proxies: Mapping[str, str] = field(default_factory=dict)
    ca_files: Sequence[str] = ()
    verify: bool = True
    engine: bool = False

    def proxied(self, url: str) -> bool:
        """Return whether a request to C(url) goes through a proxy."""
        parts = urlsplit(url)
        if not self.proxies.get(parts.scheme):
            return False
        if self.engine:
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            return not engine_bypasses(parts.hostname or "", port, self.proxies.get("no") or "")
        bypassed = urllib.request.proxy_bypass_environment(parts.netloc, dict(self.proxies))  # type: ignore[attr-defined]
        return not bypassed


def engine_bypasses(host: str, port: int, exceptions: str) -> bool:
    """Return whether the engine reaches a host without its proxy.

    Args:
        host: its name or address.
        port: its port.
        exceptions: the engine's C(no-proxy): names, which stand for all below them too, C(.name) and C(*.name) for
            those below alone, addresses, networks, each but the last with a port or without, or C(*) for every host.
    """
    host = host.lower()
    address = _address(host)
    if host == "localhost" or (address and address.is_loopback):
        return True
    entries = [entry.strip().lower() for entry in exceptions.split(",")]
    return "*" in entries or any(_excepted(host, address, port, entry) for entry in entries if entry)


def _excepted(host: str, address: Address | None, port: int, entry: str) -> bool:
    if "/" in entry:
        with contextlib.suppress(ValueError):
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
    name, wanted = entry, ""
    # A second colon belongs to an IPv6 address.
    if entry.startswith("[") or entry.count(":") == 1:
        name, _colon, wanted = entry.rpartition(":") if not entry.endswith("]") else (entry, "", "")
    name = name.strip("[]")
    if wanted not in ("", str(port)):
        return False
    if _address(name):
        return address == _address(name)
    name = name[1:] if name.startswith("*.") else name
    return bool(name) and (host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}"))


def _address(text: str) -> Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text)
    return None


class Unreachable(Exception):
    """An address that gives nothing: the server's C(status), or None and the C(cause) as in ReachInfo."""

    def __init__(self, status: int | None, cause: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.cause = cause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirection as the answer that it is: nothing is downloaded."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        return None


class _Refusal(TypedDict, total=False):
    """What an answer that is no success changes."""

    reachable: bool
    cause: str
    reason: str


def ask(url: str, route: Route, timeout: float = TIMEOUT_S) -> ReachInfo:
    """Return how a server answers a HEAD request.

    Returns:
        C(url), C(reachable) (something answered that is not the proxy refusing), C(status), C(cause) (C(dns),
        C(refused), C(timeout), C(certificate), C(proxy), C(unavailable) or C(failed); empty when reachable), C(reason)
        (for a person) and C(proxied).
    """
    url = without_user(url)  # to be told, and to be asked: who answers 401 is reached
    result: ReachInfo = {
        "url": url,
        "reachable": False,
        "status": None,
        "cause": "",
        "reason": "",
        "proxied": route.proxied(url),
    }
    proxies = {name: value for name, value in route.proxies.items() if name != "no"} if result["proxied"] else {}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPSHandler(context=_context(route)),
        _NoRedirect(),
    )
    if not url.startswith(("https://", "http://")):
        return {**result, "cause": "failed", "reason": "it is no address of a web server"}
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  the scheme was looked at
    try:
        with contextlib.closing(opener.open(request, timeout=timeout)) as answer:
            return {**result, "reachable": True, "status": answer.status}
    except urllib.error.HTTPError as error:
        return {**result, "status": error.code, **_refused(error.code)}
    except (OSError, ValueError) as error:
        cause, reason = _cause(error)
        return {**result, "cause": cause, "reason": reason}


def get(url: str, route: Route, token: str = "", *, largest: int, timeout: float = TIMEOUT_S) -> bytes:
    """Return what a server gives for an address.

    Args:
        url: the address.
        route: the way there.
        token: sent to that server alone, and not to where it redirects to; empty for none.
        largest: bytes that are read at most.
        timeout: seconds without any byte after which it is given up.

    Raises:
        Unreachable: the server refuses, or does not answer.
    """
    url = without_user(url)
    proxied = route.proxied(url)
    proxies = {name: value for name, value in route.proxies.items() if name != "no"} if proxied else {}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=_context(route))
    )
    if not url.startswith(("https://", "http://")):
        raise Unreachable(None, "failed", "it is no address of a web server")
    request = urllib.request.Request(url, headers={"User-Agent": "gpufleet.vllm"})  # noqa: S310  see above
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with contextlib.closing(opener.open(request, timeout=timeout)) as answer:
            content: bytes = answer.read(largest + 1)
    except urllib.error.HTTPError as error:
        raise Unreachable(
            error.code, "proxy" if error.code == PROXY_REFUSES else "", f"it answers {error.code}"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(None, *_cause(error)) from error
    if len(content) > largest:
        raise Unreachable(None, "failed", f"it gives more than {largest} bytes")
    return content


def _context(route: Route) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for path in route.ca_files:
        with contextlib.suppress(OSError):
            context.load_verify_locations(cafile=path)
    if not route.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refused(status: int) -> _Refusal:
    """Return what an answer that is no success means; one that the server itself gave still reached it."""
    if status == PROXY_REFUSES:
        return {"cause": "proxy", "reason": "the proxy wants a name and a password (407)"}
    if status >= 500:
        return {"cause": "unavailable", "reason": f"it answers {status}"}
    return {"reachable": True}


def _cause(error: Exception) -> tuple[str, str]:
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, Exception) else error
    text = str(inner)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return "certificate", f"its certificate is not trusted: {inner.verify_message}"
    if isinstance(inner, socket.gaierror):
        return "dns", f"its name cannot be resolved ({inner.strerror})"
    if isinstance(inner, ConnectionRefusedError):
        return "refused", "the connection is refused"
    if isinstance(inner, (socket.timeout, TimeoutError)) or "timed out" in text:
        return "timeout", "nothing answers in time"
    if "Tunnel connection failed" in text:
        return "proxy", f"the proxy does not let it through ({text.partition('failed: ')[2]})"
    return "failed", without_user(text) or type(inner).__name__


def without_user(text: str) -> str:
    """Return a text without the users and passwords in its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)


# Registries


def registry(reference: str, settings: Mapping[str, Any], certificates: str = "/etc/docker/certs.d") -> ReachInfo:
    """Return whether the engine could ask the registry of an image, or a mirror of it.

    Args:
        reference: the image's name.
        settings: C(proxies), C(mirrors) and C(insecure), see `pull_settings` of the Docker engine.
        certificates: folder of the CA certificates that the engine trusts for one registry each.

    Returns:
        As C(ask), for the first address that answers, or else for the registry itself.
    """
    name = registry_of(reference)
    addresses = [DOCKER_HUB_ADDRESS if name == DOCKER_HUB else name]
    insecure = _insecure(name, settings.get("insecure") or [])
    authorities = [
        os.path.join(certificates, name, entry) for entry in list_folder(certificates, name) if entry.endswith(".crt")
    ]
    route = Route(settings.get("proxies") or {}, authorities, verify=not insecure, engine=True)
    urls = [
        f"{scheme}://{address}/v2/" for address in addresses for scheme in ("https", "http")[: 2 if insecure else 1]
    ]
    mirrors = [mirror.rstrip("/") + "/v2/" for mirror in settings.get("mirrors") or [] if name == DOCKER_HUB]
    found: list[ReachInfo] = []
    for url in [*mirrors, *urls]:
        found.append(ask(url, route))
        if found[-1]["reachable"]:
            return found[-1]
    return found[len(mirrors)]


def _insecure(name: str, listed: Sequence[str]) -> bool:
    """Return whether the engine takes this registry without a trusted certificate, as it does on loopback addresses."""
    host = name.rsplit(":", 1)[0].strip("[]")
    if name in listed or host in listed or host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        networks = [entry for entry in listed if "/" in entry]
        return address.is_loopback or any(address in ipaddress.ip_network(entry, strict=False) for entry in networks)
    return False


# Several at once


def ask_all(questions: Mapping[str, Any], deadline: float = DEADLINE_S) -> dict[str, ReachInfo]:
    """Call functions that take no argument side by side and return their answers by the same keys.

    One that has not answered within C(deadline) seconds counts as not reachable.
    """
    answers: dict[str, ReachInfo] = {}

    def work(key: str) -> None:
        try:
            answers[key] = questions[key]()
        except Exception as error:
            answers[key] = _nothing("failed", f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(key,), daemon=True) for key in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline)
    late = _nothing("timeout", "nothing answers in time")
    return {key: answers.get(key, late) for key in questions}


def _nothing(cause: str, reason: str) -> ReachInfo:
    return {"url": "", "reachable": False, "status": None, "cause": cause, "reason": reason, "proxied": False}
