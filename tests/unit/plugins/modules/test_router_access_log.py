# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the router's log of requests, by the HAProxy of this machine."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import log_keeper
from ansible_collections.gpufleet.vllm.tests.fakes.counting_replica import PROMPT_TOKENS, CountingReplica, counting
from ansible_collections.gpufleet.vllm.tests.fakes.running_router import RunningRouter, running_router
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import needs_haproxy

pytestmark = needs_haproxy
MARKER = "sk-marker-of-a-secret"
CLIENTS = [{"name": "team-a", "key": MARKER}, {"name": "team-b", "key": "the-key-of-b"}]


@pytest.fixture
def replica() -> Iterator[CountingReplica]:
    """A server behind the router."""
    with counting() as found:
        yield found


@pytest.fixture
def router(run_module: RunModule, tmp_path: Path, replica: CountingReplica) -> Iterator[RunningRouter]:
    """A router with a log, which does not run yet; what was started is ended."""
    with running_router(run_module, tmp_path, replica.port) as found:
        found.options["access_log"] = str(tmp_path / "requests" / "access.log")
        yield found


def lines_of(router: RunningRouter, number: int) -> list[dict[str, Any]]:
    """Return the lines of the log, once there are that many."""
    path = router.options["access_log"]
    found: list[bytes] = []

    def all_there() -> bool:
        found[:] = b"".join(Path(name).read_bytes() for name in (*log_keeper.rotated(path), path)).splitlines()
        return len(found) >= number

    wait_for(all_there)
    assert len(found) == number
    # HAProxy logs a request after its client has the answer, so that the next one may come first.
    return sorted(map(json.loads, found), key=lambda line: float(line["time"]))


def wait_for(done: Callable[[], bool]) -> None:
    """Wait ten seconds at most."""
    deadline = time.monotonic() + 10
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_request_is_a_line_with_who_asked_what_of_whom(router: RunningRouter, replica: CountingReplica) -> None:
    began = time.time()
    assert router.run(CLIENTS, api_keys=["plain"])["changed"]
    replica.pace = 0.1
    router.ask(MARKER, model="m/1", max_tokens=5)
    router.ask("the-key-of-b", model="m/2", stream=True, max_tokens=4)
    router.ask("plain", max_tokens=3)
    router.ask("wrong", model="m/1")
    router.send("GET", f"/v1/models?key={MARKER}", None, MARKER)
    router.send("GET", f"/{MARKER}", None, MARKER)
    one, stream, plain, wrong, models, unknown = lines_of(router, 6)
    expected = {"client": "team-a", "model": "m/1", "method": "POST", "endpoint": "/v1/completions", "status": 200}
    expected.update(replica="gpu-01:vllm-0", tokens_in=str(PROMPT_TOKENS), tokens_out="5", end="--")
    assert {name: one[name] for name in expected} == expected
    assert began - 1 < one["time"] < time.time() and one["queue_ms"] >= 0
    assert one["bytes_in"] > 100 and one["bytes_out"] > 100
    assert [stream[name] for name in ("client", "model", "tokens_in", "tokens_out")] == ["team-b", "m/2", "-", "-"]
    assert stream["total_ms"] >= 400 > stream["first_byte_ms"]
    assert [plain[name] for name in ("client", "model", "tokens_out")] == ["-", "-", "3"]
    assert [wrong[name] for name in ("client", "model", "status", "replica")] == ["-", "-", 401, "-"]
    assert [models[name] for name in ("client", "method", "endpoint")] == ["team-a", "GET", "/v1/models"]
    assert [unknown[name] for name in ("client", "endpoint", "status")] == ["team-a", "-", 404]
    assert MARKER not in Path(router.options["access_log"]).read_text(encoding="utf-8")
    assert not router.run(CLIENTS, api_keys=["plain"])["changed"]


HOSTILE = [
    'a"b\\c',
    "\n\r\t\x01\x1f\x7f",
    '","client":"team-a","x":"',
    "\u2028\U0001f600é",
    "m" * 100000,
    '"' * 3000,
    "é" * 3000,
    "%[env(HOME)] %ST ${HOME}",
    "-",
    "",
]


def test_whatever_a_client_writes_a_line_is_one_of_json_and_the_client_is_who_it_is(router: RunningRouter) -> None:
    router.run(CLIENTS)
    for model in HOSTILE:
        router.ask("the-key-of-b", model=model)
        body = json.dumps({"model": model}, ensure_ascii=False).encode()
        router.send("POST", "/v1/completions", body, "the-key-of-b", **{"X-A": "\x01'\"{}", "User-Agent": '","y":"'})
    for raw in (
        b'{"model": "\xff\xc3("}',
        b'{"model": {"a": 1}}',
        b'{"model": 7}',
        b'{"model": "' + b"x" * 70000,
        b"[]",
    ):
        router.send("POST", "/v1/completions", raw, "the-key-of-b")
    number = 2 * len(HOSTILE) + 5
    seen = lines_of(router, number)
    assert {line["client"] for line in seen} == {"team-b"}
    assert all(len(line["model"]) <= 256 for line in seen)
    assert seen[0]["model"] == HOSTILE[0]
    broken = (
        b'GET / HT"TP/1.1\x01\r\n\r\n',
        b'G"E\\T /v1/models HTTP/1.1\r\n\r\n',
        b"\x16\x03\x01\x00",
        b"GE'%T /x HTTP/1.1\r\n\r\n",
    )
    for request in broken:
        with socket.create_connection(("127.0.0.1", router.options["port"]), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536)
    assert {line["client"] for line in lines_of(router, number + len(broken))[number:]} == {"-"}


def test_every_request_is_logged_once_while_the_log_is_rotated_and_haproxy_reloaded(router: RunningRouter) -> None:
    router.run(CLIENTS, access_log_max_bytes=20000)
    sent: Counter[str] = Counter()
    lock, stop = threading.Lock(), threading.Event()

    def ask(thread: int) -> None:
        number = 0
        while not stop.is_set():
            model = f"m-{thread}-{number % 3}"
            assert router.ask(MARKER, model=model, max_tokens=number % 50)[0] == 200
            number += 1
            with lock:
                sent[model] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for number in range(3):
        time.sleep(1.2)
        assert router.run(CLIENTS, access_log_max_bytes=20001 + number)["action"] == "reloaded"
    stop.set()
    for thread in threads:
        thread.join()
    lines = lines_of(router, sum(sent.values()))
    assert Counter(line["model"] for line in lines) == sent
    assert len(log_keeper.rotated(router.options["access_log"])) >= 2
    assert "Segmentation" not in Path(router.options["log_file"]).read_text(encoding="utf-8")


def test_what_is_large_or_streamed_is_passed_on_as_it_comes_and_its_tokens_are_not_known(
    router: RunningRouter, replica: CountingReplica
) -> None:
    router.run(CLIENTS)
    for size in (100, 50000, 200000):
        assert len(router.ask(MARKER, max_tokens=size)[2]) > size
    replica.pace = 0.05
    router.ask(MARKER, stream=True, max_tokens=3, stream_options={"include_usage": True})
    assert [line["tokens_out"] for line in lines_of(router, 4)] == ["100", "50000", "-", "-"]
    without = router.run(CLIENTS, count_tokens=False)
    assert without["action"] == "reloaded"
    router.ask(MARKER, max_tokens=100)
    assert lines_of(router, 5)[-1]["tokens_out"] == "-"
    config = Path(router.options["directory"], "haproxy.cfg").read_text(encoding="utf-8")
    assert "http-response wait-for-body" not in config and "http-reuse never" not in config


def test_the_log_ends_when_it_is_not_wanted_and_comes_back_when_its_program_was_ended(
    router: RunningRouter, run_module: RunModule
) -> None:
    router.run(CLIENTS)
    router.ask(MARKER)
    (_line,) = lines_of(router, 1)
    end_keeper(router)
    assert router.ask(MARKER)[0] == 200, "requests do not need it"
    assert router.run(CLIENTS, check=True)["changed"]
    again = router.run(CLIENTS)
    assert (again["changed"], again["action"]) == (True, "none")
    assert not router.run(CLIENTS)["changed"]
    router.ask(MARKER)
    lines_of(router, 2)
    off = router.run(CLIENTS, access_log="")
    assert off["action"] == "reloaded"
    wait_for(lambda: not keepers(router))
    assert keepers(router) == []
    assert not router.run(CLIENTS, access_log="")["changed"]


def keepers(router: RunningRouter) -> list[int]:
    """Return the processes that keep this router's log."""
    settings = os.path.join(router.options["directory"], "access_log.json").encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if settings in Path("/proc", name, "cmdline").read_bytes().split(b"\0"):
                    found.append(int(name))
            except OSError:
                continue
    return found


def end_keeper(router: RunningRouter) -> None:
    """End the program that writes the log."""
    (pid,) = keepers(router)
    os.kill(pid, 15)
    wait_for(lambda: not keepers(router))
