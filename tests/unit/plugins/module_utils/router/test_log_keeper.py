# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the program that writes the router's log, as a process that is sent lines."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import log_keeper


class World:
    """A keeper in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "requests" / "access.log"
        self.program = folder / "log_keeper.py"
        shutil.copy(log_keeper.__file__, self.program)
        self.process: subprocess.Popen[bytes] | None = None
        self.sent = 0

    def want(self, **changes: Any) -> None:
        """Write the settings."""
        wanted: dict[str, Any] = {"socket": str(self.folder / "s"), "owner": getpass.getuser(), "file": str(self.log)}
        wanted.update(max_bytes=10**6, files=100, days=30)
        new = self.folder / "new"
        new.write_text(json.dumps({**wanted, **changes}), encoding="utf-8")
        new.replace(self.folder / "settings")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the program and wait until it listens."""
        self.process = subprocess.Popen([sys.executable, self.program, self.folder / "settings"])
        wait_for((self.folder / "s").exists)
        return self.process

    def send(self, number: int, path: str = "s", second: float | None = None) -> None:
        """Send lines, each with a number of its own, as HAProxy does; one that finds no place is tried again."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for _number in range(number):
                line = json.dumps({"time": second or time.time(), "number": self.sent})
                sender.sendto(line.encode(), str(self.folder / path))
                self.sent += 1

    def files(self) -> list[Path]:
        """Return the files of the log, the oldest first."""
        return [*map(Path, log_keeper.rotated(str(self.log))), self.log]

    def numbers(self) -> list[int]:
        """Return the numbers of the lines that were written, in their order."""
        lines = b"".join(path.read_bytes() for path in self.files() if path.exists()).splitlines()
        return [json.loads(line)["number"] for line in lines]


def wait_for(done: Callable[[], bool]) -> None:
    """Wait ten seconds at most."""
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A keeper that is ended after the test."""
    found = World(tmp_path)
    found.want()
    yield found
    if found.process:
        found.process.terminate()
        found.process.wait(10)


def test_every_line_is_written_in_its_order_and_only_root_reads_them(world: World) -> None:
    world.start()
    world.send(3000)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"Proxy api stopped (cumulated conns: FE: 4, BE: 0).", str(world.folder / "s"))
    wait_for(lambda: len(world.numbers()) == 3000)
    assert world.numbers() == list(range(3000))
    assert world.log.stat().st_mode & 0o777 == 0o640
    assert world.log.parent.stat().st_mode & 0o777 == 0o750
    assert (world.folder / "s").stat().st_mode & 0o777 == 0o600


def test_it_is_rotated_by_size_while_lines_come_and_none_is_lost(world: World) -> None:
    world.want(max_bytes=20000)
    world.start()
    until = time.monotonic() + 3.5
    while time.monotonic() < until:
        world.send(200)
        time.sleep(0.05)
    wait_for(lambda: len(world.numbers()) == world.sent)
    assert world.numbers() == list(range(world.sent))
    assert len(world.files()) >= 3
    assert all(path.stat().st_mode & 0o777 == 0o640 for path in world.files())


def test_a_log_of_yesterday_is_rotated_and_what_is_too_old_or_too_much_is_deleted(world: World) -> None:
    world.log.parent.mkdir()
    for days in (40, 4, 3, 2):
        old = world.log.with_name(
            f"access.log.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(time.time() - days * 86400))}-000"
        )
        old.write_text("{}\n", encoding="utf-8")
        os.utime(old, (time.time() - days * 86400,) * 2)
    yesterday = json.dumps({"time": time.time() - 86400, "number": 5}) + "\n"
    world.log.write_text(yesterday, encoding="utf-8")
    world.start()
    wait_for(lambda: len(world.files()) == 5)
    assert [path.read_text(encoding="utf-8") for path in world.files()] == ["{}\n"] * 3 + [yesterday, ""]
    world.want(files=2)
    world.send(1, second=time.time() - 86400)
    wait_for(lambda: len(world.files()) == 3)
    assert world.files()[0].read_text(encoding="utf-8") == yesterday


def test_it_follows_its_settings_and_another_program_without_losing_a_line(world: World) -> None:
    process = world.start()
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            world.send(50)
            time.sleep(0.01)

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(0.5)
    world.want(max_bytes=30000)
    wait_for(lambda: len(world.files()) > 1)
    # A new version is a new file; the process stays the same.
    world.program.write_text(world.program.read_text(encoding="utf-8") + "# another version\n", encoding="utf-8")
    time.sleep(2.5)
    stop.set()
    sender.join()
    wait_for(lambda: len(world.numbers()) == world.sent)
    assert world.numbers() == list(range(world.sent))
    assert process.poll() is None
    world.want(socket=str(world.folder / "other"))
    wait_for((world.folder / "other").exists)
    world.send(5, "other")
    wait_for(lambda: len(world.numbers()) == world.sent)


def test_a_file_that_another_program_moved_is_made_anew(world: World) -> None:
    world.start()
    world.send(5)
    wait_for(lambda: len(world.numbers()) == 5)
    world.log.rename(world.log.with_name("access.log.1"))
    wait_for(world.log.exists)
    world.send(5)
    wait_for(lambda: len(world.numbers()) == 10)


def test_it_ends_after_what_it_got_and_by_itself_when_there_is_to_be_no_log(world: World) -> None:
    process = world.start()
    second = subprocess.run([sys.executable, world.program, world.folder / "settings"], check=False, timeout=10)
    assert (second.returncode, process.poll()) == (0, None), "two would write one file"
    world.send(300)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert world.numbers() == list(range(300))
    process = world.start()
    wait_for(lambda: process.poll() is None)
    time.sleep(0.5)
    (world.folder / "settings").write_text("", encoding="utf-8")
    assert process.wait(10) == 0
    assert not (world.folder / "s").exists()


def test_a_full_disk_costs_lines_and_not_the_program(world: World) -> None:
    world.want(file="/dev/full")
    keeper = log_keeper.Keeper(str(world.folder / "settings"))
    keeper._file = os.open("/dev/full", os.O_WRONLY)
    keeper._write(b'{"number": 1}')
    os.close(keeper._file)
