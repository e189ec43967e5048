# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of how a real HAProxy sends requests by their models; the servers are stand-ins."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.reader_config import sockets_in
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_server
from ansible_collections.gpufleet.vllm.tests.fakes.model_replica import ModelReplica, answering
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import (
    KEY,
    PLACES,
    ask,
    chat,
    in_chunks,
    needs_haproxy,
    router_options,
    serving_at,
)

FP8, FP4, ALIAS = "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8", "nvidia/Llama-4-Scout-17B-16E-Instruct-FP4", "scout"
KIB, MIB = 1024, 1024 * 1024


class Fleet:
    """Two hosts with one model in two kinds and an alias, and one with another model, behind a router."""

    def __init__(self, options: dict[str, Any], replicas: dict[str, ModelReplica]) -> None:
        self.options, self.replicas = options, replicas
        self.port: int = options["port"]
        self.master = Master(f"{options['run_dir']}/master.sock", options["state_dir"])

    def answered_by(self, body: bytes | Iterator[bytes], **headers: str) -> str:
        """Return which replica answers a request."""
        status, document = ask(self.port, body, **headers)
        assert status == 200, document
        return str(document["replica"])


@pytest.fixture
def fleet(run_module: RunModule, tmp_path: Path) -> Iterator[Fleet]:
    """Let the router run before three stand-ins."""
    options = router_options(tmp_path)
    models = {"gpu-01": [ALIAS, FP8], "gpu-02": [ALIAS, FP4], "gpu-03": ["small"]}
    with ExitStack() as stack:
        replicas = {host: stack.enter_context(answering(host)) for host in models}
        options["hosts"] = {host: [serving_at(replicas[host].port, models[host])] for host in models}
        result = run_module(router_server.main, options)
        assert (result.get("msg"), result["action"]) == (None, "started")
        found = Fleet(options, replicas)
        until(lambda: all(server.up for server in found.master.servers().values()))
        until(lambda: ask(found.port, chat(None, "x" * 100000))[0] == 400)
        yield found
        folders = [options[name] for name in ("directory", "run_dir", "state_dir", "log_file")]
        RouterService(*folders).remove()


def until(condition: Any) -> None:
    """Wait half a minute at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_haproxy
@pytest.mark.parametrize("last", [False, True], ids=["model first", "model last"])
@pytest.mark.parametrize("size", [KIB, 70 * KIB, 200 * KIB, 20 * MIB])
def test_a_request_goes_to_a_replica_that_serves_its_model(fleet: Fleet, size: int, last: bool) -> None:
    text = "x" * size
    assert fleet.answered_by(chat(FP8, text, last=last)) == "gpu-01"
    assert fleet.answered_by(chat(FP4, text, last=last)) == "gpu-02"
    assert fleet.answered_by(chat("small", text, last=last)) == "gpu-03"
    status, document = ask(fleet.port, chat("none/such", text, last=last))
    assert status == 404
    assert document["error"]["message"] == (
        f"There is no model none/such here. There are: {FP4}, {FP8}, {ALIAS}, small"
    )
    assert sum(len(replica.bodies) for replica in fleet.replicas.values()) == 3


@needs_haproxy
@pytest.mark.parametrize("last", [False, True], ids=["model first", "model last"])
@pytest.mark.parametrize("size", [KIB, 40 * KIB, 200 * KIB, 20 * MIB])
def test_so_does_one_that_comes_without_its_length(fleet: Fleet, size: int, last: bool) -> None:
    for model, host in ((FP8, "gpu-01"), ("small", "gpu-03")):
        body = chat(model, "x" * size, last=last)
        assert fleet.answered_by(in_chunks(body)) == host
        assert fleet.replicas[host].bodies == [len(body)]
    assert ask(fleet.port, in_chunks(chat("none/such", "x" * size, last=last)))[0] == 404
    assert ask(fleet.port, in_chunks(chat(None, "x" * size)))[0] == 400
    assert sum(len(replica.bodies) for replica in fleet.replicas.values()) == 2


@needs_haproxy
@pytest.mark.parametrize("models", [["a"], ["a", "b"]], ids=["one model", "several"])
def test_a_body_without_its_length_is_bounded(run_module: RunModule, tmp_path: Path, models: list[str]) -> None:
    options = router_options(tmp_path, max_request_bytes=300000)
    with ExitStack() as stack:
        of = {name: stack.enter_context(answering(name)) for name in models}
        options["hosts"] = {f"gpu-0{at}": [serving_at(of[name].port, [name])] for at, name in enumerate(of, 1)}
        assert run_module(router_server.main, options)["action"] == "started"
        stack.callback(RouterService(*(options[name] for name in PLACES)).remove)
        until(lambda: ask(options["port"], chat("a"))[0] == 200)
        before = len(of["a"].bodies)
        for size, status in ((1000, 200), (100000, 200), (290000, 200), (310000, 413), (600000, 413), (30000000, 413)):
            for chunk in (65536, 1000 + size // 1000):
                answer, document = ask(options["port"], in_chunks(chat("a", "x" * size, last=True), chunk))
                assert (answer, size) == (status, size)
                if status == 413:
                    assert document["error"]["message"] == "A request may have 300000 bytes at most."
        assert len(of["a"].bodies) == before + 6 and max(of["a"].bodies) < 300000


@needs_haproxy
def test_who_sends_too_much_has_the_answer_while_sending_and_may_ask_again(
    run_module: RunModule, tmp_path: Path
) -> None:
    options = router_options(tmp_path, max_request_bytes=300000)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"%x\r\n%s\r\n" % (100000, b"x" * 100000)
    with ExitStack() as stack:
        options["hosts"] = {"gpu-01": [serving_at(stack.enter_context(answering("a")).port, ["a"])]}
        assert run_module(router_server.main, options)["action"] == "started"
        stack.callback(RouterService(*(options[name] for name in PLACES)).remove)
        until(lambda: ask(options["port"], chat("a"))[0] == 200)
        client = stack.enter_context(socket.create_connection(("127.0.0.1", options["port"]), timeout=30))
        answers = stack.enter_context(client.makefile("rb"))
        client.sendall(head.encode() + 8 * chunk)
        assert answers.readline().startswith(b"HTTP/1.1 413 ")
        client.sendall(200 * chunk + b"0\r\n\r\n" + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 200 OK\r\n" in answers.read()


@needs_haproxy
def test_who_goes_on_sending_after_its_refusal_keeps_half_of_the_places_at_most(
    run_module: RunModule, tmp_path: Path
) -> None:
    # What is counted late, of a request that just began or ended, leaves a place, too.
    options = router_options(tmp_path, max_request_bytes=300000, large_requests=8)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with ExitStack() as stack:
        options["hosts"] = {"gpu-01": [serving_at(stack.enter_context(answering("a")).port, ["a"])]}
        assert run_module(router_server.main, options)["action"] == "started"
        stack.callback(RouterService(*(options[name] for name in PLACES)).remove)
        until(lambda: ask(options["port"], chat("a"))[0] == 200)
        for _client in range(8):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", options["port"]), timeout=30))
            with contextlib.suppress(ConnectionError):
                client.sendall(head.encode() + b"%x\r\n%s\r\n" % (310000, b"x" * 310000))
            assert stack.enter_context(client.makefile("rb")).readline().startswith(b"HTTP/1.1 413 ")
            # None of them has ended its request, and others have a place.
            until(lambda: ask(options["port"], in_chunks(chat("a", "x" * 200000, last=True)))[0] == 200)


@needs_haproxy
@pytest.mark.parametrize("size", [500000, 2500000])
def test_an_answer_that_needs_no_body_is_not_lost_on_the_way_over_the_reader(
    run_module: RunModule, tmp_path: Path, size: int
) -> None:
    clients = [{"name": "kept", "key": "the-key-of-kept", "models": ["b"]}, {"name": "all", "key": KEY}]
    limits = {"max_requests_per_replica": "1", "max_queue": "0", "max_requests_per_key": "0"}
    options = router_options(tmp_path, clients=clients, **limits, max_request_bytes=3000000)
    with ExitStack() as stack:
        of = {name: stack.enter_context(answering(name)) for name in ("a", "b")}
        options["hosts"] = {f"gpu-{name}": [serving_at(of[name].port, [name])] for name in of}
        options["api_keys"], options["replica_keys"] = [], {f"gpu-{name}": "the-replica-key" for name in of}
        assert run_module(router_server.main, options)["action"] == "started"
        stack.callback(RouterService(*(options[name] for name in PLACES)).remove)
        until(lambda: ask(options["port"], chat("a"))[0] == 200)
        body = chat("a", "x" * size, last=True)
        assert [ask(options["port"], body, key="the-key-of-kept")[0] for _turn in range(10)] == [403] * 10
        of["a"].hold = 60.0
        holding = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", options["port"])))
        holding.request("POST", "/v1/completions", chat("a"), {"Authorization": f"Bearer {KEY}"})
        until(lambda: of["a"].running == 1)
        for sent in (lambda: body, lambda: in_chunks(body)):
            assert [ask(options["port"], sent())[0] for _turn in range(10)] == [503] * 10


@needs_haproxy
@pytest.mark.parametrize("size", [10, 200000])
@pytest.mark.parametrize("file_first", [False, True])
def test_a_form_goes_to_a_replica_that_serves_the_model_in_it(fleet: Fleet, size: int, file_first: bool) -> None:
    def form(model: str) -> bytes:
        audio = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        named = f'Content-Disposition: form-data; name="model"\r\n\r\n{model}'.encode()
        fields = [named, audio + (b"\1" if file_first else b"\0") + b"\xff\r\n\r\n" * (size // 5)]
        parts = fields[::-1] if file_first else fields
        return b"".join(b"--limit\r\n" + part + b"\r\n" for part in parts) + b"--limit--\r\n"

    told = {"path": "/v1/audio/transcriptions", "Content_Type": "multipart/form-data; boundary=limit"}
    assert fleet.answered_by(form(FP8), **told) == "gpu-01"
    assert fleet.answered_by(form("small"), **told) == "gpu-03"
    assert ask(fleet.port, form("none"), **told)[0] == 404
    assert ask(fleet.port, form("small").replace(b'"model"', b'"other"'), **told)[0] == 400
    assert ask(fleet.port, form("small").replace(b"\1", b"\0"), **told)[0] == (400 if file_first else 200)
    assert ask(fleet.port, form("small"))[0] == 400, "a form is for audio"


@needs_haproxy
def test_an_alias_goes_to_every_kind_and_the_list_has_each_name_once(fleet: Fleet) -> None:
    assert {fleet.answered_by(chat(ALIAS)) for _turn in range(8)} == {"gpu-01", "gpu-02"}
    status, document = ask(fleet.port, path="/v1/models")
    assert (status, document["object"]) == (200, "list")
    assert [model["id"] for model in document["data"]] == sorted([ALIAS, FP8, FP4, "small"])


@needs_haproxy
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messages": [{"model": "small", "content": "hi"}], "model": "%s"}', "gpu-01"),
        (b'{"metadata": {"model": "small"}, "tools": [{"a": {"model": "small"}}], "model": "%s"}', "gpu-01"),
        (b'{"messages": [{"content": "{\\"model\\": \\"small\\"}"}], "model": "%s"}', "gpu-01"),
        (b'{"messages": [{"content": "{\\"model\\": \\"small\\", ' + b"x" * 70000 + b'"}], "model": "%s"}', "gpu-01"),
        (b'{"x": [], "y": {}, "z": null, "w": 1e3, "v": "\\u00e9\\n\\\\", "model":\n "%s"}', "gpu-01"),
        (b'{"messages": [{"content": "a\\/b"}], "model": "PHP"}', "gpu-01"),
        (b'{"messages": [{"content": "' + b"a\\/b" * 30000 + b'"}], "model": "PHP"}', "gpu-01"),
    ],
    ids=["nested", "nested deeper", "in a text", "in a text that is cut", "odd values", "PHP", "PHP, long"],
)
def test_nothing_but_the_model_of_the_request_itself_counts(fleet: Fleet, body: bytes, expected: str) -> None:
    named = body.replace(b"%s", FP8.encode()).replace(b"PHP", FP8.replace("/", "\\/").encode())
    assert fleet.answered_by(named) == expected


@needs_haproxy
@pytest.mark.parametrize(
    "body",
    [
        chat(None),
        chat(None, "x" * 100000),
        b'{"messages": [{"model": "small"}]}',
        b"not JSON",
        b'{"model": null}',
        b'{"model": {"model": "small"}}',
        b'["small"]',
        b"",
    ],
)
def test_without_its_model_a_request_reaches_no_server(fleet: Fleet, body: bytes) -> None:
    status, document = ask(fleet.port, body)
    assert status == 400 and 'name its model as "model"' in document["error"]["message"]
    assert not any(replica.bodies for replica in fleet.replicas.values())


@needs_haproxy
@pytest.mark.parametrize("size", [10, 100000], ids=["short", "long"])
def test_a_client_cannot_say_what_the_reader_found(fleet: Fleet, size: int) -> None:
    body = chat("small", "x" * size, last=True)
    assert fleet.answered_by(body, X_Gpufleet_Model="c2NvdXQ=") == "gpu-03"
    for replica in fleet.replicas.values():
        assert not any(name.startswith("x-gpufleet") for sent in replica.headers for name in sent)
    odd = json.dumps({"messages": ["x" * size], "model": "a\r\nX-Gpufleet-Model: c2NvdXQ="}).encode()
    assert ask(fleet.port, odd)[0] == 404


@needs_haproxy
@pytest.mark.parametrize("size", [10, 100000], ids=["short", "long"])
def test_a_drain_holds_for_every_model_and_counts_the_requests_of_all(
    run_module: RunModule, fleet: Fleet, size: int
) -> None:
    folders = {name: fleet.options[name] for name in ("run_dir", "state_dir")}
    fleet.replicas["gpu-01"].hold = 3.0
    asked = [threading.Thread(target=ask, args=(fleet.port, chat(FP8, "x" * size, last=True))) for _turn in range(3)]
    for thread in asked:
        thread.start()
    until(lambda: fleet.replicas["gpu-01"].running == 3)
    assert fleet.master.servers()["gpu-01:vllm-0"].sessions == 3
    drain = {"host": "gpu-01", "state": "drain", **folders}
    at_once = run_module(router_backend.main, {**drain, "timeout": 0})
    assert at_once["sessions_left"] == 3 and at_once["still_running"] == ["gpu-01:vllm-0"]
    # A reload keeps it, for the backends of the models, too.
    assert run_module(router_server.main, {**fleet.options, "rate_limit": 5000})["action"] == "reloaded"
    assert {fleet.answered_by(chat(ALIAS, "x" * size, last=True)) for _turn in range(4)} == {"gpu-02"}
    assert ask(fleet.port, chat(FP8, "x" * size, last=True))[0] == 503
    ended = run_module(router_backend.main, {**drain, "timeout": 20})
    assert ended["sessions_left"] == 0
    for thread in asked:
        thread.join()
    fleet.replicas["gpu-01"].hold = 0.0
    back = run_module(router_backend.main, {**drain, "state": "ready", "timeout": 20})
    assert back["not_up"] == []
    assert fleet.answered_by(chat(FP8)) == "gpu-01"


@needs_haproxy
def test_the_only_replica_of_a_model_is_not_taken_out_and_one_whose_alias_is_served_is(
    run_module: RunModule, fleet: Fleet
) -> None:
    drain = {"state": "drain", "timeout": 5, "max_unavailable": "50%"}
    drain.update({name: fleet.options[name] for name in ("run_dir", "state_dir")})
    refused = run_module(router_backend.main, {**drain, "host": "gpu-03"})
    assert refused["error"]["name"] == "no-other-serves"
    assert "no replica that serves the same model" in refused["msg"]
    assert run_module(router_backend.main, {**drain, "host": "gpu-01"})["changed"]


@needs_haproxy
def test_a_server_that_dies_loses_no_request_of_its_models(run_module: RunModule, tmp_path: Path) -> None:
    options = router_options(tmp_path)
    folders = [options[name] for name in ("directory", "run_dir", "state_dir", "log_file")]
    with ExitStack() as stack:
        one, other = (stack.enter_context(answering(name)) for name in ("one", "other"))
        with answering("dies") as dies:
            hosts = {"gpu-01": dies, "gpu-02": one}
            options["hosts"] = {host: [serving_at(at.port, ["a"])] for host, at in hosts.items()}
            options["hosts"]["gpu-03"] = [serving_at(other.port, ["b"])]
            assert run_module(router_server.main, options)["action"] == "started"
            stack.callback(RouterService(*folders).remove)
            until(lambda: {ask(options["port"], chat("a"))[1].get("replica") for _turn in range(4)} == {"dies", "one"})
        seen = [ask(options["port"], chat("a")) for _turn in range(40)]
        assert {status for status, _document in seen} == {200}
        assert {document["replica"] for _status, document in seen} == {"one"}


@needs_haproxy
def test_two_deployments_on_one_host_are_two_models_of_one_address(run_module: RunModule, tmp_path: Path) -> None:
    options = router_options(tmp_path)
    folders = [options[name] for name in ("directory", "run_dir", "state_dir", "log_file")]
    with ExitStack() as stack:
        large, small = (stack.enter_context(answering(name)) for name in ("large", "small"))
        options["hosts"] = {
            "gpu-01": [
                {**serving_at(large.port, ["large"]), "name": "large-0"},
                {**serving_at(small.port, ["small"]), "name": "small-0"},
            ]
        }
        assert run_module(router_server.main, options)["action"] == "started"
        stack.callback(RouterService(*folders).remove)
        until(lambda: ask(options["port"], chat("small"))[0] == 200)
        assert ask(options["port"], chat("large"))[1]["replica"] == "large"
        # Another one that serves the same makes one backend of all again, without a request lost.
        options["hosts"]["gpu-01"].pop()
        assert run_module(router_server.main, options)["action"] == "reloaded"
        assert ask(options["port"], chat("large"))[1]["replica"] == "large"
        assert ask(options["port"], chat("small"))[0] == 404
        assert ask(options["port"], chat("large", "x" * 200000, last=True))[1]["replica"] == "large"
        left = Path(options["directory"], "reader.cfg").read_text(encoding="utf-8")
        sockets = [Path(path) for path in sockets_in(left)]
        assert any(path.exists() for path in sockets)
        RouterService(*folders).remove()
        assert len(sockets) == 2 and not any(path.exists() for path in sockets)


@needs_haproxy
@pytest.mark.parametrize("text", [b"\\/", b'\\"', b"[", b'"a":'], ids=["slashes", "quotes", "brackets", "keys"])
def test_no_body_takes_long_to_look_through(fleet: Fleet, text: bytes) -> None:
    for size in (60 * KIB, 20 * MIB):
        began = time.monotonic()
        assert ask(fleet.port, b'{"a": "' + text * (size // len(text)) + b'"}')[0] == 400
        assert time.monotonic() - began < 5
        assert fleet.answered_by(chat(FP4)) == "gpu-02"


@needs_haproxy
def test_a_reader_that_dies_is_started_again_and_takes_nothing_with_it(fleet: Fleet) -> None:
    reader = Master(f"{fleet.options['run_dir']}/reader.cli", fleet.options["state_dir"])
    for of in ("current", "master"):
        found = reader.processes()
        os.kill(found.master if of == "master" else found.current[0], signal.SIGKILL)
        assert fleet.answered_by(chat(FP8)) == "gpu-01"
        until(lambda: ask(fleet.port, chat(FP8, "x" * 100000, last=True))[0] == 200)
