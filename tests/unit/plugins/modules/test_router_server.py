# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of router_server; those that start HAProxy take the one of this machine."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import haproxy, reader_service, service
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate, public_part
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.reader_service import lives
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import arguments, unit_text
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_server
from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import busy
from ansible_collections.gpufleet.vllm.tests.fakes.keyed_replica import serving
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import needs_haproxy, router_in

HOSTS = {"gpu-01": [{"name": "vllm-0", "address": "127.0.0.1", "port": 9}]}


@pytest.fixture
def args(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options of a router in a folder of the test; what was started is ended."""
    with router_in(
        tmp_path,
        hosts=HOSTS,
        host="127.0.0.1",
        tls=False,
        api_keys=["the-client-key"],
        replica_keys={"gpu-01": "the-replica-key", "gpu-02": "the-replica-key"},
    ) as found:
        yield found


def status(port: int, key: str) -> int:
    """Return with what the router answers a request for the list of models."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status


def at(port: int, address: str = "127.0.0.1") -> list[dict[str, Any]]:
    """Return what a host with one replica at this port serves."""
    return [{"name": "vllm-0", "address": address, "port": port}]


def backend(run_module: RunModule, args: dict[str, Any], host: str, state: str, **more: Any) -> dict[str, Any]:
    """Set the state of a host's replica by the module that does; return the module's result."""
    given = {"host": host, "state": state, "timeout": 20, **more}
    return run_module(router_backend.main, {**given, "run_dir": args["run_dir"], "state_dir": args["state_dir"]})


def master_of(args: dict[str, Any]) -> Master:
    """Return the router's master process."""
    return Master(os.path.join(args["run_dir"], "master.sock"), args["state_dir"])


def states(args: dict[str, Any]) -> dict[str, str]:
    """Return the states of the servers in HAProxy."""
    servers = master_of(args).servers()
    return {name: server.state for name, server in servers.items()}


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
    assert not any(os.path.exists(args[name]) for name in ("directory", "run_dir", "state_dir"))
    assert run_module(router_server.main, {**args, "state": "absent"})["changed"] is False


@needs_haproxy
def test_with_no_host_asked_the_replicas_are_asked_with_the_same_key_as_before(
    run_module: RunModule, args: dict[str, Any]
) -> None:
    with serving("the-replica-key") as replica:
        there = {**args, "hosts": {"gpu-01": at(replica.port)}}
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
    listed = sorted(os.listdir(args["directory"]))
    result = run_module(router_server.main, {**args, "tls": True})  # and there is no certificate
    assert result["failed"] and result["error"]["name"] == "router-config-refused"
    assert "site.pem" in result["error"]["evidence"]
    assert Path(args["directory"], "haproxy.cfg").read_text(encoding="utf-8") == before
    assert sorted(os.listdir(args["directory"])) == listed
    assert status(args["port"], "the-client-key") == 503


@needs_haproxy
def test_a_port_that_is_taken_is_told_by_haproxys_words(run_module: RunModule, args: dict[str, Any]) -> None:
    with contextlib.closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", args["port"]))
        holder.listen(1)
        result = run_module(router_server.main, args)
    assert result["failed"] and result["error"]["name"] == "router-not-started"
    assert "Address already in use" in result["error"]["evidence"]


@needs_haproxy
@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_a_replica_that_has_moved_is_asked_at_its_new_port_and_one_that_is_drained_stays_so(
    run_module: RunModule, args: dict[str, Any], address: str
) -> None:
    key = "the-replica-key"
    with serving(key) as old, serving(key) as old_drained, serving(key) as new, serving(key) as new_drained:
        before = {"gpu-01": at(old.port, address), "gpu-02": at(old_drained.port, address)}
        after = {"gpu-01": at(new.port, address), "gpu-02": at(new_drained.port, address), "gpu-00": at(9)}
        assert run_module(router_server.main, {**args, "hosts": before})["action"] == "started"
        assert backend(run_module, args, "gpu-02", "drain")["changed"]
        keys = dict.fromkeys(after, key)
        moved = run_module(router_server.main, {**args, "hosts": after, "replica_keys": keys})
        assert (moved.get("msg"), moved["action"]) == (None, "reloaded")
        old.asked.clear()
        assert status(args["port"], "the-client-key") == 200
        assert "/v1/models" in new.asked and "/v1/models" not in old.asked
        assert states(args) == {"gpu-00:vllm-0": "ready", "gpu-01:vllm-0": "ready", "gpu-02:vllm-0": "drain"}
        assert "/v1/models" not in new_drained.asked
        assert not run_module(router_server.main, {**args, "hosts": after, "replica_keys": keys})["changed"]
        back = backend(run_module, args, "gpu-02", "ready")
        assert (back["changed"], back["not_up"]) == (True, [])
        assert "/health" in new_drained.asked


@needs_haproxy
@pytest.mark.parametrize("state", ["drain", "maint"])
def test_what_was_taken_out_stays_so_whoever_starts_haproxy_or_loads_it(
    run_module: RunModule, args: dict[str, Any], state: str
) -> None:
    taken_out = {"gpu-01:vllm-0": "ready", "gpu-02:vllm-0": state}
    master = master_of(args)
    with serving("the-replica-key") as replica:
        args["hosts"] = {"gpu-01": at(replica.port), "gpu-02": at(replica.port)}
        run_module(router_server.main, args)
        backend(run_module, args, "gpu-02", state, **({"owner": "deploy"} if state == "drain" else {}))
        reload_by_hand(master)
        assert states(args) == taken_out
        end(master.processes().master)
        reboot(args)
        with started_by_hand(args):
            assert states(args) == taken_out
        assert run_module(router_server.main, args)["action"] == "started"
        assert states(args) == taken_out
        assert status(args["port"], "the-client-key") == 200
        # Nor is it forgotten who drained it, or kept longer than wanted.
        back = backend(run_module, args, "gpu-02", "ready", owner="deploy" if state == "drain" else "")
        assert (back["changed"], back["not_up"]) == (True, [])
        reload_by_hand(master)
        assert set(states(args).values()) == {"ready"}


@needs_haproxy
@pytest.mark.parametrize("first", ["router_server", "router_backend"])
def test_what_an_earlier_version_kept_beside_the_sockets_is_taken_over(
    run_module: RunModule, args: dict[str, Any], first: str
) -> None:
    drained = {"gpu-01:vllm-0": "ready", "gpu-02:vllm-0": "drain"}
    before = {**args, "state_dir": args["run_dir"]}
    with serving("the-replica-key") as replica:
        args["hosts"] = before["hosts"] = {"gpu-01": at(replica.port), "gpu-02": at(replica.port)}
        run_module(router_server.main, before)
        backend(run_module, before, "gpu-02", "drain", owner="deploy")
        # Check mode, by which plays look for it, finds it and leaves it.
        look = {"hosts": ["gpu-01", "gpu-02"], "state": "ready", "owner": "deploy"}
        look.update(run_dir=args["run_dir"], state_dir=args["state_dir"])
        assert run_module(router_backend.main, look, check=True)["hosts"] == ["gpu-02"]
        assert not os.path.exists(args["state_dir"])
        if first == "router_backend":
            # The router has its old configuration still.
            backend(run_module, args, "gpu-01", "maint")
            backend(run_module, args, "gpu-01", "ready")
            reload_by_hand(master_of(args))
            assert states(args) == drained
        assert run_module(router_server.main, args)["action"] == "reloaded"
        assert states(args) == drained
        assert [name for name, mark in DrainMarks(args["state_dir"]).everyone().items() if mark.replicas] == ["gpu-02"]
        assert os.listdir(os.path.join(args["run_dir"], "drained")) == []
        end(master_of(args).processes().master)
        reboot(args)
        with started_by_hand(args):
            assert states(args) == drained
            assert run_module(router_backend.main, look, check=True)["hosts"] == ["gpu-02"]


def reboot(args: dict[str, Any]) -> None:
    """End the reader, empty what a reboot empties, and make the folder that a unit makes before it starts HAProxy."""
    reader = Path(args["run_dir"], "reader.pid")
    shell = int(reader.read_text())
    master = Master(os.path.join(args["run_dir"], reader_service.MASTER_SOCKET), args["state_dir"]).processes().master
    reader.unlink()
    end(master)
    wait_for(lambda: not lives(shell))
    shutil.rmtree(args["run_dir"])
    os.makedirs(args["run_dir"])


@contextlib.contextmanager
def started_by_hand(args: dict[str, Any]) -> Iterator[None]:
    """Have HAProxy run by the unit's command, for the block."""
    command = [str(program_path("haproxy")), *arguments(args["directory"], args["run_dir"])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        wait_for(lambda: os.path.exists(os.path.join(args["run_dir"], "master.sock")))
        try:
            yield
        finally:
            started.terminate()


def wait_for(done: Callable[[], bool]) -> None:
    """Wait ten seconds at most."""
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def reload_by_hand(master: Master) -> None:
    """Have the configuration loaded as C(systemctl reload) does."""
    before = master.processes()
    os.kill(before.master, signal.SIGUSR2)
    wait_for(lambda: master.processes().current not in (before.current, ()))


def end(pid: int) -> None:
    """End a process and wait until it has."""
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not lives(pid))


@needs_haproxy
def test_a_request_with_two_keys_is_refused(run_module: RunModule, args: dict[str, Any]) -> None:
    """One of them would let it in and the other be counted."""
    with serving("the-replica-key") as replica:
        run_module(router_server.main, {**args, "hosts": {"gpu-01": at(replica.port)}, "rate_limit": 2})
        seen = []
        for number in range(6):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", args["port"], timeout=10)) as connection:
                connection.putrequest("GET", "/v1/models")
                connection.putheader("Authorization", "Bearer the-client-key")
                if number < 5:
                    connection.putheader("Authorization", f"Bearer {number}")
                connection.endheaders()
                seen.append(connection.getresponse().status)
        assert seen == [400] * 5 + [200]


@needs_haproxy
def test_hosts_that_are_taken_out_are_told(run_module: RunModule, args: dict[str, Any]) -> None:
    run_module(router_server.main, {**args, "hosts": {**HOSTS, "gpu-02": at(10)}})
    for check in (True, False):
        result = run_module(router_server.main, args, check=check)
        assert list(result["left_out"]) == ["gpu-02"] and "taken out" in result["left_out"]["gpu-02"]
    assert run_module(router_server.main, args)["left_out"] == {}


@needs_haproxy
@pytest.mark.skipif(program_path("openssl") is None, reason="no openssl here; Molecule installs it")
def test_a_certificate_that_haproxy_refuses_never_takes_the_place_of_the_one_that_works(
    run_module: RunModule, args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "START_S", 5.0)
    made = []
    for name in ("one.example.com", "other.example.com"):
        make_certificate(str(tmp_path / "made.pem"), [name], 90)
        made.append((tmp_path / "made.pem").read_text(encoding="utf-8"))
    site = Path(args["directory"], "site.pem")
    tls = {**args, "tls": True, "certificate": made[0]}
    first = run_module(router_server.main, tls, diff=True)
    assert (first.get("msg"), first["action"]) == (None, "started")
    assert site.stat().st_mode & 0o777 == 0o600
    assert not run_module(router_server.main, tls)["changed"]
    no_key = {**tls, "certificate": public_part(str(tmp_path / "made.pem"))}
    told = run_module(router_server.main, no_key, check=True, diff=True)
    assert told["changed"] and site.read_text(encoding="utf-8") == made[0]
    refused = run_module(router_server.main, no_key)
    assert refused["failed"] and refused["error"]["name"] == "router-config-refused"
    assert site.read_text(encoding="utf-8") == made[0]
    with contextlib.closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        taken = {**tls, "certificate": made[1], "port": holder.getsockname()[1]}
        not_loaded = run_module(router_server.main, taken, diff=True)
    assert not_loaded["error"]["name"] == "router-not-reloaded"
    assert site.read_text(encoding="utf-8") == made[0]
    second = run_module(router_server.main, {**tls, "certificate": made[1]}, diff=True)
    assert second["action"] == "reloaded" and site.read_text(encoding="utf-8") == made[1]
    seen = ssl.get_server_certificate(("127.0.0.1", args["port"]))
    assert seen.strip() in made[1]
    # Without one, what is there stays.
    assert not run_module(router_server.main, {**tls, "certificate": ""})["changed"]
    assert not {".check", ".new"} & {name[:6] for name in os.listdir(args["directory"])}
    secrets = [line for text in made for line in text.partition("PRIVATE KEY-----\n")[2].splitlines()[:2]]
    assert len(secrets) == 4
    assert not any(line in str([first, told, refused, not_loaded, second]) for line in secrets)


@needs_haproxy
def test_a_key_that_the_servers_refuse_is_loaded_after_they_have_it(
    run_module: RunModule, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(GpufleetModule, "warn", lambda _module, text: warned.append(text))
    with serving("old") as one, serving("old") as other:
        hosts = {"gpu-01": at(one.port), "gpu-02": at(other.port), "gpu-03": at(9)}
        old, new = (dict.fromkeys(hosts, key) for key in ("old", "new"))
        args["hosts"] = hosts
        assert run_module(router_server.main, {**args, "replica_keys": old})["action"] == "started"
        assert run_module(router_server.main, {**args, "replica_keys": new}, check=True)["changed"]
        refused = run_module(router_server.main, {**args, "replica_keys": new})
        assert refused["failed"] and refused["error"]["name"] == "router-key-refused"
        assert refused["error"]["details"] == {"hosts": ["gpu-01", "gpu-02"]}
        assert "gpufleet.vllm.router" in refused["msg"]
        assert status(args["port"], "the-client-key") == 200
        none = {**args, "host": "0.0.0.0", "api_keys": [], "replica_keys": dict.fromkeys(hosts, "")}
        assert run_module(router_server.main, none)["error"]["name"] == "invalid-router", "that comes before the trial"
        waiting = run_module(router_server.main, {**args, "replica_keys": new, "key_may_wait": True})
        assert (waiting["failed"], waiting["changed"]) == (False, False)
        # deploy has changed one server; gpu-03 cannot be asked.
        one.key = "new"
        changing = run_module(router_server.main, {**args, "replica_keys": new})
        assert changing["action"] == "reloaded" and "gpu-02" in str(warned)


def test_one_that_cannot_be_asked_is_not_started_anew(
    run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haproxy, "PATIENCE_S", 0.2)
    given = {"hosts": HOSTS, "host": "127.0.0.1", "tls": False, "api_keys": ["key"], "user": "daemon"}
    with busy(tmp_path):
        folders = {"directory": str(tmp_path / "etc"), "run_dir": str(tmp_path), "state_dir": str(tmp_path / "state")}
        result = run_module(router_server.main, {**given, **folders})
    assert result["failed"] and result["error"]["name"] == "router-not-answering"
    assert not (tmp_path / "etc" / "haproxy.cfg").exists()


def test_the_unit_runs_the_same_command_and_reloads_it() -> None:
    text = unit_text("/usr/sbin/haproxy", "/etc/x", "/run/x", "/var/lib/x")
    assert "ExecStart=/usr/sbin/haproxy -Ws -S /run/x/master.sock,mode,600 -f /etc/x/haproxy.cfg\n" in text
    assert "ExecReload=/bin/kill -USR2 $MAINPID\n" in text
    # What was drained stays so.
    assert "ExecStartPre=/bin/mkdir -p /run/x /var/lib/x\n" in text
    assert "ExecStartPre=/bin/sh -c 'test -s /var/lib/x/server-state || echo 1 > /var/lib/x/server-state'\n" in text
