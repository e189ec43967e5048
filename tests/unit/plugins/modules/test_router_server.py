# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of router_server; those that start HAProxy take the one of this machine."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.front_end import FrontEnd, unit_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.modules import router_server
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port

HOSTS = {"gpu-01": [{"name": "vllm-0", "address": "127.0.0.1", "port": 9}]}
needs_haproxy = pytest.mark.skipif(
    program_path("haproxy") is None or os.geteuid() != 0 or os.path.isdir("/run/systemd/system"),
    reason="no HAProxy here, or not ours to start; Molecule's scenario fleet does",
)


@pytest.fixture
def args(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options of a front end in a folder of the test; what was started is ended."""
    folder, run_dir, log = str(tmp_path / "etc"), str(tmp_path / "run"), str(tmp_path / "log")
    yield {
        "hosts": HOSTS,
        "host": "127.0.0.1",
        "port": free_port(),
        "tls": False,
        "api_keys": ["the-client-key"],
        "replica_keys": {"gpu-01": "the-replica-key", "gpu-02": "the-replica-key"},
        "directory": folder,
        "run_dir": run_dir,
        "log_file": log,
    }
    FrontEnd(folder, run_dir, log).remove()


def status(port: int, key: str) -> int:
    """Return with what the front end answers a request for the list of models."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status


@contextlib.contextmanager
def replica(key: str) -> Iterator[int]:
    """Serve as a replica with a key does, and return its port: health to everyone, the rest to who has the key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/health" or self.headers["Authorization"] == f"Bearer {key}"
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_check_mode_shows_the_configuration_and_no_secret(run_module: RunModule, args: dict[str, Any]) -> None:
    result = run_module(router_server.main, args, check=True, diff=True)
    assert result["changed"] and result["action"] == "started"
    shown = "".join(entry["after"] for entry in result["diff"])
    assert "server gpu-01:vllm-0 127.0.0.1:9" in shown
    assert "the-client-key" not in str(result) and "the-replica-key" not in str(result)
    assert not os.path.exists(args["directory"])


def test_everyone_let_in_is_refused_before_anything_is_written(run_module: RunModule, args: dict[str, Any]) -> None:
    open_to_all = {**args, "host": "0.0.0.0", "tls": True, "api_keys": []}
    result = run_module(router_server.main, open_to_all)
    assert result["failed"] and result["error"]["name"] == "invalid-router"
    assert "vllm_allow_unauthenticated" in result["msg"]
    assert not os.path.exists(os.path.join(args["directory"], "haproxy.cfg"))
    assert run_module(router_server.main, {**open_to_all, "allow_unauthenticated": True}, check=True)["changed"]


@needs_haproxy
def test_it_starts_follows_and_ends(run_module: RunModule, args: dict[str, Any]) -> None:
    first = run_module(router_server.main, args)
    assert (first.get("msg"), first["action"]) == (None, "started")
    assert [status(args["port"], key) for key in ("the-client-key", "another")] == [503, 401]
    assert run_module(router_server.main, args)["changed"] is False
    Path(args["directory"], "haproxy.cfg").write_text("# edited by hand\n", encoding="utf-8")
    assert run_module(router_server.main, args)["action"] == "reloaded"
    assert run_module(router_server.main, args)["changed"] is False
    for name in ("keys.sha256", "replica.key"):
        assert os.stat(os.path.join(args["directory"], name)).st_mode & 0o777 == 0o600
    more = {**args, "hosts": {"gpu-02": HOSTS["gpu-01"]}, "unknown": ["gpu-01", "gpu-03"]}
    second = run_module(router_server.main, more)
    assert second["action"] == "reloaded"
    assert [replica["host"] for replica in second["replicas"]] == ["gpu-01", "gpu-02"]
    assert (second["kept"], list(second["left_out"])) == (["gpu-01"], ["gpu-03"])
    other_key = run_module(router_server.main, {**more, "api_keys": ["another"]})
    assert other_key["action"] == "reloaded"
    assert [status(args["port"], key) for key in ("the-client-key", "another")] == [401, 503]
    assert run_module(router_server.main, {**args, "state": "absent"})["action"] == "removed"
    assert not os.path.exists(args["directory"]) and not os.path.exists(args["run_dir"])
    assert run_module(router_server.main, {**args, "state": "absent"})["changed"] is False


@needs_haproxy
def test_with_no_host_asked_the_replicas_are_asked_with_the_same_key_as_before(
    run_module: RunModule, args: dict[str, Any]
) -> None:
    with replica("the-replica-key") as port:
        there = {**args, "hosts": {"gpu-01": [{"name": "vllm-0", "address": "127.0.0.1", "port": port}]}}
        assert run_module(router_server.main, there)["action"] == "started"
        assert status(args["port"], "the-client-key") == 200
        nobody = run_module(router_server.main, {**args, "hosts": {}, "unknown": ["gpu-01"]})
        assert (nobody["changed"], nobody["kept"]) == (False, ["gpu-01"])
        assert status(args["port"], "the-client-key") == 200


@needs_haproxy
def test_it_is_emptied_only_when_every_host_was_asked(run_module: RunModule, args: dict[str, Any]) -> None:
    run_module(router_server.main, args)
    for unsure in ({"hosts": {}, "unknown": ["gpu-1"]}, {"hosts": {"gpu-01": []}, "left_out": {"gpu-01": "no way"}}):
        for check in (True, False):
            result = run_module(router_server.main, {**args, **unsure}, check=check)
            assert result["failed"] and result["error"]["name"] == "router-emptied"
    assert "server gpu-01:vllm-0" in Path(args["directory"], "haproxy.cfg").read_text(encoding="utf-8")
    torn_down = run_module(router_server.main, {**args, "hosts": {"gpu-01": []}})
    assert (torn_down["action"], torn_down["replicas"]) == ("reloaded", [])
    assert torn_down["left_out"] == {"gpu-01": "nothing is deployed there"}


@needs_haproxy
def test_what_haproxy_refuses_leaves_everything_as_it_was(run_module: RunModule, args: dict[str, Any]) -> None:
    run_module(router_server.main, args)
    before = Path(args["directory"], "haproxy.cfg").read_text(encoding="utf-8")
    result = run_module(router_server.main, {**args, "tls": True})  # and there is no certificate
    assert result["failed"] and result["error"]["name"] == "router-config-refused"
    assert "site.pem" in result["error"]["evidence"]
    assert Path(args["directory"], "haproxy.cfg").read_text(encoding="utf-8") == before
    assert sorted(os.listdir(args["directory"])) == [
        *(".lock", "haproxy.cfg", "keys.sha256", "replica.key", "replicas.json")
    ]
    assert status(args["port"], "the-client-key") == 503


@needs_haproxy
def test_a_port_that_is_taken_is_told_by_haproxys_words(run_module: RunModule, args: dict[str, Any]) -> None:
    with contextlib.closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", args["port"]))
        holder.listen(1)
        result = run_module(router_server.main, args)
    assert result["failed"] and result["error"]["name"] == "router-not-started"
    assert "Address already in use" in result["error"]["evidence"]


def test_the_unit_runs_the_same_command_and_reloads_it() -> None:
    text = unit_text("/usr/sbin/haproxy", "/etc/x", "/run/x")
    assert "ExecStart=/usr/sbin/haproxy -Ws -S /run/x/master.sock,mode,600 -f /etc/x/haproxy.cfg\n" in text
    assert "ExecReload=/bin/kill -USR2 $MAINPID\n" in text
