# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what HAProxy's master is asked, with the answers of a real HAProxy 2.6."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import haproxy
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import BackendServer, Processes
from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import busy

ANSWERS = Path(__file__).resolve().parents[3] / "data" / "haproxy"
# As HAProxy's management guide shows it, after two reloads; 2.4 has a column more.
PROCESSES = """\
#<PID>          <type>          <relative PID>  <reloads>       <uptime>        <version>
1162            master          0               5               0d00h02m07s     2.4.30
# workers
1271            worker          1               0               0d00h00m00s     2.4.30
# old workers
1233            worker          [was: 1]        3               0d00h00m43s     2.4.30
1240            worker          [was: 1]        1               0d00h00m12s     2.4.30
# programs
"""


def recorded(name: str) -> str:
    """Return a recorded answer."""
    return (ANSWERS / f"{name}.txt").read_text(encoding="utf-8")


def test_old_workers_are_told_from_the_current_one() -> None:
    assert haproxy.parse_processes(PROCESSES) == Processes(1162, (1271,), (1233, 1240))
    found = haproxy.parse_processes(recorded("show-proc"))
    assert (len(found.current), found.old) == (1, ())
    assert found.master > 0
    assert haproxy.parse_processes("") == Processes(0, (), ())


def test_what_an_administrator_set_is_told_whatever_the_health_is() -> None:
    found = haproxy.parse_servers(recorded("show-servers-state"), recorded("show-stat"))
    assert found == {
        "cpu-1:cpu-1-0": BackendServer("cpu-1:cpu-1-0", "ready", False, "DOWN", 0),
        "cpu-2:cpu-2-0": BackendServer("cpu-2:cpu-2-0", "drain", False, "DOWN", 0),
        "cpu-3:cpu-3-0": BackendServer("cpu-3:cpu-3-0", "maint", False, "MAINT", 0),
    }
    assert haproxy.parse_servers("", "") == {}


def test_a_server_gets_requests_when_it_is_up_and_ready() -> None:
    assert BackendServer("a", "ready", True, "UP", 3).usable()
    assert not BackendServer("a", "drain", True, "DRAIN", 3).usable()
    assert not BackendServer("a", "ready", False, "DOWN", 0).usable()


def test_no_socket_is_a_router_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(GpufleetError) as caught:
        haproxy.Master(str(tmp_path / "master.sock"), str(tmp_path)).processes()
    assert caught.value.name == "router-not-running"


def test_a_socket_that_nobody_listens_at_any_more_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy, "RENEWAL_S", 0.3)
    path = str(tmp_path / "master.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    with pytest.raises(GpufleetError) as caught:
        haproxy.Master(path, str(tmp_path)).processes()
    assert caught.value.name == "router-not-running"


def test_one_that_is_too_busy_to_answer_is_not_one_that_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haproxy, "PATIENCE_S", 0.5)
    path = str(tmp_path / "master.sock")
    with busy(tmp_path), pytest.raises(GpufleetError) as caught:
        haproxy.Master(path, str(tmp_path)).processes()
    assert caught.value.name == "router-not-answering"
    assert "may well run" in caught.value.message


def test_one_that_takes_connections_and_says_nothing_is_not_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haproxy, "PATIENCE_S", 0.5)
    monkeypatch.setattr(haproxy, "TIMEOUT_S", 0.3)
    path = str(tmp_path / "master.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(10)
        with pytest.raises(GpufleetError) as caught:
            haproxy.Master(path, str(tmp_path)).servers()
    assert caught.value.name == "router-not-answering"


def test_one_that_is_busy_for_longer_than_a_reload_takes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haproxy, "RENEWAL_S", 0.2)
    path = str(tmp_path / "master.sock")
    with busy(tmp_path) as listener:

        def serve() -> None:
            time.sleep(0.6)
            for _turn in range(20):
                with contextlib.suppress(OSError), listener.accept()[0] as connection:
                    connection.settimeout(0.1)  # those that only take a place say nothing
                    if connection.recv(100):
                        connection.sendall(PROCESSES.encode())
                        return

        threading.Thread(target=serve, daemon=True).start()
        assert haproxy.Master(path, str(tmp_path)).processes().master == 1162


def test_what_waiting_does_not_mend_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(GpufleetError) as caught:
        haproxy.Master(str(tmp_path / "file" / "master.sock"), str(tmp_path)).processes()
    assert caught.value.name == "router-not-answering"
    assert "Not a directory" in caught.value.evidence
