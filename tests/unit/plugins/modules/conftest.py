# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of modules that verify a server: a server, and a Docker engine that runs a Python function."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from docker.errors import ImageNotFound, NotFound


class VerifiedServer:
    """A server as vLLM is one, on a port of its own; its attributes say how it behaves."""

    def __init__(self) -> None:
        self.status = 200
        self.metrics = "vllm:num_requests_running 0\nvllm:num_preemptions_total 3\nvllm:kv_cache_usage_perc 0.25\n"
        self.keys: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments: Any) -> None:
                pass

            def answer(self, body: str, status: int = 200) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self) -> None:
                outer.keys.append(self.headers.get("Authorization", ""))
                if self.path == "/metrics":
                    self.answer(outer.metrics)
                else:
                    self.answer(json.dumps({"data": [{"id": "the-model"}]}))

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
                choices = [{"text": " fine", "message": {"content": "fine"}, "finish_reason": "length"}]
                ok = json.dumps({"choices": choices, "usage": usage})
                self.answer(ok if outer.status == 200 else "Internal Server Error", outer.status)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def use_tls(self, certificate: str) -> None:
        """Answer by TLS from now on, with the certificate and key in this file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = self.url.replace("http:", "https:")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Program:
    """What containers of the engine do: takes command, environment and mounts, returns exit status and log."""

    def __init__(self) -> None:
        self.does: Callable[[list[str], dict[str, str]], tuple[int, str]] = lambda _command, _folders: (0, "")
        self.created: list[dict[str, Any]] = []
        self.removed = 0
        self.images = {"image:1": "sha256:1"}
        self.there: dict[str, Left] = {}


class Left:
    """A container that was there before, as the Docker SDK shows it."""

    def __init__(self, program: Program, name: str, labels: dict[str, str]) -> None:
        self._there, self.name, self.labels = program.there, name, labels
        self.attrs = {"Config": {"Image": "image:1"}}
        self._there[name] = self

    def remove(self, **_options: Any) -> None:
        del self._there[self.name]


class Container:
    """A container as the Docker SDK shows it; it has ended as soon as it was started."""

    def __init__(self, program: Program, image: str, options: dict[str, Any]) -> None:
        self._program, self._options = program, options
        self.status = "created"
        self.attrs: dict[str, Any] = {"State": {"ExitCode": None}}
        self._log = ""
        if image not in program.images:
            raise ImageNotFound(image)

    def start(self) -> None:
        command = [*self._options["entrypoint"], *self._options["command"]]
        mounts = [volume.split(":") for volume in self._options["volumes"]]
        code, self._log = self._program.does(command, {mount[1]: mount[0] for mount in mounts})
        self.status, self.attrs["State"]["ExitCode"] = "exited", code

    def reload(self) -> None:
        pass

    def logs(self, **_options: Any) -> bytes:
        return self._log.encode()

    def remove(self, **_options: Any) -> None:
        self._program.removed += 1


class Engine:
    """A Docker client as far as jobs need it."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.containers = self
        self.images = self

    def get(self, name: str) -> Any:
        if name in self._program.images:
            return type("Image", (), {"id": self._program.images[name]})
        if name in self._program.there:
            return self._program.there[name]
        raise (ImageNotFound if ":" in name else NotFound)(name)

    def list(self, filters: dict[str, str], **_options: Any) -> list[Left]:
        return [left for left in self._program.there.values() if filters["label"] in left.labels]

    def create(self, image: str, **options: Any) -> Container:
        self._program.created.append({"image": image, **options})
        return Container(self._program, image, options)


@pytest.fixture
def verified_server() -> Iterator[VerifiedServer]:
    """A server on this machine that answers well until told otherwise."""
    server = VerifiedServer()
    yield server
    server.close()


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """What the containers of vllm_benchmark and vllm_accuracy do instead of running."""
    from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import container_pip
    from ansible_collections.gpufleet.vllm.plugins.modules import vllm_accuracy, vllm_benchmark

    monkeypatch.setattr(container_pip, "host_pip_options", dict)
    found = Program()
    for module in (vllm_accuracy, vllm_benchmark):
        monkeypatch.setattr(module, "connect", lambda *_arguments: Engine(found))
    return found
