# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replicas were drained by whom, in a file for each host that outlives a reboot of the router's host.

Whoever drains a replica is marked here and forgotten when it is put back: a run that does so for a while, by its kind
and before it does so, and a person with the reason. So a drain that an interrupted run has left can be told from one
that a person made, and is put back by the next run.

A host that was put back keeps a mark without replicas, with the time: of several routers one may have been down, and
the newest mark of a host is what all of them are to have.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text

FOLDER = "drained"
# The owner of what stays out until a person takes it back.
PERSON = "person"
# Of what the router's watch has taken out for sick GPUs, and takes back once they are well.
GPU_HEALTH = "gpu-health"
MODE = 0o644


class Mark(NamedTuple):
    """Who has drained a host.

    Attributes:
        owner: the kind of run, or PERSON.
        replicas: which ones, by their names in HAProxy.
        reason: of a person.
        run: what tells the run from others, so that one that is over can be told; empty once the host's turn is over.
        at: when, in seconds since the epoch by the clock of the router's host; 0 if that is not known.
    """

    owner: str
    replicas: set[str]
    reason: str
    run: str
    at: float = 0.0

    def says_the_same(self, other: Mark) -> bool:
        """Return whether another mark differs in its time alone."""
        return self._replace(at=0.0) == other._replace(at=0.0)

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**self._asdict(), "replicas": sorted(self.replicas)}


NOTHING = Mark("", set(), "", "")


def mark_in(data: Mapping[str, Any]) -> Mark:
    """Return the mark in plain data; NOTHING if there is none."""
    try:
        replicas = {str(name) for name in data["replicas"]}
        words = (str(data.get("reason", "")), str(data.get("run", "")))
        return Mark(str(data["owner"]), replicas, *words, float(data.get("at", 0)))
    except (ValueError, TypeError, LookupError, AttributeError):
        return NOTHING


class DrainMarks:
    """The marks of one router.

    Args:
        state_dir: folder of what it keeps over a reboot.
    """

    def __init__(self, state_dir: str) -> None:
        self._folder = os.path.join(state_dir, FOLDER)

    def of(self, host: str, owner: str) -> list[str]:
        """Return the replicas of a host, by their names in HAProxy, that the owner has drained; none if unknown."""
        mark = self.read(host)
        return sorted(mark.replicas) if mark.owner == owner else []

    def reason(self, host: str) -> str:
        """Return why a person has drained the host, or its GPUs have; empty if neither has, or did not say."""
        return self.read(host).reason

    def is_over(self, host: str) -> bool:
        """Return whether the turn of a host is over, though the run has left it out."""
        mark = self.read(host)
        return mark.owner not in ("", PERSON, GPU_HEALTH) and not mark.run

    def in_turn(self) -> dict[str, str]:
        """Return the hosts that a run has taken out for a turn, each with what tells that run."""
        return {name: mark.run for name, mark in self.everyone().items() if mark.run and mark.owner != PERSON}

    def keep(self, host: str, owner: str, replicas: Iterable[str], *, reason: str = "", run: str = "") -> None:
        """Note that the owner drains these replicas, too.

        Raises:
            GpufleetError: C(write-failed).
        """
        names = {*self.of(host, owner), *replicas}
        if names:
            self.write(host, Mark(owner, names, reason, run, time.time()))

    def forget(self, host: str, replicas: Iterable[str] | None = None) -> None:
        """Forget who has drained these replicas of the host; all of them when none are named.

        Raises:
            GpufleetError: C(write-failed).
        """
        mark = self.read(host)
        left = set(mark.replicas) - set(replicas) if replicas is not None else set()
        self.write(host, (mark._replace(replicas=left) if left else NOTHING)._replace(at=time.time()))

    def everyone(self) -> dict[str, Mark]:
        """Return the marks of all hosts, also of those that were put back."""
        names = [name.removesuffix(".json") for name in list_folder(self._folder) if name.endswith(".json")]
        return {name: self.read(name) for name in names}

    def read(self, host: str) -> Mark:
        """Return a host's mark; an empty one if there is none."""
        try:
            return mark_in(json.loads(read_text(self._path(host))))
        except ValueError:
            return NOTHING

    def write(self, host: str, mark: Mark) -> None:
        """Write down a host's mark.

        Raises:
            GpufleetError: C(write-failed).
        """
        write_file(self._path(host), json.dumps(mark.as_data()) + "\n", MODE)

    def _path(self, host: str) -> str:
        # No name in HAProxy has a slash.
        return os.path.join(self._folder, f"{host.replace('/', '_')}.json")
