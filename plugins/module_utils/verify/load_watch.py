# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches a server while it is under load: its metrics, how many requests are done, and whether it is still there."""

from __future__ import annotations

import time
from typing import Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import Server
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.metrics import parse_metrics, parse_samples
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.target import Target

# The server counts as gone when it has refused to answer for so long. Under load its metrics may take seconds.
GONE_S = 15.0
METRICS_TIMEOUT_S = 5.0
METRICS_EVERY_S = 2.0
FINISHED_REQUESTS = ("vllm:request_success_total", "vllm:request_success")


class LoadWatch:
    """Reads a server's metrics while it is measured.

    Args:
        target: the server; one without /metrics (not vLLM's) is not watched.
        show: takes the number of requests finished since the watch began.
    """

    def __init__(self, target: Target, show: Callable[[int], None]) -> None:
        self._server = Server(target.url, api_key=target.api_key, timeout=METRICS_TIMEOUT_S, verify=target.verify)
        self._show = show
        self._peaks: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._asked = 0.0
        self._silent_since = 0.0
        self._silence = ""
        self._first, self._first_finished = self._read()

    def look(self) -> None:
        """Read the metrics unless that was just done.

        Raises:
            GpufleetError: C(server-gone) when the server has not answered for a while.
        """
        now = time.monotonic()
        if not self._first or now - self._asked < METRICS_EVERY_S:
            return
        self._asked = now
        try:
            load, finished = self._ask()
        except GpufleetError as error:
            if error.name == "timeout":
                return
            self._silent_since = self._silent_since or now
            self._silence = error.evidence or error.message
            if now - self._silent_since > GONE_S:
                raise self.gone() from error
            return
        self._silent_since = 0.0
        self._last = load
        for name in ("kv_cache_usage", "requests_waiting", "requests_running"):
            if name in load:
                self._peaks[name] = max(self._peaks.get(name, 0.0), load[name])
        self._show(int(finished - self._first_finished))

    def gone(self) -> GpufleetError:
        """Return the error for a server that stopped answering."""
        return GpufleetError(
            f"The server at {self._server.url} stopped answering while it was under load.",
            name="server-gone",
            remedy="See why it died: playbook gpufleet.vllm.status names the cause. A load that the KV cache or the"
            " memory cannot hold is the usual one; lower vllm_max_num_seqs or vllm_gpu_memory_utilization.",
            evidence=self._silence,
        )

    def figures(self) -> dict[str, float]:
        """Return C(preemptions) since the watch began, and the highest C(kv_cache_usage) (0 to 1), C(requests_waiting)
        and C(requests_running) that were seen."""
        last, _finished = self._read()
        found = {f"{name}_max": value for name, value in self._peaks.items()}
        if "preemptions" in last and "preemptions" in self._first:
            found["preemptions"] = last["preemptions"] - self._first["preemptions"]
        return found

    def _read(self) -> tuple[dict[str, float], float]:
        try:
            return self._ask()
        except GpufleetError:
            return {}, 0.0

    def _ask(self) -> tuple[dict[str, float], float]:
        text = self._server.request("GET", "/metrics").text
        finished = sum(value for name, _labels, value in parse_samples(text.splitlines()) if name in FINISHED_REQUESTS)
        return parse_metrics(text), finished
