# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The router's listener for monitoring, by the HAProxy of this machine."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_server
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import router_in

TOKEN, REPLICA_KEY = "the-token", "the-replica-key"
pytestmark = pytest.mark.skipif(
    program_path("haproxy") is None or os.geteuid() != 0 or os.path.isdir("/run/systemd/system"),
    reason="no HAProxy here, or not ours to start",
)


@contextlib.contextmanager
def measured(name: str) -> Iterator[int]:
    """Serve metrics that have this name, to who sends the replicas' key or none; yield the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] in (None, f"Bearer {REPLICA_KEY}")
            text = f"{name}{self.path} 1\n".encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@pytest.fixture
def args(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options of a router in a folder of the test; what was started is ended."""
    with measured("one") as one, measured("two") as two:
        hosts = {
            "gpu-01": [{"name": "vllm-0", "address": "127.0.0.1", "port": one}],
            "gpu-02": [{"name": "vllm-0", "address": "127.0.0.1", "port": two}],
        }
        with router_in(
            tmp_path,
            hosts=hosts,
            host="127.0.0.1",
            tls=False,
            api_keys=["the-client-key"],
            replica_keys=dict.fromkeys(hosts, REPLICA_KEY),
            metrics_port=free_port(),
            metrics_token=TOKEN,
        ) as found:
            yield found


def ask(args: dict[str, Any], path: str, token: str = TOKEN, method: str = "GET", host: str = "") -> tuple[int, str]:
    """Return status and text of an answer of the listener."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", args["metrics_port"], timeout=10)) as connection:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, headers={**headers, **({"Host": host} if host else {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_what_there_is_to_ask_is_listed_and_answers(run_module: RunModule, args: dict[str, Any]) -> None:
    first = run_module(router_server.main, args, diff=True)
    assert (first.get("msg"), first["action"]) == (None, "started")
    assert TOKEN not in str(first)
    assert TOKEN not in "".join(path.read_text() for path in Path(args["directory"]).iterdir() if path.is_file())
    assert run_module(router_server.main, args)["changed"] is False
    where = f"127.0.0.1:{args['metrics_port']}"
    status, text = ask(args, "/targets")
    listed = json.loads(text)
    assert status == 200 and [entry["targets"] for entry in listed] == [[where]] * 3
    assert listed[1]["labels"] == {
        "__metrics_path__": "/replicas/gpu-01:vllm-0/metrics",
        "job": "vllm",
        "host": "gpu-01",
        "replica": "vllm-0",
    }
    answers = [ask(args, entry["labels"]["__metrics_path__"]) for entry in listed]
    assert [status for status, _text in answers] == [200, 200, 200]
    assert "haproxy_process_" in answers[0][1] and 'server="gpu-02:vllm-0"' in answers[0][1]
    assert [text for _status, text in answers[1:]] == ["one/metrics 1\n", "two/metrics 1\n"]
    assert json.loads(ask(args, "/targets", host="lb.example.com:1")[1])[0]["targets"] == ["lb.example.com:1"]


def test_a_drained_replica_is_measured_and_no_other_one_in_its_place(
    run_module: RunModule, args: dict[str, Any]
) -> None:
    run_module(router_server.main, args)
    where = {"run_dir": args["run_dir"], "state_dir": args["state_dir"]}
    run_module(router_backend.main, {"host": "gpu-01", "state": "drain", "timeout": 0, **where})
    assert ask(args, "/replicas/gpu-01:vllm-0/metrics") == (200, "one/metrics 1\n")
    gone = {**args, "hosts": {**args["hosts"], "gpu-01": [{"name": "vllm-0", "address": "127.0.0.1", "port": 9}]}}
    assert run_module(router_server.main, gone)["action"] == "reloaded"
    assert ask(args, "/replicas/gpu-01:vllm-0/metrics")[0] == 503
    assert ask(args, "/replicas/gpu-02:vllm-0/metrics") == (200, "two/metrics 1\n")


@pytest.mark.parametrize(
    ("path", "token", "method", "host", "status"),
    [
        ("/metrics", "", "GET", "", 401),
        ("/metrics", "another", "GET", "", 401),
        ("/replicas/gpu-01:vllm-0/metrics", "the-client-key", "GET", "", 401),
        ("/targets", "", "GET", "", 401),
        ("/targets", TOKEN, "GET", 'lb"],"x', 400),
        ("/metrics", TOKEN, "POST", "", 405),
        ("/v1/models", TOKEN, "GET", "", 404),
        ("/replicas/gpu-03:vllm-0/metrics", TOKEN, "GET", "", 404),
        ("/replicas/gpu-01:vllm-0/pause", TOKEN, "GET", "", 404),
        ("/replicas/gpu-01:vllm-0/metrics/../../pause", TOKEN, "GET", "", 404),
        ("/replicas/gpu-01%3Avllm-0/metrics", TOKEN, "GET", "", 404),
        ("/health", TOKEN, "GET", "", 404),
    ],
)
def test_all_else_is_refused(
    run_module: RunModule, args: dict[str, Any], path: str, token: str, method: str, host: str, status: int
) -> None:
    run_module(router_server.main, args)
    found, text = ask(args, path, token, method, host)
    # HAProxy 3.0 refuses such a host before any rule of a configuration.
    before_rules = host and text.startswith("<html><body><h1>400 Bad request")
    assert found == status and (before_rules or json.loads(text)["error"]["code"] == status)


def test_without_a_token_it_is_for_this_machine_alone(run_module: RunModule, args: dict[str, Any]) -> None:
    given = {**args, "metrics_token": "", "metrics_host": "0.0.0.0"}
    refused = run_module(router_server.main, given)
    assert refused["error"]["name"] == "invalid-router"
    assert "router_metrics_token" in refused["msg"] and "in the clear" in refused["msg"]
    assert run_module(router_server.main, {**given, "metrics_host": "127.0.0.1"})["action"] == "started"
    assert ask(args, "/metrics", "")[0] == 200


def test_a_list_that_is_too_long_for_one_answer_comes_in_parts(run_module: RunModule, args: dict[str, Any]) -> None:
    hosts = {
        f"gpu-{number:03}": [{"name": f"vllm-{one}", "address": "127.0.0.1", "port": 9} for one in range(8)]
        for number in range(50)
    }
    many = {**args, "hosts": hosts, "replica_keys": dict.fromkeys(hosts, REPLICA_KEY)}
    first = run_module(router_server.main, many)
    assert (first.get("msg"), first["action"]) == (None, "started")
    listed = [json.loads(ask(args, path)[1]) for path in ("/targets", "/targets/2", "/targets/3")]
    paths = [entry["labels"]["__metrics_path__"] for part in listed if isinstance(part, list) for entry in part]
    assert len(paths) == len(set(paths)) == 401


def test_no_replica_and_no_key_leave_what_there_is(run_module: RunModule, args: dict[str, Any]) -> None:
    keyless = {**args, "replica_keys": {}}
    assert run_module(router_server.main, keyless)["action"] == "started"
    assert ask(args, "/replicas/gpu-01:vllm-0/metrics")[0] == 200  # the token is not handed on
    nothing = {**args, "hosts": {host: [] for host in args["hosts"]}}
    assert run_module(router_server.main, nothing)["action"] == "reloaded"
    assert len(json.loads(ask(args, "/targets")[1])) == 1
    assert ask(args, "/replicas/gpu-01:vllm-0/metrics")[0] == 404
