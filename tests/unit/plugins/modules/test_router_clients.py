# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of clients with a name, by the HAProxy of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import clients
from ansible_collections.gpufleet.vllm.tests.fakes.counting_replica import CountingReplica, counting
from ansible_collections.gpufleet.vllm.tests.fakes.running_router import (
    Answer,
    RunningRouter,
    error_of,
    running_router,
)
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import needs_haproxy

pytestmark = needs_haproxy
MARKER = "sk-marker-of-a-secret"


@pytest.fixture
def replica() -> Iterator[CountingReplica]:
    """A server behind the router."""
    with counting() as found:
        yield found


@pytest.fixture
def router(run_module: RunModule, tmp_path: Path, replica: CountingReplica) -> Iterator[RunningRouter]:
    """A router that does not run yet; what was started is ended."""
    with running_router(run_module, tmp_path, replica.port) as found:
        yield found


def test_named_clients_and_keys_without_a_name_work_side_by_side(router: RunningRouter) -> None:
    router.run([{"name": "team-a", "key": ["a-old", "a-new"]}], api_keys=["plain"])
    assert [router.ask(key)[0] for key in ("a-old", "a-new", "plain", "wrong", "")] == [200, 200, 200, 401, 401]
    assert not router.run([{"name": "team-a", "key": ["a-old", "a-new"]}], api_keys=["plain"])["changed"]
    # The file of keys is secret, that of limits is shown.
    limited = router.run([{"name": "team-a", "key": "a-new", "rate": 3}], api_keys=["plain"])
    assert (limited["action"], "rate:team-a 3" in str(limited["diff"])) == ("reloaded", True)
    assert [router.ask(key)[0] for key in ("a-old", "a-new", "plain")] == [401, 200, 200]
    without = router.run([], api_keys=["plain"])
    assert without["action"] == "reloaded" and router.ask("a-new")[0] == 401


def test_a_key_ends_at_its_second_without_a_reload(router: RunningRouter) -> None:
    router.run([{"name": "b", "key": "the-key-b"}])
    ends = int(time.time()) + 6
    router.run(
        [{"name": "team-a", "key": "the-key-a", "expires": clients.iso_time(ends)}, {"name": "b", "key": "the-key-b"}]
    )
    config = Path(router.options["directory"], "haproxy.cfg")
    before = config.stat().st_mtime_ns
    seen = []
    while time.time() < ends + 1.5:
        began = time.time()
        seen.append((began, time.time(), router.ask("the-key-a")))
        time.sleep(0.05)
    for began, ended, answer in seen:
        # HAProxy looks at the clock once for what happens at the same time.
        if ended < ends - 0.1:
            assert answer[0] == 200
        elif began > ends + 0.1:
            assert answer[0] == 401
            assert f"This API key expired at {clients.iso_time(ends)}" in error_of(answer)["message"]
            assert answer[1]["www-authenticate"] == "Bearer"
    assert {answer[0] for _began, _ended, answer in seen} == {200, 401}
    assert (router.ask("the-key-b")[0], config.stat().st_mtime_ns) == (200, before)
    again = router.run(
        [{"name": "team-a", "key": "the-key-a", "expires": clients.iso_time(ends)}, {"name": "b", "key": "the-key-b"}]
    )
    assert not again["changed"]
    assert "the key of team-a expired at" in str(again["warnings"])
    # A date in a hundred years is no number that is too large.
    router.run([{"name": "team-a", "key": "the-key-a", "expires": "2126-12-31"}])
    assert router.ask("the-key-a")[0] == 200


def test_a_client_gets_its_own_rate_and_no_more(router: RunningRouter) -> None:
    given: list[dict[str, Any]] = [
        {"name": "slow", "key": ["s1", "s2"], "rate": 3},
        {"name": "free", "key": "f", "rate": 0},
        {"name": "usual", "key": "u"},
    ]
    router.run(given, rate_limit=5)
    # Both keys of a client count as one.
    slow = [router.ask(("s1", "s2")[number % 2]) for number in range(6)]
    assert [answer[0] for answer in slow] == [200, 200, 200, 429, 429, 429]
    assert "More than 3 requests in 10 seconds" in error_of(slow[-1])["message"]
    assert slow[-1][1]["retry-after"] == "10"
    assert [router.ask("f")[0] for _number in range(12)] == [200] * 12
    assert [router.ask("u")[0] for _number in range(7)] == [200] * 5 + [429] * 2


def test_a_client_that_goes_on_asking_gets_its_rate_all_the_same(
    router: RunningRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is turned away does not count, or it would never be let in again."""
    monkeypatch.setattr(clients, "RATE_WINDOW_S", 2)
    router.run([{"name": "slow", "key": "s", "rate": 10}])
    until = time.monotonic() + 7
    answered = []
    while time.monotonic() < until:
        answered.append(router.ask("s")[0])
        time.sleep(0.03)
    assert len(answered) > 100
    assert 25 <= answered.count(200) <= 50


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model": "m/1", "prompt": "p"}', 200),
        (b'{"prompt": "p", "model": "m/1"}', 200),
        (b'{"model": "m/2"}', 403),
        (b'{"model": "m/1:x"}', 403),
        (b'{"model": "M/1"}', 403),
        (b'{"prompt": "p"}', 403),
        (b"no JSON", 403),
        (b'{"model": ["m/1"]}', 403),
        (b'{"model": "\\u0000"}', 403),
        (b'{"model": "' + b"m" * 5000 + b'"}', 403),
    ],
)
def test_a_client_may_use_its_models_alone(
    router: RunningRouter, replica: CountingReplica, body: bytes, status: int
) -> None:
    router.run([{"name": "one", "key": "k", "models": ["m/1", "m/3"]}, {"name": "all", "key": "a"}])
    answer = router.send("POST", "/v1/completions", body, "k")
    assert answer[0] == status
    assert (body in replica.bodies) == (status == 200)
    if status == 403:
        assert "may not use this model" in error_of(answer)["message"]
    assert router.send("GET", "/v1/models", None, "k")[0] == 200
    assert router.send("POST", "/v1/completions", body, "a")[0] == 200


def test_keys_are_changed_beneath_streams_and_none_is_dropped(router: RunningRouter, replica: CountingReplica) -> None:
    replica.pace = 0.1
    both = {"name": "b", "key": ["b-old", "b-new"]}
    router.run([{"name": "a", "key": "a-old"}, both])
    answers: list[tuple[str, Answer]] = []
    stop = threading.Event()

    def ask(key: str) -> None:
        while not stop.is_set():
            answers.append((key, router.ask(key, stream=True, max_tokens=8)))

    threads = [threading.Thread(target=ask, args=(key,)) for key in ("b-old", "b-new") * 3]
    for thread in threads:
        thread.start()
    for number in range(4):
        time.sleep(0.5)
        assert router.run([{"name": "a", "key": f"a-{number}"}, both])["action"] == "reloaded"
        assert [router.ask(key)[0] for key in (f"a-{number}", "a-old")] == [200, 401]
    # A stream of a key that is taken away goes on to its end.
    leaving = threading.Thread(target=lambda: answers.append(("gone", router.ask("a-3", stream=True, max_tokens=20))))
    leaving.start()
    time.sleep(0.5)
    router.run([both])
    assert router.ask("a-3")[0] == 401
    stop.set()
    for thread in (*threads, leaving):
        thread.join()
    assert {answer[0] for _key, answer in answers} == {200}
    assert {answer[2].count(b"data: ") for key, answer in answers if key != "gone"} == {8}
    assert [answer[2].count(b"data: ") for key, answer in answers if key == "gone"] == [20]
    assert len(answers) > 12


def test_no_key_is_shown_or_kept_anywhere(router: RunningRouter, tmp_path: Path) -> None:
    shown = [router.run([{"name": "team-a", "key": MARKER, "rate": 5}], check=True)]
    shown.append(router.run([{"name": "team-a", "key": [MARKER, "other"], "models": ["m"]}]))
    for key in (MARKER, "other", "wrong-" + MARKER):
        router.ask(key, model="m", prompt=MARKER)
        router.send("GET", f"/v1/models?key={MARKER}", None, key, **{"X-Key": MARKER})
        router.send("GET", f"/{MARKER}", None, key)
    shown.append(router.run([]))
    assert MARKER not in str(shown)
    processes = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert MARKER not in processes
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]
    assert kept == []
    assert os.stat(os.path.join(router.options["directory"], "clients.map")).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("size", [10, 200000])
@pytest.mark.parametrize("last", [False, True])
def test_with_several_models_a_client_is_kept_to_its_own_wherever_a_body_names_it(
    router: RunningRouter, replica: CountingReplica, tmp_path: Path, size: int, last: bool
) -> None:
    log = tmp_path / "requests" / "access.log"
    with counting() as other:
        hosts = {"gpu-01": (replica.port, ["m/1", "alias"]), "gpu-02": (other.port, ["m/2"])}
        router.options["hosts"] = {
            host: [{"name": "vllm-0", "address": "127.0.0.1", "port": port, "models": models}]
            for host, (port, models) in hosts.items()
        }
        router.options.update(replica_keys=dict.fromkeys(hosts, ""), access_log=str(log))
        told = router.run(
            [
                {"name": "one", "key": "the-key-of-one", "models": ["m/1", "gone"]},
                {"name": "all", "key": "the-key-of-all"},
            ]
        )
        assert "one may use gone, which no replica behind the router serves; they serve alias, m/1, m/2" in str(
            told["warnings"]
        )
        seen = []
        for client, model in (("one", "m/1"), ("one", "m/2"), ("one", "alias"), ("all", "m/2"), ("one", "none")):
            named = {"prompt": "p" * size, "model": model} if last else {"model": model, "prompt": "p" * size}
            answer = router.send("POST", "/v1/completions", json.dumps(named).encode(), f"the-key-of-{client}")
            seen.append(answer[0])
            if answer[0] == 403:
                assert error_of(answer)["message"] == "This client may not use this model."
        assert seen == [200, 403, 403, 200, 404]
        assert (len(replica.bodies), len(other.bodies)) == (1, 1)
        deadline = time.monotonic() + 10
        while log.read_bytes().count(b"\n") < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        lines = [json.loads(line) for line in log.read_bytes().splitlines()]
        assert [line["status"] for line in lines] == seen
        assert [(line["client"], line["model"], line["replica"]) for line in lines if line["status"] == 200] == [
            ("one", "m/1", "gpu-01:vllm-0"),
            ("all", "m/2", "gpu-02:vllm-0"),
        ]
        assert all(line["tokens_out"] == "1" for line in lines if line["status"] == 200)


KEPT = b'{"prompt": "p", "model": "m/1"'
ESCAPED = b'"\\u006do\\u0064el": "m/2"'


@pytest.mark.parametrize("size", [10, 100000], ids=["short", "long"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (KEPT + b', "model": "m/2"}', 400),
        (KEPT + b', "model": null}', 400),
        (KEPT + b', "model"\n:\t"m/2"}', 400),
        (KEPT + b", " + ESCAPED + b"}", 400),
        (b"{" + ESCAPED + b', "model": "m/1"}', 400),
        (KEPT + b', "tools": [{"model": {"type": "string"}}], "x": "\\"model\\": \\"m/2\\""}', 200),
    ],
    ids=["twice", "null", "spaces", "escaped", "escaped first", "in a text"],
)
def test_a_client_cannot_name_another_model_behind_its_own(
    router: RunningRouter, replica: CountingReplica, body: bytes, status: int, size: int
) -> None:
    """A server would take the last one, and serves both."""
    hosts = [{"name": "vllm-0", "address": "127.0.0.1", "port": replica.port, "models": ["m/1", "m/2"]}]
    router.options["hosts"] = {"gpu-01": hosts}
    router.run([{"name": "one", "key": "k", "models": ["m/1"]}, {"name": "all", "key": "a"}])
    for place in (b"first", b"last"):
        filled = b'"filled": "' + b"x" * size + b'"'
        whole = b"{" + filled + b", " + body[1:] if place == b"first" else body[:-1] + b", " + filled + b"}"
        assert router.send("POST", "/v1/completions", whole, "k")[0] == status
        assert (whole in replica.bodies) == (status == 200)
        assert router.send("POST", "/v1/completions", whole, "a")[0] == 200
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    sent = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm/1\r\n--x--\r\n'
    answer = router.send("POST", "/v1/audio/transcriptions", sent, "k", **form)
    assert answer[0] == 403 and len(replica.bodies) == (4 if status == 200 else 2)
