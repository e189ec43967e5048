# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program on the router's host: writes the lines that HAProxy sends to its socket into a file, and rotates the file.

HAProxy has no way to write a file of its own. What it writes to its standard output it leaves out where two threads
write at the same time. By a socket none is left out as long as this program has processor time.

The settings are a file of JSON, its one argument: C(socket) and C(owner), who may send to it; C(file); C(max_bytes),
C(files) and C(days), by which the file is rotated and rotated ones are deleted. They are read again when they change;
the program ends when they are gone or empty, and becomes its new version when its own file changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import signal
import socket
import sys
import time
from typing import Any

LINE_BYTES = 65536
BUFFER_BYTES = 8 * 1024 * 1024
LOOK_S = 1.0
FILE_MODE, FOLDER_MODE, SOCKET_MODE = 0o640, 0o750, 0o600
DAY_S = 86400
# How many lines may wait; Linux takes it from here when the socket is made. Only root may change it, and systemd has
# made it as large already.
QUEUE = ("/proc/sys/net/unix/max_dgram_qlen", 512)


class Keeper:
    """Keeps one log; C(settings) is the path of its settings, C(listening) the socket of the version before."""

    def __init__(self, settings: str, listening: int = -1) -> None:
        self._path = settings
        self._read_at = 0
        self._program_at = os.stat(__file__).st_mtime_ns
        self.settings: dict[str, Any] = {}
        self._socket = socket.socket(fileno=listening) if listening >= 0 else None
        self._file = -1
        self._stopping = False

    def stop(self, *_signal: object) -> None:
        """End after the lines that wait."""
        self._stopping = True

    def run(self) -> None:
        """Write lines until the program is told to end, or its settings are gone."""
        try:
            self._keep()
        finally:
            if self.settings:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.settings["socket"])

    def _keep(self) -> None:
        self._look()
        looked = time.monotonic()
        while True:
            line = self._receive()
            if line is not None:
                self._write(line)
            elif self._stopping:
                return
            if time.monotonic() - looked >= LOOK_S:
                self._look()
                looked = time.monotonic()

    def _receive(self) -> bytes | None:
        """Return a line; none when there is none for a while, or nothing to wait for any more."""
        if self._socket is None:
            return None
        self._socket.settimeout(0.01 if self._stopping else LOOK_S)
        try:
            return self._socket.recv(LINE_BYTES)
        except socket.timeout:
            return None

    def _write(self, line: bytes) -> None:
        """Write a line of ours, not what HAProxy says of itself. Where the disk is full it is lost."""
        if line.startswith(b"{"):
            with contextlib.suppress(OSError):
                os.write(self._file, line.rstrip(b"\r\n\x00") + b"\n")

    # The settings

    def _look(self) -> None:
        """Follow changed settings and another version of the program, and rotate."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(__file__).st_mtime_ns != self._program_at and os.stat(__file__).st_size:
                self._become_new()
        try:
            changed = os.stat(self._path).st_mtime_ns
            if changed != self._read_at:
                with open(self._path, encoding="utf-8") as stream:
                    self._follow(json.load(stream))
                self._read_at = changed
        except (FileNotFoundError, ValueError):
            self.stop()
            return
        if not self._is_there():
            self._open()
        if self._is_due():
            self._rotate()

    def _follow(self, wanted: dict[str, Any]) -> None:
        before, self.settings = self.settings, wanted
        others = any(before.get(name, wanted[name]) != wanted[name] for name in ("socket", "owner"))
        if others or self._socket is None:
            self._listen()
        if before.get("file") != wanted["file"]:
            self._open()

    def _become_new(self) -> None:
        """Run the program anew, with the socket and the lines that wait there."""
        given = []
        if self._socket is not None:
            self._socket.set_inheritable(True)
            given = [str(self._socket.fileno())]
        os.execv(sys.executable, [sys.executable, __file__, self._path, *given])  # noqa: S606  there is no shell

    def _listen(self) -> None:
        """Listen at the socket; its name changes over in one step, so that no line finds none."""
        allow_queue(*QUEUE)
        path = self.settings["socket"]
        new = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = path + "~"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        old_mask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            new.bind(temporary)
        finally:
            os.umask(old_mask)
        if os.geteuid() == 0:
            owner = pwd.getpwnam(self.settings["owner"])
            os.chown(temporary, owner.pw_uid, owner.pw_gid)
        os.replace(temporary, path)
        old, self._socket = self._socket, new
        if old is not None:
            self._drain(old)

    def _drain(self, old: socket.socket) -> None:
        """Write what still waits at a socket that has lost its name."""
        old.setblocking(False)
        with contextlib.closing(old), contextlib.suppress(BlockingIOError):
            while True:
                self._write(old.recv(LINE_BYTES))

    # The file

    def _open(self) -> None:
        path = self.settings["file"]
        os.makedirs(os.path.dirname(path), mode=FOLDER_MODE, exist_ok=True)
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, FILE_MODE)
        os.fchmod(self._file, FILE_MODE)

    def _is_there(self) -> bool:
        """Return whether the file is still the one that is written."""
        try:
            return os.path.samestat(os.stat(self.settings["file"]), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _is_due(self) -> bool:
        """Return whether the file is too large, or from another day (UTC)."""
        size = os.fstat(self._file).st_size
        if not size:
            return False
        return size >= self.settings["max_bytes"] or _day(first_time(self.settings["file"])) != _day(time.time())

    def _rotate(self) -> None:
        path = self.settings["file"]
        os.rename(path, free_name(path, time.time()))
        self._open()
        oldest = time.time() - self.settings["days"] * DAY_S
        for place, name in enumerate(reversed(rotated(path))):
            if place >= self.settings["files"] or os.stat(name).st_mtime < oldest:
                os.unlink(name)


def allow_queue(path: str, lines: int) -> None:
    """Raise to this the number of lines that may wait in sockets made from now on, where that may be changed."""
    try:
        with open(path, encoding="ascii") as stream:
            if int(stream.read()) >= lines:
                return
        with open(path, "w", encoding="ascii") as stream:
            stream.write(str(lines))
    except OSError:
        return


def rotated(path: str) -> list[str]:
    """Return the rotated files of a log, the oldest first."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [os.path.join(folder, other) for other in sorted(names) if other.startswith(f"{name}.")]


def free_name(path: str, now: float) -> str:
    """Return where a log is moved to; the names' order is that of time."""
    number = 0
    while True:
        name = f"{path}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{number:03}"
        if not os.path.exists(name):
            return name
        number += 1


def first_time(path: str) -> float:
    """Return when the first line of a log was written; now for one that does not say."""
    try:
        with open(path, "rb") as stream:
            return float(json.loads(stream.readline(LINE_BYTES))["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return time.time()


def _day(second: float) -> int:
    return int(second // DAY_S)


def main() -> None:
    """Keep the log until told to end; a second program with the same settings ends at once."""
    settings = sys.argv[1]
    lock = os.open(settings + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    keeper = Keeper(settings, *map(int, sys.argv[2:3]))
    signal.signal(signal.SIGTERM, keeper.stop)
    keeper.run()


if __name__ == "__main__":
    main()
