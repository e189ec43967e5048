# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that shows the metrics of a real vLLM, as recorded under load, of which the counters go on as time does."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from ansible_collections.gpufleet.vllm.tests.router.small_replica import QuietServer

SCRAPE = Path(__file__).resolve().parents[1] / "unit" / "data" / "vllm_scrape.txt"
COUNTS = re.compile(r"_(total|bucket|sum|count)$")
# After so many seconds a counter has twice its recorded value.
DOUBLES_S = 60.0


class MeasuredReplica:
    """One that listens at C(port) from its start to its stop, and again after another start.

    Attributes:
        port: where it listens.
        hangs: whether its counters stand still, as those of an engine that hangs.
        queue_grows: whether more and more requests wait.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds = 0.0
        self.hangs = self.queue_grows = False
        self._lines = SCRAPE.read_text(encoding="utf-8").splitlines()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen: at a free port, or at the one of before."""
        replica = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = replica.page() if self.path == "/metrics" else ""
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = QuietServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more, as a server that died."""
        self._server.shutdown()
        self._server.server_close()

    def page(self) -> str:
        """Return the page of metrics."""
        now = time.monotonic()
        if not self.hangs:
            self._seconds += now - self._last
        self._last = now
        factor = 1 + self._seconds / DOUBLES_S
        return "\n".join(self._line(line, factor) for line in self._lines) + "\n"

    def _line(self, line: str, factor: float) -> str:
        series, _space, value = line.rpartition(" ")
        if self.queue_grows and series.startswith("vllm:num_requests_waiting{"):
            return f"{series} {time.monotonic():.1f}"
        if line.startswith("#") or not COUNTS.search(series.partition("{")[0]):
            return line
        return f"{series} {float(value) * factor}"
