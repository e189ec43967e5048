# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for a site's HTTP proxy: it notes who was asked for, and answers 502; with a password it wants that first.

Nothing is passed on: what a program sends here that it should have sent straight to a server is seen, and fails.
"""

from __future__ import annotations

import base64
import http.server
import threading
from typing import Any


class RecordingProxy:
    """A proxy on a free port of 127.0.0.1.

    Args:
        user: C(name:password) that it wants; empty for none.
    """

    def __init__(self, user: str = "") -> None:
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments: Any) -> None:
                pass

            def answer(self) -> None:
                if wanted and self.headers.get("Proxy-Authorization") != wanted:
                    self.send_response(407)
                    self.send_header("Proxy-Authenticate", "Basic")
                else:
                    outer.asked.append(self.path)
                    outer.headers.append(dict(self.headers))
                    self.send_response(502)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = do_HEAD = do_CONNECT = answer

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://{user + '@' if user else ''}127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
