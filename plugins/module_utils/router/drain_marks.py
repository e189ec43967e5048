# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replicas were drained by whom, in a file for each host that outlives a reboot of the router's host.

Whoever drains a replica is marked here and forgotten when it is put back: a run that does so for a while, by its kind
and before it does so, and a person with the reason. So a drain that an interrupted run has left can be told from one
that a person made, and is put back by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from typing import NamedTuple

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text

FOLDER = "drained"
# The owner of what stays out until a person takes it back.
PERSON = "person"
MODE = 0o644


class Mark(NamedTuple):
    """Who has drained a host.

    Attributes:
        owner: the kind of run, or PERSON.
        replicas: which ones, by their names in HAProxy.
        reason: of a person.
        run: what tells the run from others, so that one that is over can be told; empty once the host's turn is over.
    """

    owner: str
    replicas: set[str]
    reason: str
    run: str


class DrainMarks:
    """The marks of one router.

    Args:
        state_dir: folder of what it keeps over a reboot.
    """

    def __init__(self, state_dir: str) -> None:
        self._folder = os.path.join(state_dir, FOLDER)

    def of(self, host: str, owner: str) -> list[str]:
        """Return the replicas of a host, by their names in HAProxy, that the owner has drained; none if unknown."""
        mark = self._read(host)
        return sorted(mark.replicas) if mark.owner == owner else []

    def reason(self, host: str) -> str:
        """Return why a person has drained the host; empty if none has, or did not say."""
        return self._read(host).reason

    def is_over(self, host: str) -> bool:
        """Return whether the turn of a host is over, though the run has left it out."""
        mark = self._read(host)
        return mark.owner not in ("", PERSON) and not mark.run

    def in_turn(self) -> dict[str, str]:
        """Return the hosts that a run has taken out for a turn, each with what tells that run."""
        names = [name.removesuffix(".json") for name in list_folder(self._folder) if name.endswith(".json")]
        marks = {name: self._read(name) for name in names}
        return {name: mark.run for name, mark in marks.items() if mark.run and mark.owner != PERSON}

    def keep(self, host: str, owner: str, replicas: Iterable[str], *, reason: str = "", run: str = "") -> None:
        """Note that the owner drains these replicas, too.

        Raises:
            GpufleetError: C(write-failed).
        """
        names = {*self.of(host, owner), *replicas}
        if names:
            self._write(host, Mark(owner, names, reason, run))

    def forget(self, host: str, replicas: Iterable[str] | None = None) -> None:
        """Forget who has drained these replicas of the host; all of them when none are named.

        Raises:
            GpufleetError: C(write-failed).
        """
        mark = self._read(host)
        left = set(mark.replicas) - set(replicas) if replicas is not None else set()
        if left:
            self._write(host, mark._replace(replicas=left))
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(host))
        except OSError as error:
            raise write_failed(self._path(host), error) from error

    def _read(self, host: str) -> Mark:
        """Return a host's mark; an empty one if there is none."""
        try:
            mark = json.loads(read_text(self._path(host)))
            replicas = {str(name) for name in mark["replicas"]}
            return Mark(str(mark["owner"]), replicas, str(mark.get("reason", "")), str(mark.get("run", "")))
        except (ValueError, TypeError, LookupError, AttributeError):
            return Mark("", set(), "", "")

    def _write(self, host: str, mark: Mark) -> None:
        data = {**mark._asdict(), "replicas": sorted(mark.replicas)}
        write_file(self._path(host), json.dumps(data) + "\n", MODE)

    def _path(self, host: str) -> str:
        # No name in HAProxy has a slash.
        return os.path.join(self._folder, f"{host.replace('/', '_')}.json")
