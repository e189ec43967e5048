# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A router by the HAProxy of this machine, in a folder of a test."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.modules import router_server
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port

Answer = tuple[int, dict[str, str], bytes]


class RunningRouter:
    """A router before one replica, with the options of its module."""

    def __init__(self, run_module: RunModule, folder: Path, port: int) -> None:
        self._run_module = run_module
        self.options: dict[str, Any] = {
            "hosts": {"gpu-01": [{"name": "vllm-0", "address": "127.0.0.1", "port": port}]},
            "host": "127.0.0.1",
            "port": free_port(),
            "tls": False,
            "api_keys": [],
            "replica_keys": {"gpu-01": ""},
            "directory": str(folder / "etc"),
            "run_dir": str(folder / "run"),
            "state_dir": str(folder / "state"),
            "log_file": str(folder / "log"),
            "user": "daemon",
        }

    def run(self, given: list[dict[str, Any]], check: bool = False, **more: Any) -> dict[str, Any]:
        """Have the router run with these clients."""
        options = {**self.options, "clients": given, **more}
        result = self._run_module(router_server.main, options, check=check, diff=True)
        assert not result["failed"], result
        return result

    def ask(self, key: str, **body: Any) -> Answer:
        """Return status, headers and body of the answer to a completion."""
        return self.send("POST", "/v1/completions", json.dumps({"prompt": "p", **body}).encode(), key)

    def send(self, method: str, path: str, body: bytes | None, key: str, **headers: str) -> Answer:
        """Return status, headers and body of the answer to any request."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.options["port"], timeout=30)
        ) as connection:
            connection.request(method, path, body, {"Authorization": f"Bearer {key}", **headers})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@contextlib.contextmanager
def running_router(run_module: RunModule, folder: Path, port: int) -> Iterator[RunningRouter]:
    """Yield a router before the replica at a port; it does not run yet, and what was started is ended."""
    found = RunningRouter(run_module, folder, port)
    try:
        yield found
    finally:
        RouterService(*(found.options[name] for name in ("directory", "run_dir", "state_dir", "log_file"))).remove()


def error_of(answer: Answer) -> dict[str, Any]:
    """Return the error in an answer, which has OpenAI's form."""
    assert answer[1]["content-type"] == "application/json"
    error: dict[str, Any] = json.loads(answer[2])["error"]
    assert error["code"] == answer[0] and error["type"] == "invalid_request_error"
    return error
