# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the health check in a server's container ends the server."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils import server_health
from ansible_collections.gpufleet.vllm.plugins.module_utils.server_health import (
    DEAD,
    SILENT,
    STUCK,
    Look,
    Memory,
    judge,
    look_at,
    recall,
    remember,
)

LIMIT = 300.0


def looks(*seen: Look, every: float = 15.0, limit: float = LIMIT) -> tuple[str, float]:
    """Return why and when (seconds after the first look) a server is ended that is seen like this, at last for ever."""
    memory = Memory("1")
    for number in range(1000):
        reason = judge(seen[min(number, len(seen) - 1)], memory, 1000.0 + number * every, limit)
        if reason:
            return reason.partition(",")[0], number * every
    return "", 0.0


def test_a_server_that_was_never_healthy_is_never_ended() -> None:
    assert looks(Look(0)) == ("", 0.0)
    assert looks(Look(503)) == ("", 0.0)


def test_a_healthy_server_is_not_ended_whether_idle_or_busy() -> None:
    assert looks(Look(200, 0, "steps 5")) == ("", 0.0)
    busy = [Look(200, 9, f"steps {number}") for number in range(1000)]
    assert looks(*busy) == ("", 0.0)
    # Without our door in front it is not known whether requests are there, without metrics not what the engine does.
    assert looks(Look(200, -1, "steps 5")) == ("", 0.0)
    assert looks(Look(200, 3, "")) == ("", 0.0)


def test_a_dead_engine_ends_the_server_soon_and_a_silent_server_later() -> None:
    assert looks(Look(200, 0, "steps 5"), Look(503)) == (DEAD, 45.0)
    assert looks(Look(200, 0, "steps 5"), Look(0)) == (SILENT, 315.0)


def test_requests_without_a_step_of_the_engine_end_the_server() -> None:
    assert looks(Look(200, 0, "steps 5"), Look(200, 2, "steps 5")) == (STUCK, 315.0)


def test_idle_time_does_not_count_as_hanging() -> None:
    idle, asked = Look(200, 0, "steps 5"), Look(200, 1, "steps 5")
    assert looks(*[idle, asked] * 400, idle) == ("", 0.0)


def test_a_passing_problem_ends_nothing() -> None:
    idle = Look(200, 0, "steps 5")
    assert looks(*[idle, *[Look(0)] * 15] * 20, idle) == ("", 0.0)


def test_zero_never_ends_a_server() -> None:
    assert looks(Look(200, 0, "steps 5"), Look(503), limit=0.0) == ("", 0.0)


def test_memories_of_another_start_are_void(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    remember(path, Memory("100", healthy=True, problem=SILENT, since=5.0))
    assert recall(path, "100").healthy
    assert recall(path, "200") == Memory("200")
    (tmp_path / "state").write_text('{"other": 1}')
    assert recall(path, "100") == Memory("100")


def test_only_a_child_of_dockers_init_is_ended() -> None:
    """Process 1 of the machine that runs the tests is some other init."""
    assert server_health.server_processes() == []


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that answers as vLLM behind our door."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'# HELP x\nvllm:iteration_tokens_total_count{engine="0"} 7\nvllm:other 3\n'
            self.send_response(200)
            self.send_header("X-Gpufleet-Running", "3")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_look_reads_requests_and_counters(server: str) -> None:
    assert look_at(server, 5.0) == Look(200, 3, 'vllm:iteration_tokens_total_count{engine="0"} 7')
    assert look_at("127.0.0.1:1", 1.0) == Look(0)
