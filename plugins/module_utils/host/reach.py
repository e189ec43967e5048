# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host gets through to where images and models come from, with the standard library alone.

One small request to each, by the way that the download will take: the engine pulls by its own proxy and mirrors, a
server in a container knows only the proxy that it is given. Addresses of proxies may hold passwords and are not told.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, NamedTuple, TypedDict, Union
from urllib.parse import urlsplit

TIMEOUT_S = 8.0
# A resolver that does not answer holds a request longer than its own timeout.
DEADLINE_S = 20.0

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
        ca_files: files of further CA certificates to trust.
        ca_text: the same as text.
        verify: whether certificates are checked.
        engine: whether the exceptions are read as the engine does, which is written in Go, and not as Python does.
    """

    proxies: Mapping[str, str] = field(default_factory=dict)
    ca_files: Sequence[str] = ()
    verify: bool = True
    engine: bool = False
    ca_text: str = ""

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

    def user(self, url: str) -> str:
        """Return the name that the proxy of an address is told; empty for none."""
        return urlsplit(str(self.proxies.get(urlsplit(url).scheme) or "")).username or ""


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


class Reply(NamedTuple):
    """What a server answered, whatever its status."""

    status: int
    headers: Message
    body: bytes


def exchange(
    url: str,
    route: Route,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "HEAD",
    largest: int = 0,
    timeout: float = TIMEOUT_S,
    follow: bool = False,
) -> Reply:
    """Return the answer to one request.

    Args:
        url: the address.
        route: the way there.
        headers: sent to that server alone, and not to where it redirects to.
        method: of HTTP.
        largest: bytes that are read at most, and one more.
        timeout: seconds without any byte after which it is given up.
        follow: whether redirections are followed; otherwise they are answers like others.

    Raises:
        Unreachable: nothing answers.
    """
    proxied = route.proxied(url)
    proxies = {name: value for name, value in route.proxies.items() if name != "no"} if proxied else {}
    handlers = [urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=_context(route))]
    opener = urllib.request.build_opener(*handlers, *([] if follow else [_NoRedirect()]))
    if not url.startswith(("https://", "http://")):
        raise Unreachable(None, "failed", "it is no address of a web server")
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "gpufleet.vllm"})  # noqa: S310  see above
    for name, value in (headers or {}).items():
        request.add_unredirected_header(name, value)
    try:
        with contextlib.closing(opener.open(request, timeout=timeout)) as answer:
            return Reply(answer.status, answer.headers, answer.read(largest + 1) if method != "HEAD" else b"")
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, b"")
    except (OSError, ValueError, http.client.HTTPException) as error:
        proxy = without_user(str(proxies.get(urlsplit(url).scheme) or ""))
        raise Unreachable(None, *_cause(error, proxy)) from error


def ask(url: str, route: Route, timeout: float = TIMEOUT_S, user: str = "") -> ReachInfo:
    """Return how a server answers a HEAD request.

    Args:
        url: the address; a user in it is left out.
        route: the way there.
        timeout: seconds without any byte after which it is given up.
        user: C(name:password) that it is told; empty for none.

    Returns:
        C(url), C(reachable) (something answered that is not the proxy refusing), C(status), C(cause) (C(dns),
        C(refused), C(timeout), C(certificate), C(proxy), C(unavailable) or C(failed); empty when reachable), C(reason)
        (for a person) and C(proxied).
    """
    url = without_user(url)  # to be told, and to be asked: who answers 401 is reached
    try:
        headers = {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"} if user else {}
        return answered(url, route, exchange(url, route, headers, timeout=timeout))
    except Unreachable as error:
        return unanswered(url, route, error)


def answered(url: str, route: Route, reply: Reply) -> ReachInfo:
    """Return what an answer says; one that the server itself gave still reached it."""
    status = reply.status
    found: ReachInfo = {**_told(url, route), "reachable": True, "status": status}
    # tinyproxy answers a wrong password as if it were the server.
    by_proxy = status == 401 and found["proxied"] and str(reply.headers.get("Server")).startswith("tinyproxy/")
    if status == PROXY_REFUSES or by_proxy:
        return {**found, "reachable": False, "cause": "proxy", "reason": _wants_password(route.user(url), status)}
    if status >= 500:
        return {**found, "reachable": False, "cause": "unavailable", "reason": f"it answers {status}"}
    return found


def unanswered(url: str, route: Route, error: Unreachable) -> ReachInfo:
    """Return why nothing answers."""
    return {**_told(url, route), "status": error.status, "cause": error.cause, "reason": str(error)}


def _told(url: str, route: Route) -> ReachInfo:
    proxied = route.proxied(url)
    return {"url": url, "reachable": False, "status": None, "cause": "", "reason": "", "proxied": proxied}


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
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    reply = exchange(url, route, headers, method="GET", largest=largest, timeout=timeout, follow=True)
    if not 200 <= reply.status < 300:
        cause = "proxy" if reply.status == PROXY_REFUSES else ""
        raise Unreachable(reply.status, cause, f"it answers {reply.status}")
    if len(reply.body) > largest:
        raise Unreachable(None, "failed", f"it gives more than {largest} bytes")
    return reply.body


def _context(route: Route) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for path in route.ca_files:
        with contextlib.suppress(OSError):
            context.load_verify_locations(cafile=path)
    if route.ca_text:
        context.load_verify_locations(cadata=route.ca_text)
    if not route.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _wants_password(user: str, status: int) -> str:
    if user:
        return f"the proxy does not accept the password of {user} ({status})"
    return f"the proxy wants a name and a password ({status})"


def _cause(error: Exception, proxy: str = "") -> tuple[str, str]:
    """Return the cause and the reason of an error; what fails on the way to a proxy is the proxy's."""
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, Exception) else error
    text = str(inner)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return "certificate", f"its certificate is not trusted: {inner.verify_message}"
    if "Tunnel connection failed" in text:
        said = text.partition("failed: ")[2]
        if said.startswith((str(PROXY_REFUSES), "401")):
            return "proxy", f"the proxy {proxy} wants a name and a password, or other ones than it got ({said[:3]})"
        return "proxy", f"the proxy {proxy} does not let it through ({said})"
    where = f"the proxy {proxy} is not reached: " if proxy else ""
    if isinstance(inner, socket.gaierror):
        return "proxy" if proxy else "dns", f"{where}its name cannot be resolved ({inner.strerror})"
    if isinstance(inner, ConnectionRefusedError):
        return "proxy" if proxy else "refused", f"{where}the connection is refused"
    if isinstance(inner, (socket.timeout, TimeoutError)) or "timed out" in text:
        return "timeout", f"nothing answers in time{f' by the proxy {proxy}' if proxy else ''}"
    return "failed", without_user(text) or type(inner).__name__


def without_user(text: str) -> str:
    """Return a text without the users and passwords in its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)


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
