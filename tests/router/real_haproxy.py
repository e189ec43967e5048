# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs this machine's HAProxy with the configuration of a router, for a test."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import config
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import READER_CONFIG
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

START_S = 20.0


@contextlib.contextmanager
def routing(folder: Path, settings: RouterSettings, replicas: Sequence[Replica]) -> Iterator[None]:
    """Have HAProxy route to the replicas, for the block; it begins once one of them is up."""
    (folder / "server-state").write_text("1\n", encoding="utf-8")
    for name, text in config.files(settings, replicas, str(folder)).items():
        (folder / name).write_text(text, encoding="utf-8")
    with (folder / "haproxy.log").open("wb") as log, contextlib.ExitStack() as stack:
        # The reader first, as the other one hands it the requests that it does not look into itself.
        for name in (READER_CONFIG, "haproxy.cfg"):
            process = subprocess.Popen(
                [str(program_path("haproxy")), "-db", "-f", str(folder / name)], stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        deadline = time.monotonic() + START_S
        while b" 200 " not in _health(settings):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "haproxy.log").read_text()
            time.sleep(0.05)
        yield


def _health(settings: RouterSettings) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", settings.port), timeout=5) as plain:
        connection: socket.socket = plain
        if settings.tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(plain)
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        return connection.recv(1000)
    return b""
