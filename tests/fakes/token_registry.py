# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for a registry with a token server, as Docker Hub and nvcr.io have one: images by name, and no layers."""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class TokenRegistry:
    """A registry and its token server on one free port of 127.0.0.1.

    Args:
        public: images that anyone gets, such as C(vllm/vllm-openai:v1).
        private: images for the user alone.
        user: C(name:password).
        certificate: file with certificate and key; None for plain HTTP.
    """

    def __init__(
        self,
        public: Iterable[str] = (),
        private: Iterable[str] = (),
        user: str = "fleet:open-sesame",
        certificate: Path | None = None,
    ) -> None:
        self.asked: list[str] = []
        basic = f"Basic {base64.b64encode(user.encode()).decode()}"
        images, all_images = set(public), {*public, *private}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments: Any) -> None:
                pass

            def answer(self) -> None:
                outer.asked.append(self.path)
                parts = urlsplit(self.path)
                if parts.path == "/token":
                    self._give_token(parse_qs(parts.query))
                    return
                repository, _kind, tag = parts.path.removeprefix("/v2/").rpartition("/manifests/")
                if self.headers.get("Authorization") not in (f"Bearer {repository}:all", f"Bearer {repository}:public"):
                    challenge = (
                        f'Bearer realm="{outer.url}/token",service="stand-in",scope="repository:{repository}:pull"'
                    )
                    self._send(401, {"WWW-Authenticate": challenge})
                    return
                seen = all_images if self.headers["Authorization"].endswith(":all") else images
                hidden = f"{repository}:{tag}" in all_images - seen
                self._send(401 if hidden else 200 if f"{repository}:{tag}" in seen else 404)

            do_GET = do_HEAD = answer

            def _give_token(self, query: dict[str, list[str]]) -> None:
                given = self.headers.get("Authorization")
                if given not in (None, basic):
                    self._send(401)
                    return
                repository = query["scope"][0].split(":")[1]
                body = json.dumps({"token": f"{repository}:{'all' if given else 'public'}"}).encode()
                self._send(200, {"Content-Length": str(len(body))}, body)

            def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
                self.send_response(status)
                for name, value in {"Content-Length": "0", **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"{'https' if certificate else 'http'}://{self.address}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
