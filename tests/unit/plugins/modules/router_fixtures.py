# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real HAProxy of this machine with the role's configuration, and a client of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

KEY = "the-client-key"
# What RouterService takes, in its order, and where it is in the folder.
PLACES = {"directory": "etc", "run_dir": "run", "state_dir": "state", "log_file": "log"}
needs_haproxy = pytest.mark.skipif(
    program_path("haproxy") is None or os.geteuid() != 0 or os.path.isdir("/run/systemd/system"),
    reason="no HAProxy here, or not ours to start; Molecule's scenario fleet does",
)


@contextlib.contextmanager
def router_in(folder: Path, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield options of router_server for a router in a folder of the test; what was started is ended."""
    places = {name: str(folder / path) for name, path in PLACES.items()}
    try:
        yield {"port": free_port(), **places, "user": "daemon", **options}
    finally:
        RouterService(*places.values()).remove()


def router_options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Return options of router_server for a router in a folder of the test, without TLS."""
    folders = {name: str(tmp_path / name) for name in ("directory", "run_dir", "state_dir", "log_file")}
    hosts = [f"gpu-{number:02}" for number in range(1, 9)]
    keys = dict.fromkeys(hosts, "the-replica-key")
    loopback = {"host": "127.0.0.1", "port": free_port(), "tls": False, "user": "daemon"}
    return {**loopback, "hosts": {}, "api_keys": [KEY], "replica_keys": keys, **folders, **more}


def serving_at(port: int, models: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return a replica as a host's plan tells of it."""
    return {"name": "vllm-0", "address": "127.0.0.1", "port": port, "models": list(models), **more}


def chat(model: str | None, text: str = "hello", *, last: bool = False) -> bytes:
    """Return the body of a request, whose model stands last or first."""
    messages = {"messages": [{"role": "user", "content": text}]}
    named = {} if model is None else {"model": model}
    return json.dumps({**messages, **named} if last else {**named, **messages}).encode()


def in_chunks(body: bytes, size: int = 65536) -> Iterator[bytes]:
    """Yield a body in parts, which has it sent without its length."""
    for begin in range(0, len(body), size):
        yield body[begin : begin + size]


def ask(
    port: int,
    body: bytes | Iterator[bytes] | None = None,
    path: str = "/v1/chat/completions",
    *,
    key: str = KEY,
    **headers: str,
) -> tuple[int, dict[str, Any]]:
    """Return the status and the document with which the router answers a request."""
    status, document, _headers = ask_whole(port, body, path, key=key, **headers)
    return status, document


def ask_whole(
    port: int,
    body: bytes | Iterator[bytes] | None = None,
    path: str = "/v1/chat/completions",
    *,
    key: str = KEY,
    **headers: str,
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the status, the document and the headers with which the router answers a request."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        given["Authorization"] = f"Bearer {key}"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        # A router that answers before it has the whole body closes the connection.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("GET" if body is None else "POST", path, body, given)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text or b"{}"), {name.lower(): value for name, value in answer.getheaders()}
