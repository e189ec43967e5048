# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the health check in a server's container ends the server."""

from __future__ import annotations

import dataclasses
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import health_check
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.health_check import (
    DEAD,
    SILENT,
    STUCK,
    Look,
    Memory,
    look_at,
    processor_seconds,
    reason_to_end,
    recall,
    remember,
)

LIMIT = 300.0


def looks(*seen: Look, every: float = 15.0, limit: float = LIMIT) -> tuple[str, float]:
    """Return why and when (seconds after the first look) a server is ended that is seen like this, at last for ever."""
    memory = Memory("1")
    for number in range(1000):
        reason = reason_to_end(seen[min(number, len(seen) - 1)], memory, 1000.0 + number * every, limit)
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


def working(look: Look, share: float, number: int) -> list[Look]:
    """Return looks at a server whose processes use that share of a processor."""
    return [dataclasses.replace(look, cpu=10.0 + share * 15.0 * count) for count in range(number)]


def test_a_server_at_work_without_a_step_gets_three_times_as_long() -> None:
    """As when a first request compiles kernels for eight minutes; an engine may also spin where it hangs."""
    asked, silent = Look(200, 2, "steps 5"), Look(0)
    healthy = Look(200, 0, "steps 5", cpu=10.0)
    # What the idle API server uses for this very check is no work.
    for look, problem in ((asked, STUCK), (silent, SILENT)):
        assert looks(healthy, *working(look, 0.01, 100)) == (problem, 315.0)
        assert looks(healthy, *working(look, 1.8, 100)) == (problem, 915.0)
    # It compiles for eight minutes and answers.
    assert looks(healthy, *working(asked, 1.8, 32), dataclasses.replace(healthy, counters="steps 6")) == ("", 0.0)


def test_a_server_that_has_worked_and_then_hangs_is_ended_after_the_limit() -> None:
    asked = Look(200, 2, "steps 5")
    busy = working(asked, 1.8, 10)
    assert looks(asked, *busy, dataclasses.replace(asked, cpu=busy[-1].cpu)) == (STUCK, 10 * 15.0 + LIMIT)


def test_processes_that_end_are_work() -> None:
    asked = Look(200, 2, "steps 5", cpu=10.0)
    ending = [dataclasses.replace(asked, cpu=100.0 - number) for number in range(100)]
    assert looks(asked, *ending)[1] == 3 * LIMIT + 15.0


def test_a_busy_server_whose_engine_is_dead_is_ended_as_soon_as_any() -> None:
    assert looks(Look(200, 0, "steps 5"), *working(Look(503), 1.8, 100)) == (DEAD, 45.0)


def test_the_reason_tells_of_work() -> None:
    memory, asked = Memory("1"), Look(200, 2, "steps 5")
    said = [reason_to_end(look, memory, number * 15.0, LIMIT) for number, look in enumerate(working(asked, 1.8, 62))]
    assert said[-1] == f"{STUCK}, for 900 s, though its processes are busy"


def test_only_process_1_and_its_descendants_count_with_the_children_that_ended() -> None:
    """A check that is executed in the container has no parent there; it must not take itself for work."""

    def fields(parent: int, *ticks: int) -> list[str]:
        return ["S", str(parent), *["0"] * 9, *map(str, ticks), "20"]

    seen = {
        1: fields(0, 1, 2, 30, 40),
        7: fields(1, 100, 200, 1000, 2000),
        9: fields(7, 5, 5, 0, 0),
        300: fields(0, 7000, 0, 0, 0),
        301: fields(300, 7000, 0, 0, 0),
    }
    assert processor_seconds(seen) == pytest.approx((73 + 3300 + 10) / os.sysconf("SC_CLK_TCK"))
    assert processor_seconds({}) == -1.0


def test_processor_time_is_read_from_proc() -> None:
    """Of this machine: the work of a process that ended stays counted with the one that waited for it."""
    before = health_check.processes()[os.getpid()]
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    after = health_check.processes()[os.getpid()]
    assert int(after[13]) > int(before[13])


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
    known = Memory("100", healthy=True, problem=SILENT, since=5.0, idle_since=7.5, counters="x 1", cpu=2.25, at=9.0)
    remember(path, known)
    assert recall(path, "100") == known
    assert recall(path, "200") == Memory("200")
    (tmp_path / "state").write_text('{"other": 1}')
    assert recall(path, "100") == Memory("100")


def test_only_a_child_of_dockers_init_is_ended() -> None:
    """Process 1 of the machine that runs the tests is some other init."""
    assert health_check.server_processes() == []


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that answers as vLLM behind our door."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'# HELP x\nvllm:iteration_tokens_total_count{engine="0"} 7\nvllm:other 3\n'
            self.send_response(200)
            self.send_header("X-Gpufleet-Running", "9")
            self.send_header("X-Gpufleet-Waiting", "3")
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
    seen, silent = look_at(server, 5.0), look_at("127.0.0.1:1", 1.0)
    assert (seen.status, seen.waiting, seen.counters) == (200, 3, 'vllm:iteration_tokens_total_count{engine="0"} 7')
    assert (silent.status, silent.waiting, silent.counters) == (0, -1, "")
    assert seen.cpu > 0 and silent.cpu > 0
