# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of router_drains; two routers are two HAProxy of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import drain_exchange
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks, Mark
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.shared_address import shared_state
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_drains, router_server
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import needs_haproxy

ONE, TWO = "gpu-01:vllm-0", "gpu-02:vllm-0"


def test_the_newest_mark_of_each_host_counts_whoever_has_it() -> None:
    old, new = Mark("person", {ONE}, "a fan", "", 10.0), Mark("", set(), "", "", 20.0)
    of_all = [
        {"gpu-01": old.as_data(), "gpu-02": new.as_data()},
        {"gpu-01": new.as_data(), "gpu-02": old.as_data()},
        {},
    ]
    assert drain_exchange.newest(of_all) == {"gpu-01": new, "gpu-02": new}
    assert drain_exchange.newest([{"gpu-03": {"replicas": 5}}]) == {}


def test_what_says_the_same_was_not_missed() -> None:
    own = Mark("person", {ONE}, "a fan", "", 10.0)
    assert drain_exchange.missed({"gpu-01": own}, {"gpu-01": own._replace(at=11.0)}) == {}
    other = own._replace(reason="another", at=11.0)
    assert drain_exchange.missed({"gpu-01": own}, {"gpu-01": other}) == {"gpu-01": other}
    assert drain_exchange.missed({"gpu-01": other}, {"gpu-01": own}) == {}


class Routers:
    """Two routers of one fleet, on this machine."""

    def __init__(self, folder: Path, run_module: RunModule) -> None:
        self._run_module = run_module
        self._folder = folder
        self._ports = [free_port(), free_port()]

    def where(self, number: int) -> dict[str, str]:
        """Return the folders of a router as a module's options."""
        return {name: str(self._folder / f"{name}-{number}") for name in ("run_dir", "state_dir")}

    def start(self, number: int) -> None:
        """Have it run, as the role does."""
        hosts = {host: [{"name": "vllm-0", "address": "127.0.0.1", "port": 9}] for host in ("gpu-01", "gpu-02")}
        given = {
            "hosts": hosts,
            "host": "127.0.0.1",
            "port": self._ports[number],
            "tls": False,
            "user": "daemon",
            "directory": str(self._folder / f"etc-{number}"),
            "log_file": str(self._folder / f"log-{number}"),
        }
        result = self._run_module(router_server.main, {**given, **self.where(number)})
        assert result.get("msg") is None

    def service(self, number: int) -> RouterService:
        """Return its service."""
        where = self.where(number)
        folders = (str(self._folder / f"etc-{number}"), where["run_dir"], where["state_dir"])
        return RouterService(*folders, str(self._folder / f"log-{number}"))

    def stop(self, number: int) -> None:
        """End HAProxy."""
        self.service(number)._stop()

    def drain(self, host: str, state: str, *numbers: int) -> None:
        """Set a host's state at some of them."""
        for number in numbers:
            asked = {"host": host, "state": state, "timeout": 0, "reason": "a fan"}
            assert self._run_module(router_backend.main, {**asked, **self.where(number)}).get("msg") is None

    def agree(self) -> list[bool]:
        """Have both learn from each other as the role does; return at which of them that changed something."""
        marks = [self._run_module(router_drains.main, self.where(number))["marks"] for number in (0, 1)]
        given = {"others": marks, "in_step": True}
        told = [self._run_module(router_drains.main, {**given, **self.where(n)}, check=True)["changed"] for n in (0, 1)]
        done = [self._run_module(router_drains.main, {**given, **self.where(n)}, diff=True)["changed"] for n in (0, 1)]
        assert told == done
        return done

    def states(self, number: int) -> dict[str, str]:
        """Return the states of the servers in HAProxy."""
        where = self.where(number)
        servers = Master(f"{where['run_dir']}/master.sock", where["state_dir"]).servers()
        return {name: server.state for name, server in servers.items()}


@pytest.fixture
def routers(tmp_path: Path, run_module: RunModule) -> Iterator[Routers]:
    found = Routers(tmp_path, run_module)
    yield found
    for number in (0, 1):
        found.service(number).remove()


@needs_haproxy
def test_a_router_that_was_down_learns_what_was_drained_and_put_back_meanwhile(routers: Routers) -> None:
    for number in (0, 1):
        routers.start(number)
    assert routers.agree() == [True, True]  # in step for the first time
    assert routers.agree() == [False, False]
    routers.drain("gpu-01", "drain", 0, 1)
    routers.stop(1)
    routers.drain("gpu-01", "ready", 0)
    routers.drain("gpu-02", "drain", 0)
    routers.start(1)
    assert routers.states(1) == {ONE: "drain", TWO: "ready"}
    assert routers.agree() == [False, True]
    assert routers.states(0) == routers.states(1) == {ONE: "ready", TWO: "drain"}
    assert DrainMarks(routers.where(1)["state_dir"]).reason("gpu-02") == "a fan"
    assert routers.agree() == [False, False]


@needs_haproxy
def test_a_router_is_in_step_until_haproxy_starts_anew(routers: Routers, tmp_path: Path) -> None:
    routers.start(0)
    routers.start(1)
    (tmp_path / "etc-0" / "keepalived.conf").write_text("virtual_ipaddress {\n  127.0.0.99/24 dev lo\n}\n")

    def in_step() -> bool:
        return bool(shared_state(str(tmp_path / "etc-0"), routers.where(0)["run_dir"])["in_step"])

    assert not in_step()
    routers.agree()
    assert in_step()
    routers.start(0)
    assert in_step()
    routers.stop(0)
    routers.start(0)
    assert not in_step()
    assert shared_state(str(tmp_path), str(tmp_path)) == {}
