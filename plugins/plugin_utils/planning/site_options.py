# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks the variables of a site's way out, registries and keys. They may hold passwords, which are not kept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import given, text_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import DIGEST, DOCKER_HUB, REFERENCE

EXAMPLE = "[{host: registry.example.com, username: fleet, password: …}]"


def proxy_given(value: Any) -> bool:
    """Return whether a proxy is named.

    Raises:
        ValueError: it is no address of one.
    """
    text = text_of(value)
    if text and (not _is_address(text) or urlsplit(text).path not in ("", "/")):
        raise ValueError(
            "it must be an address such as http://proxy.example.com:3128 or http://user:password@proxy.example.com:3128,"
            " with @ : / in user and password written as %40 %3A %2F"
        )
    return bool(text)


def index_given(value: Any) -> bool:
    """Return whether a package index is named.

    Raises:
        ValueError: it is no address of one.
    """
    text = text_of(value)
    if text and not _is_address(text):
        raise ValueError("it must be an address such as https://pypi.example.com/simple")
    return bool(text)


def image_name(value: Any) -> str:
    """Return the name of an image, with its registry.

    Raises:
        ValueError: it is none, or has a tag or a digest, which have variables of their own.
    """
    text = text_of(value)
    if "://" in text:
        raise ValueError("it must be as docker pull has it, such as registry.example.com/vllm/vllm-openai, without ://")
    if "@" in text or ":" in text.rsplit("/", 1)[-1]:
        raise ValueError("it must be without tag and digest; those are vllm_image_tag and vllm_image_digest")
    if not REFERENCE.fullmatch(text):
        raise ValueError("it must be a name that Docker takes: behind the registry in lower case, without white space")
    return text


def image_digest(value: Any) -> str:
    """Return the digest that an image must have; empty if none.

    Raises:
        ValueError: it is no digest.
    """
    text = text_of(value)
    if text and not DIGEST.fullmatch(text):
        raise ValueError("it must be sha256: and 64 hexadecimal digits")
    return text


def host_file(value: Any) -> str:
    """Return the path of a file on a host.

    Raises:
        ValueError: it is not absolute.
    """
    text = text_of(value)
    if not text.startswith("/"):
        raise ValueError("it must be auto, or the absolute path of a file on the host")
    return text


def secret_given(value: Any) -> bool:
    """Return whether a key or a token is given.

    Raises:
        ValueError: it could not be sent.
    """
    if given(value) and re.search(r"^\s|[\r\n]|\s$", str(value)):
        raise ValueError(
            "it begins or ends with white space, or has the end of a line in it, which no header can carry;"
            " printf '%s' \"$KEY\" | ansible-vault encrypt_string adds none, echo does"
        )
    return given(value)


def state_folder(value: Any) -> str:
    """Return the folder that vllm_state_url names; empty if it names none.

    Raises:
        ValueError: it is no absolute folder.
    """
    text = text_of(value) if value else ""
    if text and not text.removeprefix("file://").startswith("/"):
        raise ValueError(
            "it must be an absolute folder on the controller, such as /srv/gpufleet or file:///srv/gpufleet"
        )
    return text


def exceptions_given(value: Any) -> bool:
    """Return whether anyone is named who is reached without a proxy.

    Raises:
        ValueError: it is no list of names.
    """
    # Ansible takes a text with commas for a list.
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)):
        raise ValueError("it must be a list such as [.example.com, 10.0.0.0/8]")
    for entry in (text_of(entry) for entry in entries):
        if "://" in entry or re.search(r"\s", entry):
            raise ValueError(f"{entry!r} is no name, domain, address or network; leave out http:// and white space")
        if "*" in entry and entry != "*":
            raise ValueError(f"{entry!r} is read by few programs; write a domain with a dot, such as .example.com")
    return bool(entries)


def registries_given(value: Any) -> tuple[str, ...]:
    """Return the names of the registries for which there is a user.

    Raises:
        ValueError: it is no list of registries.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"it must be a list such as {EXAMPLE}")
    names: list[str] = []
    users: list[str] = []
    for entry in value:
        if not isinstance(entry, Mapping) or not entry.get("host"):
            raise ValueError(f"an entry has no host; write {EXAMPLE}")
        if "@" in str(entry["host"]):
            raise ValueError(f"the host of an entry has a user before it; write {EXAMPLE}")
        name = registry_name(str(entry["host"]))
        unknown = sorted(map(str, set(entry) - {"host", "username", "password", "ca"}))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no key of the entry of {name}; write {EXAMPLE}")
        if "/" in name or re.search(r"\s", name):
            raise ValueError(f"{name!r} is no host; write the part of an image's name before the first slash")
        if name in names:
            raise ValueError(f"{name} is there twice")
        if bool(entry.get("username")) != bool(entry.get("password")):
            lacks = "password" if entry.get("username") else "username"
            raise ValueError(f"the entry of {name} has no {lacks}, or an empty one; give both username and password")
        _check_authorities(name, str(entry.get("ca") or ""))
        names.append(name)
        users += [name] * bool(entry.get("username"))
    return tuple(users)


def _check_authorities(name: str, given_ca: str) -> None:
    path = os.path.abspath(os.path.expanduser(given_ca.strip()))
    if given_ca and "-----BEGIN" not in given_ca and not os.path.isfile(path):
        raise ValueError(
            f"ca of {name}: there is no file {path} on the controller; name one with CA certificates in PEM format, or"
            " give their text"
        )


def registry_name(host: str) -> str:
    """Return the name of a registry as images have it, for the ways in which people write it."""
    name = host.strip().partition("://")[2] or host.strip()
    name = name.rstrip("/").removesuffix("/v1").removesuffix("/v2")
    return DOCKER_HUB if name in ("index.docker.io", "registry-1.docker.io", "hub.docker.com") else name


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
