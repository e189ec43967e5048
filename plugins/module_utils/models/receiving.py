# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host takes the files of a model from other hosts that give them away (sending.py), several at once.

Each file comes whole from one host, different files from different hosts, in another order on every host: so the hosts
that fetch soon have files for each other. What came is kept only if it is what the hub knows by its hash.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import start_program
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import hub_folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.sending import (
    CIPHERS,
    CLIENT_KEY,
    MODULE,
    known_hosts,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.shared_files import (
    SharedFile,
    SharedModel,
    is_right,
    missing_of,
)

# Ends the name of what is not whole yet; such a file is given to no other host.
BEGUN = ".fleet.incomplete"
# Seconds without a byte after which rsync gives a connection up, to connect, and between two looks at a host's files.
STANDSTILL_S, CONNECT_S, LOOK_S, PAUSE_S = 30, 20, 5.0, 0.5
# Seconds without any host that answers before the hub is asked instead, and how long a failed one is left alone.
PATIENCE_S, REST_S = 60.0, 5.0
# A host that fails so often in a row, and for so many seconds, is not asked again.
MOST_FAILURES, LOST_S = 4, 30.0
FULL = ("No space left on device", "Disk quota exceeded")
BUSY = "max connections"
LONGEST_TEXT = 300


@dataclass
class Source:
    """A host that gives files away.

    Attributes:
        host: its name in the inventory.
        address: where it is reached.
        port: of its sshd.
        host_key: its public key.
        whole: whether it has all that is wanted; else it is asked what it has.
        has: names of the contents that it has.
        looked: when it was asked, by time.monotonic.
        failures: in a row.
        fails_since: when the first of them was.
        rests: until when it is left alone.
        said: its last failure.
        wrong: contents that were not what the hub knows by the name.
    """

    host: str
    address: str
    port: int
    host_key: str
    whole: bool
    has: set[str] = field(default_factory=set)
    looked: float = float("-inf")
    failures: int = 0
    fails_since: float = 0.0
    rests: float = 0.0
    said: str = ""
    wrong: set[str] = field(default_factory=set)

    @property
    def lost(self) -> bool:
        """Whether it has failed so often, and for so long, that it is not asked again."""
        return self.failures >= MOST_FAILURES and time.monotonic() - self.fails_since > LOST_S

    def gives(self, entry: SharedFile) -> bool:
        """Return whether it is known to have a file, and has not given a wrong one for it."""
        return entry.blob not in self.wrong and (self.whole or entry.blob in self.has)


class DiskFullError(Exception):
    """The receiving disk has no room; the text is rsync's."""


class Receiver:
    """Takes the missing files of one model.

    Args:
        model: what is wanted.
        sources: hosts that may have it.
        cache: the Hugging Face cache to write to.
        folder: with this host's key for the run.
        connections: files that are fetched at once.
    """

    def __init__(
        self, model: SharedModel, sources: Sequence[Source], cache: str, folder: str, connections: int
    ) -> None:
        self._model = model
        self._sources = list(sources)
        self._base = hub_folder(cache, model.repository)
        self._folder = folder
        self._connections = connections
        self._lock = threading.Lock()
        self._left = missing_of(model, cache)
        self._under_way: set[str] = set()
        self._parts: dict[str, dict[str, int]] = {}
        self._running: list[subprocess.Popen[str]] = []
        self._full = ""
        self._ends = False
        self._answered = time.monotonic()
        self.came: dict[str, int] = {}

    def run(self, seconds: float, stall_timeout: float, tell: Callable[[], None]) -> list[SharedFile]:
        """Fetch until nothing is missing, or until no host is left that gives it; return what is still missing.

        Args:
            seconds: for all of it.
            stall_timeout: seconds without a file or a byte of one; 0 for no limit.
            tell: called about twice a second.

        Raises:
            DiskFullError: there is no room.
        """
        os.makedirs(os.path.join(self._base, "blobs"), mode=0o755, exist_ok=True)
        self._write_known_hosts()
        random.shuffle(self._left)
        workers = [threading.Thread(target=self._work, daemon=True) for _number in range(self._connections)]
        for worker in workers:
            worker.start()
        seen, moved, deadline = -1, time.monotonic(), time.monotonic() + seconds
        while any(worker.is_alive() for worker in workers):
            time.sleep(PAUSE_S)
            now, there = time.monotonic(), self.bytes_there()
            seen, moved = (there, now) if there != seen else (seen, moved)
            tell()
            if now > deadline or (stall_timeout and now - moved > stall_timeout):
                self._ends = True
                break
        for process in list(self._running):
            process.terminate()
        for worker in workers:
            worker.join(CONNECT_S)
        if self._full:
            raise DiskFullError(self._full)
        return list(self._left)

    def bytes_there(self) -> int:
        """Return the bytes of the wanted files that there are."""
        total = 0
        for entry in self._model.files:
            for end in ("", BEGUN):
                with contextlib.suppress(OSError):
                    total += min(os.path.getsize(self._path(entry) + end), entry.size)
                    break
        return total

    def files_there(self) -> int:
        """Return how many of the wanted files are there."""
        return len(self._model.files) - len(self._left)

    def failures(self) -> list[str]:
        """Return what went wrong with which host, for people."""
        told = [f"{one.host}: {one.said}" for one in self._sources if one.said]
        return told + [
            f"{one.host}: {name[:12]} is not what the hub has" for one in self._sources for name in one.wrong
        ]

    def remove_begun(self) -> None:
        """Remove what is not whole, where the rest does not come from hosts."""
        for entry in self._left:
            with contextlib.suppress(OSError):
                os.unlink(self._path(entry) + BEGUN)

    def _path(self, entry: SharedFile) -> str:
        return os.path.join(self._base, "blobs", entry.blob)

    def _write_known_hosts(self) -> None:
        known = known_hosts([(one.address, one.port, one.host_key) for one in self._sources])
        write_file(os.path.join(self._folder, "known_hosts"), known, 0o600)

    def _work(self) -> None:
        """Fetch one file after the other."""
        while not self._ends and self._left:
            looked = self._look()
            chosen = self._choose()
            if chosen:
                try:
                    self._take(*chosen)
                finally:
                    with self._lock:
                        self._under_way.discard(chosen[0].blob)
            elif self._nobody_answers():
                return
            elif not looked:
                time.sleep(PAUSE_S)

    def _choose(self) -> tuple[SharedFile, Source] | None:
        """Return a file and a host that has it; what hosts have that have not everything first, to spare the others."""
        with self._lock:
            able = [one for one in self._sources if not one.lost and one.rests <= time.monotonic()]
            for whole in (False, True):
                for entry in self._left:
                    having = [one for one in able if one.whole is whole and one.gives(entry)]
                    if having and entry.blob not in self._under_way:
                        self._under_way.add(entry.blob)
                        return entry, random.choice(having)  # noqa: S311  no secret
        return None

    def _nobody_answers(self) -> bool:
        """Return whether no host can be expected to give what is missing."""
        with self._lock:
            asked = [one for one in self._sources if not one.lost]
            if self._under_way:
                return False
            if all(entry.blob in one.wrong for entry in self._left for one in asked):
                return True
            return time.monotonic() - self._answered > PATIENCE_S

    def _look(self) -> bool:
        """Ask one of the hosts that do not have everything what they have by now; return whether one was asked."""
        now = time.monotonic()
        with self._lock:
            due = [
                one
                for one in self._sources
                if not one.whole and not one.lost and one.rests <= now and now - one.looked > LOOK_S
            ]
            if not due:
                return False
            source = random.choice(due)  # noqa: S311  no secret
            source.looked = now
        done = self._rsync(source, f"--timeout={STANDSTILL_S}", "--list-only", f"{self._remote(source)}/")
        if done.returncode:
            self._failed(source, done)
            return True
        names = {line.split()[-1] for line in done.stdout.splitlines() if line.startswith("-")}
        with self._lock:
            news = names - source.has
            source.has, source.failures, source.said = names, 0, ""
            if news:
                self._answered = time.monotonic()
        return True

    def _take(self, entry: SharedFile, source: Source) -> None:
        """Fetch a file from a host, going on with what is there of it, and keep it if it is right."""
        path = self._path(entry)
        begun = path + BEGUN
        before = size_of(begun)
        parts = self._parts.setdefault(entry.blob, {})
        done = None
        if before < entry.size or not entry.size:
            remote = f"{self._remote(source)}/{entry.blob}"
            done = self._rsync(source, "--append", f"--timeout={STANDSTILL_S}", remote, begun)
        came = max(size_of(begun) - before, 0)
        parts[source.host] = parts.get(source.host, 0) + came
        with self._lock:
            self._answered = time.monotonic() if came else self._answered
        if done is not None and done.returncode:
            self._failed(source, done, entry)
        elif size_of(begun) == entry.size and is_right(begun, entry.blob):
            os.chmod(begun, 0o644)
            os.replace(begun, path)
            self._keep(entry, source)
        else:
            # Where several hosts had a part in it, the next attempt shows whose part is wrong.
            if came == size_of(begun):
                source.wrong.add(entry.blob)
            self._parts.pop(entry.blob)
            with contextlib.suppress(OSError):
                os.unlink(begun)

    def _keep(self, entry: SharedFile, source: Source) -> None:
        """Note that a file is there, and where it came from."""
        with self._lock:
            self._left = [one for one in self._left if one.blob != entry.blob]
            source.failures, source.said, self._answered = 0, "", time.monotonic()
            for host, came in self._parts.pop(entry.blob, {}).items():
                if came:
                    self.came[host] = self.came.get(host, 0) + came

    def _failed(self, source: Source, done: subprocess.CompletedProcess[str], entry: SharedFile | None = None) -> None:
        """Note what a host did not give, and why."""
        said = " ".join((done.stderr or done.stdout).split())
        with self._lock:
            source.rests = time.monotonic() + REST_S * random.random()  # noqa: S311  no secret
            if any(text in said for text in FULL):
                self._full, self._ends = said[-LONGEST_TEXT:], True
            elif BUSY in said:
                self._answered = time.monotonic()
            else:
                source.fails_since = source.fails_since if source.failures else time.monotonic()
                source.failures += 1
                source.said = said[-LONGEST_TEXT:]
                if entry:
                    source.has.discard(entry.blob)

    def _remote(self, source: Source) -> str:
        address = f"[{source.address}]" if ":" in source.address else source.address
        return f"{address}::{MODULE}/{os.path.basename(self._base)}/blobs"

    def _rsync(self, source: Source, *words: str) -> subprocess.CompletedProcess[str]:
        ssh = [
            *(program_path("ssh") or "ssh", "-F", "none", "-p", str(source.port)),
            *("-i", os.path.join(self._folder, CLIENT_KEY)),
            *("-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"),
            *("-o", f"UserKnownHostsFile={self._folder}/known_hosts", "-o", "GlobalKnownHostsFile=none"),
            *("-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={CONNECT_S}", "-o", f"Ciphers={CIPHERS}"),
            *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-o", "LogLevel=ERROR", "-T"),
        ]
        command = [program_path("rsync") or "rsync", f"--rsh={shlex.join(ssh)}", *words]
        process: subprocess.Popen[str] = start_program(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
        with process:
            self._running.append(process)
            said, complained = process.communicate()
            self._running.remove(process)
        return subprocess.CompletedProcess(command, process.returncode, said, complained)


def size_of(path: str) -> int:
    """Return a file's size in bytes; 0 where it is not there."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
