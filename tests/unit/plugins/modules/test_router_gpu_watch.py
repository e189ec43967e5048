# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas with sick GPUs leave a real HAProxy: the hosts' own program finds them on a stub of NVML, the watch acts."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.door import GPUS_HEADER
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import gpu_watch, gpu_watch_service
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_gpu_watch, router_server
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.router_lines import watch_lines
from ansible_collections.gpufleet.vllm.tests.fakes.model_replica import ModelReplica, answering
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.module_utils.gpus import test_health_program
from ansible_collections.gpufleet.vllm.tests.unit.plugins.module_utils.gpus.test_health_program import UUID, Host
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import (
    PLACES,
    ask,
    needs_haproxy,
    router_in,
    serving_at,
)

PATIENCE_S = 120.0

# A fixture of other tests.
program = test_health_program.program


def until(true: Callable[[], bool]) -> None:
    """Wait until it is so, or fail."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Fleet:
    """Hosts with two GPUs and one replica each, behind HAProxy and its watch."""

    def __init__(
        self, run_module: RunModule, folder: Path, hosts: dict[str, Host], replicas: dict[str, ModelReplica], port: int
    ) -> None:
        self.run_module, self.folder, self.hosts, self.replicas, self.port = run_module, folder, hosts, replicas, port
        self.places = {name: str(folder / path) for name, path in PLACES.items()}
        self.watch_options: dict[str, Any] = {**self.places, "interval": 1, "recovered": 2}
        self.master = Master(f"{self.places['run_dir']}/{MASTER_SOCKET}", self.places["state_dir"])

    def watch(self, **more: Any) -> dict[str, Any]:
        """Have the watch run, with these options from now on."""
        self.watch_options.update(more)
        result = self.run_module(router_gpu_watch.main, self.watch_options)
        assert not result["failed"], result
        return result

    def out(self) -> list[str]:
        """Return the hosts that are drained."""
        return sorted(name.split(":")[0] for name, server in self.master.servers().items() if server.state == "drain")

    def set(self, host: str, state: str, **more: Any) -> dict[str, Any]:
        """Drain or resume a host as a person does."""
        options = {"host": host, "state": state, "timeout": 20, **more}
        places = {name: self.places[name] for name in ("run_dir", "state_dir")}
        return self.run_module(router_backend.main, {**options, **places})

    def look(self) -> dict[str, Any]:
        """Return what status is told by the router."""
        places = {name: self.places[name] for name in ("directory", "run_dir", "state_dir")}
        hosts = {"hosts": list(self.hosts), "state": "ready", **places}
        return self.run_module(router_backend.main, hosts, check=True)


@pytest.fixture
def fleet(
    run_module: RunModule,
    tmp_path: Path,
    nvml_stub: Path,
    program: Path,
) -> Iterator[Fleet]:
    """Three hosts on which nothing is wrong."""
    names = ("gpu-01", "gpu-02", "gpu-03")
    with contextlib.ExitStack() as stack:
        replicas = {name: stack.enter_context(answering(name, hold=0.05)) for name in names}
        hosts = {}
        for name in names:
            (tmp_path / name).mkdir()
            hosts[name] = Host(tmp_path / name, nvml_stub, program)
            hosts[name].serve([UUID.format(0), UUID.format(1)])
            hosts[name].look()
            replicas[name].control = str(hosts[name].etc / "control/vllm-0")
        entries = {name: [serving_at(replica.port, ["m"])] for name, replica in replicas.items()}
        options = {"host": "127.0.0.1", "tls": False, "api_keys": [], "hosts": entries, "allow_unauthenticated": True}
        with router_in(tmp_path, **options, replica_keys=dict.fromkeys(names, "")) as router:
            assert not run_module(router_server.main, router)["failed"]
            found = Fleet(run_module, tmp_path, hosts, replicas, router["port"])
            until(lambda: sum(server.usable() for server in found.master.servers().values()) == len(names))
            try:
                yield found
            finally:
                gpu_watch_service.remove_watch(found.places["directory"], found.places["run_dir"], check=False)
                assert not gpu_watch_service.runs(found.places["run_dir"])


@contextlib.contextmanager
def load(fleet: Fleet) -> Iterator[list[int]]:
    """Send requests all the time; yield the statuses of the answers."""
    answers: list[int] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            try:
                answers.append(ask(fleet.port, b'{"model": "m"}', key="")[0])
            except OSError:
                answers.append(0)

    threads = [threading.Thread(target=send) for _client in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_door_and_the_watch_mean_the_same_header() -> None:
    assert gpu_watch.HEADER == GPUS_HEADER


@needs_haproxy
def test_a_sick_gpu_leaves_service_and_no_request_is_lost(fleet: Fleet) -> None:
    """Within the limit, with the reason told, and until it has been well for a while."""
    assert fleet.watch()["changed"] and not fleet.watch()["changed"]
    with load(fleet) as answers:
        until(lambda: len(answers) > 50)
        # One that runs there when the GPU falls ill is answered.
        fleet.replicas["gpu-02"].hold = 2.0
        until(lambda: fleet.replicas["gpu-02"].running > 0)
        fleet.hosts["gpu-02"].log(79)
        fleet.hosts["gpu-02"].look()
        until(lambda: fleet.out() == ["gpu-02"])
        until(lambda: fleet.replicas["gpu-02"].running == 0)
        served = len(fleet.replicas["gpu-02"].bodies)
        # A second one stays in service: vllm_max_unavailable is 1.
        fleet.hosts["gpu-01"].log(119)
        fleet.hosts["gpu-01"].look()
        until(lambda: any(entry["state"] == "wanted" for entry in fleet.look()["gpu_watch"]["replicas"].values()))
        seen = fleet.look()
        assert fleet.out() == ["gpu-02"] and len(fleet.replicas["gpu-02"].bodies) == served
        assert seen["reasons"] == {"gpu-02": "sick GPUs: GPU 1: xid-79"} and seen["turns_over"] == []
        (line,) = watch_lines({"lb": seen})
        assert line.startswith(
            "gpu-01:vllm-0 has a sick GPU (GPU 1: xid-119) and lb did not take it out: gpu-01 was not"
        )
        # Repaired, it comes back, and makes room for the other.
        fleet.hosts["gpu-02"].look("", "--repaired")
        until(lambda: fleet.out() == ["gpu-01"])
        until(lambda: len(fleet.replicas["gpu-02"].bodies) > served)
    assert set(answers) == {200}


@needs_haproxy
def test_what_a_person_does_counts(fleet: Fleet) -> None:
    """One that was put back stays until something else is found; one that was drained is not put back."""
    fleet.watch()
    fleet.hosts["gpu-02"].log(79)
    fleet.hosts["gpu-02"].look()
    until(lambda: fleet.out() == ["gpu-02"])
    fleet.set("gpu-02", "ready")
    until(lambda: fleet.look()["gpu_watch"]["replicas"]["gpu-02:vllm-0"]["state"] == "accepted")
    assert fleet.out() == []
    fleet.hosts["gpu-02"].log(95, 20.0)
    fleet.hosts["gpu-02"].look()
    until(lambda: fleet.out() == ["gpu-02"])
    fleet.set("gpu-02", "drain", reason="new card")
    fleet.hosts["gpu-02"].look("", "--repaired")
    until(lambda: not fleet.look()["gpu_watch"]["replicas"])
    assert fleet.out() == ["gpu-02"] and fleet.look()["reasons"] == {"gpu-02": "new card"}


@needs_haproxy
def test_a_host_that_only_tells_and_one_that_tells_nothing_stay(fleet: Fleet) -> None:
    """The last server of a model stays, too, and what is old counts for nothing."""
    fleet.watch(max_unavailable="3")
    told = Path(fleet.replicas["gpu-01"].control) / "gpu-health.json"
    now = round(time.time())
    told.write_text(json.dumps({"at": now, "action": "none", "sick": ["GPU 0: missing"], "unread": 0}))
    fleet.replicas["gpu-02"].control = ""
    third = Path(fleet.replicas["gpu-03"].control) / "gpu-health.json"
    third.write_text(json.dumps({"at": now - 1000, "action": "drain", "sick": ["GPU 0: missing"], "unread": 0}))
    until(lambda: fleet.look()["gpu_watch"].get("silent") == ["gpu-02:vllm-0", "gpu-03:vllm-0"])
    assert fleet.out() == []
    for name, host in fleet.hosts.items():
        fleet.replicas[name].control = str(host.etc / "control/vllm-0")
        host.log(79)
        host.look()
    until(lambda: len(fleet.out()) == 2)
    until(lambda: "no replica" in str(fleet.look()["gpu_watch"]))
    assert len(fleet.out()) == 2


@needs_haproxy
def test_a_watch_that_was_killed_goes_on_with_what_it_took_out(fleet: Fleet) -> None:
    fleet.watch()
    fleet.hosts["gpu-03"].log(79)
    fleet.hosts["gpu-03"].look()
    until(lambda: fleet.out() == ["gpu-03"])
    # Other settings make it another one, which knows by the marks alone.
    (Path(fleet.places["state_dir"]) / "gpu-watch.json").unlink()
    fleet.watch(max_unavailable="2")
    fleet.hosts["gpu-03"].look("", "--repaired")
    until(lambda: fleet.out() == [])
    assert fleet.look()["reasons"] == {}
