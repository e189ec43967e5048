# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for the markers of tests/fakes/markers.py in all that plays on a fleet of stand-in hosts tell and keep.

Files      of the controller (what was printed, Ansible's log, events, facts, reports, plans): none may hold one. Of the
           hosts and the router: those of PRIVATE alone, and only root may read them. Elsewhere on this machine: none
           that was written meanwhile.
Docker     what it tells of each container from its beginning, but for the environment, which root alone sees; its
           events, so also what is executed in a container; the logs; the image.
Processes  the command lines of all of this machine, twenty times a second.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.tests.bench.bench_deploy import STATE
from ansible_collections.gpufleet.vllm.tests.fakes.markers import (
    SHAPE,
    CommandLines,
    content_of,
    excerpt,
    holders,
    newer_files,
)
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import StandInFleet
from ansible_collections.gpufleet.vllm.tools import test_engine

# The test's own: the inventory, and the copy of the collection with its playbook that shows some.
GIVEN = ("hosts.json", "collections/")
# Files of hosts and the router that may hold secrets, and why.
PRIVATE = {
    r"host-\d+/etc/gpufleet-fleet-\w+-host-\d+-\d\.env": "the environment of a server",
    r"router/replica\.key": "with which HAProxy asks the servers",
}
ELSEWHERE = ("/etc", "/root", "/home", "/tmp", "/var/tmp", "/var/log", "/run", "/dev/shm", "/opt", "/srv")
LEAST_LOOKS = 200


@dataclass(frozen=True)
class Found:
    """A marker where none may be: the place, and what is around it."""

    PROCESSES: ClassVar[str] = "a process list"
    DOCKER: ClassVar[str] = "Docker"
    place: str
    around: str

    def __str__(self) -> str:
        return f"{self.place} has a secret: {self.around}"


class DockerWatch(threading.Thread):
    """Keeps, for the block, what Docker tells of the fleet's containers that holds a marker."""

    def __init__(self, fleet: StandInFleet, docker_host: str) -> None:
        super().__init__(daemon=True)
        self._fleet = fleet
        self._engine = connect(docker_host)
        self._stream = self._engine.events(decode=True, filters={"type": "container"})
        self.found: set[str] = set()
        self.seen: set[str] = set()

    def __enter__(self) -> DockerWatch:
        """Begin to listen."""
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Listen no more."""
        self._stream.close()
        self._engine.close()

    def run(self) -> None:
        """Take each event as it comes."""
        with contextlib.suppress(Exception):  # the stream is closed from outside
            for event in self._stream:
                name = str(event["Actor"]["Attributes"].get("name"))
                if self._fleet.host_of(name):
                    self.look(name, json.dumps(event), event["Action"])

    def look(self, name: str, event: str, action: str) -> None:
        """Keep what is told with an event."""
        from docker.errors import APIError

        told = [event]
        with contextlib.suppress(APIError):  # it is gone already
            if action in ("create", "start", "die"):
                box = self._engine.containers.get(name)
                public = {**box.attrs, "Config": {**box.attrs["Config"], "Env": None}}
                image = self._engine.images.get(box.attrs["Image"])
                told += [json.dumps(public), json.dumps([image.attrs, image.history()])]
                self.seen.add(name)
            if action == "die":
                told.append(box.logs().decode(errors="replace"))
        self.found |= {f"{name}, {action}: {around}" for text in told if (around := excerpt(text))}

    def logs(self) -> None:
        """Look at the logs of those that are there."""
        for box in self._engine.containers.list(all=True, ignore_removed=True):
            if self._fleet.host_of(str(box.name)) and (around := excerpt(box.logs().decode(errors="replace"))):
                self.found.add(f"the log of {box.name}: {around}")


class MarkerSearch:
    """Looks for the markers; C(with MarkerSearch(...) as search:) is the time in which plays run.

    Args:
        fleet: on which they do.
        docker_host: address of the engine.
    """

    def __init__(self, fleet: StandInFleet, docker_host: str) -> None:
        self._fleet = fleet
        self._began = time.time()
        self._lines = CommandLines()
        self._docker = DockerWatch(fleet, docker_host)
        self._told: set[str] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> MarkerSearch:
        """Begin to look."""
        self._stack.enter_context(self._lines)
        self._stack.enter_context(self._docker)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Look no more."""
        self._stack.close()

    def new(self, *, everywhere: bool = False) -> Iterator[Found]:
        """Yield what was not found before.

        Args:
            everywhere: whether to look into files outside the fleet's folder, too.
        """
        self._docker.logs()
        found = [Found(Found.PROCESSES, line) for line in sorted(self._lines.found)]
        found += [Found(Found.DOCKER, told) for told in sorted(self._docker.found)]
        found += [Found(*told.split(" ", 1)) for told in holders(self._fleet.folder, GIVEN, PRIVATE)]
        if everywhere:
            found += self._elsewhere()
        for each in found:
            # A log grows, and holds what it held before.
            key = str(each) if each.place in (Found.PROCESSES, Found.DOCKER) else each.place
            if key not in self._told:
                self._told.add(key)
                yield each

    def _elsewhere(self) -> list[Found]:
        folders = [*(Path(name) for name in ELSEWHERE), STATE]
        files = newer_files(folders, self._began, [self._fleet.folder])
        files += [test_engine.LOG] if test_engine.LOG.exists() else []
        return [Found(str(path), f"mode {path.stat().st_mode & 0o777:04o}") for path in files if holds(path)]

    def too_little(self) -> list[str]:
        """Return what says that the search saw less than there was."""
        folder = self._fleet.folder
        expected = [folder / name for name in ("play.events", "ansible.log", "router.log")]
        expected += [folder / name for name in ("facts", "reports", "plans", "requests")]
        missed = [f"{path.name} is not there" for path in expected if not path.exists()]
        if self._lines.looks < LEAST_LOOKS:
            missed.append(f"only {self._lines.looks} looks at the processes")
        if not any("benchmark" in name for name in self._docker.seen):
            missed.append("no container of a measurement was seen")
        return missed

    def summary(self) -> str:
        """Return how much was looked at."""
        files = sum(1 for path in self._fleet.folder.rglob("*") if path.is_file())
        return f"{self._lines.looks} looks at the processes, {len(self._docker.seen)} containers, {files} files"


def holds(path: Path) -> bool:
    """Return whether a file holds a marker."""
    return bool(SHAPE.search(content_of(path)))
