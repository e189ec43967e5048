# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the Docker engine will get an image from its registry: asked as the engine will ask, without one on the host.

A registry wants nothing, a password (Basic) or a token (Bearer), which another server gives for a password or to
anyone. So the image itself is asked for: what refuses that will refuse the pull.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.reach import (
    ReachInfo,
    Route,
    Unreachable,
    answered,
    exchange,
    unanswered,
    without_user,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import (
    DOCKER_HUB,
    Reference,
    parse_reference,
    registry_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.trust import CERTIFICATES

DOCKER_HUB_ADDRESS = "registry-1.docker.io"
# Under which `docker login` keeps those of Docker Hub.
DOCKER_HUB_LOGIN = "https://index.docker.io/v1/"

LOGINS = "~/.docker/config.json"
LARGEST_TOKEN = 256 * 1024
MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Access:
    """How to get into a registry.

    Attributes:
        username: at the registry; empty for none.
        password: or a token.
        ca: text of the CA certificates that signed the registry's, empty for none.
        hidden: whether a helper of the Docker client may have a password, which only that client can ask for.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    ca: str = ""
    hidden: bool = False

    def basic(self) -> str:
        """Return the header that has name and password."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def look(
    reference: str, settings: Mapping[str, Any], access: Access | None = None, certificates: str = CERTIFICATES
) -> ReachInfo:
    """Return whether the engine will get an image: by a mirror of its registry or by the registry itself.

    Args:
        reference: the image's name.
        settings: C(proxies), C(mirrors) and C(insecure), see `pull_settings` of the Docker engine.
        access: name and password; None for those that C(docker login) left on the host.
        certificates: folder of the CA certificates that the engine trusts for one registry each.

    Returns:
        As C(reach.ask), for the first address that gives the image, or else for the registry itself. C(status) is
        what came of the name and the password, too; None where only the Docker client knows them.
    """
    name, image = registry_of(reference), parse_reference(reference)
    access = access if access and access.username else login(name, ca=access.ca if access else "")
    insecure = accepted_insecure(name, settings.get("insecure") or [])
    files = [
        os.path.join(certificates, name, entry) for entry in list_folder(certificates, name) if entry.endswith(".crt")
    ]
    route = Route(settings.get("proxies") or {}, files, verify=not insecure, engine=True, ca_text=access.ca)
    address = DOCKER_HUB_ADDRESS if name == DOCKER_HUB else name
    own = [f"{scheme}://{address}" for scheme in ("https", "http")[: 2 if insecure else 1]]
    mirrors = [mirror.rstrip("/") for mirror in settings.get("mirrors") or [] if name == DOCKER_HUB]
    found: list[ReachInfo] = []
    for base in [*mirrors, *own]:
        # The engine tells its password to the registry alone.
        found.append(_ask_for(image, without_user(base), route, access if base in own else Access()))
        if found[-1]["reachable"] and (base in own or found[-1]["status"] == 200):
            return found[-1]
    # By TLS a registry without it gives an error that says nothing of it.
    return next((entry for entry in found[len(mirrors) :] if entry["cause"] != "failed"), found[len(mirrors)])


def _ask_for(image: Reference, base: str, route: Route, access: Access) -> ReachInfo:
    path = _path_of(image)
    url = f"{base}/v2/{path}/manifests/{image.digest or image.tag}"
    wanted = {"Accept": MANIFESTS}
    try:
        reply = exchange(url, route, wanted)
        if reply.status == 401:
            authorization = _authorization(reply.headers.get_all("WWW-Authenticate") or [], path, url, route, access)
            if authorization:
                reply = exchange(url, route, {**wanted, "Authorization": authorization})
    except Unreachable as error:
        return unanswered(url, route, error)
    found = answered(url, route, reply)
    if reply.status in (401, 403) and access.hidden:
        return {**found, "status": None}
    return found


def _path_of(image: Reference) -> str:
    """Return the repository's name within its registry."""
    name = registry_of(image.repository)
    if name != DOCKER_HUB:
        return image.repository.partition("/")[2]
    path = image.repository.removeprefix(f"{DOCKER_HUB}/")
    return path if "/" in path else f"library/{path}"


def _authorization(challenges: Iterable[str], path: str, url: str, route: Route, access: Access) -> str:
    """Return the header that a registry asks for; empty where there is nothing to give it.

    Raises:
        Unreachable: its token server does not answer.
    """
    for challenge in challenges:
        scheme, _space, rest = challenge.strip().partition(" ")
        parts = urllib.request.parse_keqv_list(urllib.request.parse_http_list(rest)) if "=" in rest else {}
        if scheme.lower() == "bearer" and parts.get("realm"):
            token = _token(parts["realm"], parts.get("service", ""), path, url, route, access)
            return f"Bearer {token}" if token else ""
        if scheme.lower() == "basic" and access.username:
            return access.basic()
    return ""


def _token(realm: str, service: str, path: str, url: str, route: Route, access: Access) -> str:
    """Return the token that a token server gives; empty where it refuses."""
    if url.startswith("https:") and not realm.startswith("https:"):
        raise Unreachable(
            None, "failed", f"it names the token server {realm}, which would get the password unencrypted"
        )
    asked = {"scope": f"repository:{path}:pull", **({"service": service} if service else {})}
    address = f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode(asked)}"
    headers = {"Authorization": access.basic()} if access.username else {}
    try:
        reply = exchange(address, route, headers, method="GET", largest=LARGEST_TOKEN)
    except Unreachable as error:
        raise Unreachable(error.status, error.cause, f"its token server {realm}: {error}") from error
    if reply.status >= 500:
        raise Unreachable(reply.status, "unavailable", f"its token server {realm} answers {reply.status}")
    with contextlib.suppress(ValueError):
        answer = json.loads(reply.body or b"{}")
        if isinstance(answer, dict):
            return str(answer.get("token") or answer.get("access_token") or "")
    return ""


def login(name: str, path: str = LOGINS, ca: str = "") -> Access:
    """Return what C(docker login) left on the host for a registry."""
    try:
        content = json.loads(read_text(os.path.expanduser(path)) or "{}")
        keys = {name, f"https://{name}", f"https://{name}/v1/", *([DOCKER_HUB_LOGIN] if name == DOCKER_HUB else [])}
        entry: Any = next((found for key, found in (content.get("auths") or {}).items() if key in keys), None) or {}
        if entry.get("auth"):
            username, _colon, password = base64.b64decode(entry["auth"]).decode().partition(":")
            return Access(username, password.rstrip("\0"), ca)
        helpers = content.get("credHelpers") or {}
        return Access(ca=ca, hidden=bool(content.get("credsStore") or entry or name in helpers))
    except (ValueError, AttributeError, TypeError):
        return Access(ca=ca)


def accepted_insecure(name: str, listed: Sequence[str]) -> bool:
    """Return whether the engine takes this registry without a trusted certificate, as it does on loopback addresses."""
    host = name.rsplit(":", 1)[0].strip("[]")
    if name in listed or host in listed or host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        networks = [entry for entry in listed if "/" in entry]
        return address.is_loopback or any(address in ipaddress.ip_network(entry, strict=False) for entry in networks)
    return False
