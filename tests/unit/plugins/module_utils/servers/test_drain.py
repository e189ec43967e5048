# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Letting servers finish their requests, with a clock and a server of our own."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.drain import Drain, ServerLoad, drain_all, load_of


class Server:
    """A server of which one request ends every two seconds; with a door, no new ones come in."""

    def __init__(self, running: int, *, door: bool, endless: bool = False) -> None:
        self.now = 0.0
        self.door = door
        self._running = running
        self._endless = endless
        self._asked = 0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, _url: str) -> ServerLoad | None:
        self._asked += 1
        done = 0 if self._endless else int(self.now / 2)
        return ServerLoad(max(0, self._running - done), 3 + self._asked if self.door else None)

    def drain(self, folder: Path, timeout: float) -> tuple[Drain, Control]:
        control = Control(str(folder))
        drain = Drain("vllm-0", "http://x", control, timeout, clock=self.clock, ask=self.ask)
        drain_all([drain], timeout, Progress(None), sleep=self.sleep)
        return drain, control


def test_running_requests_finish_behind_a_closed_door(tmp_path: Path) -> None:
    drain, control = Server(3, door=True).drain(tmp_path, 60)
    result = drain.as_result()
    assert 6.0 <= result.pop("waited_s") <= 6.5
    refused = result.pop("refused")
    assert refused > 0
    assert result == {"running_at_start": 3, "finished": 3, "aborted": 0, "turned_away": True, "answered": True}
    # The door stays closed until the server was stopped.
    assert control.closed()


def test_what_runs_after_the_timeout_is_counted_as_aborted(tmp_path: Path) -> None:
    drain, _control = Server(5, door=True).drain(tmp_path, 4)
    result = drain.as_result()
    assert (result["finished"], result["aborted"], drain.running) == (2, 3, 3)
    assert 4.0 <= result["waited_s"] <= 4.5


def test_a_server_without_a_door_is_waited_for_until_it_is_quiet(tmp_path: Path) -> None:
    drain, control = Server(2, door=False).drain(tmp_path, 60)
    assert drain.as_result()["turned_away"] is False
    assert (drain.as_result()["aborted"], control.closed()) == (0, False)
    busy, _control = Server(2, door=False, endless=True).drain(tmp_path, 3)
    assert busy.as_result()["aborted"] == 2


def test_a_server_that_never_answers_is_given_up_soon(tmp_path: Path) -> None:
    control = Control(str(tmp_path))
    drain = Drain("vllm-0", "http://127.0.0.1:1", control, 60, ask=load_of)
    drain_all([drain], 60, Progress(None), sleep=lambda seconds: None)
    result = drain.as_result()
    assert (result["answered"], result["turned_away"], result["running_at_start"]) == (False, False, 0)


def test_a_loaded_server_that_answers_late_is_drained_all_the_same(tmp_path: Path) -> None:
    """Its door was closed meanwhile, so that what it then has in hand is all that comes."""
    server = Server(3, door=True)
    silences = 2

    def ask(url: str) -> ServerLoad | None:
        nonlocal silences
        silences -= 1
        return None if silences >= 0 else server.ask(url)

    control = Control(str(tmp_path))
    drain = Drain("vllm-0", "http://x", control, 60, clock=server.clock, ask=ask)
    assert control.closed()
    drain_all([drain], 60, Progress(None), sleep=server.sleep)
    result = drain.as_result()
    assert result["waited_s"] >= 6.0
    assert (result["answered"], result["turned_away"], result["finished"], result["aborted"]) == (True, True, 3, 0)


def test_no_timeout_means_no_wait(tmp_path: Path) -> None:
    drain, _control = Server(2, door=True, endless=True).drain(tmp_path, 0)
    assert (drain.as_result()["waited_s"], drain.as_result()["aborted"]) == (0.0, 2)
