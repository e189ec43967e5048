# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replicas were drained by whom, in a file for each host beside HAProxy's sockets.

Whoever drains a replica only for a while is marked here before and forgotten when it is put back. So a drain that an
interrupted run has left can be told from one that a person made, and is put back by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text

FOLDER = "drained"
MODE = 0o644


class DrainMarks:
    """The marks of one router.

    Args:
        run_dir: folder of its sockets.
    """

    def __init__(self, run_dir: str) -> None:
        self._folder = os.path.join(run_dir, FOLDER)

    def of(self, host: str, owner: str) -> list[str]:
        """Return the replicas of a host, by their names in HAProxy, that the owner has drained; none if unknown."""
        marked_by, names = self._read(host)
        return names if marked_by == owner else []

    def keep(self, host: str, owner: str, replicas: Iterable[str]) -> None:
        """Note that the owner drains these replicas, too.

        Raises:
            GpufleetError: C(write-failed).
        """
        names = {*self.of(host, owner), *replicas}
        if names:
            self._write(host, owner, names)

    def forget(self, host: str, replicas: Iterable[str] | None = None) -> None:
        """Forget who has drained these replicas of the host; all of them when none are named.

        Raises:
            GpufleetError: C(write-failed).
        """
        owner, names = self._read(host)
        left = sorted(set(names) - set(replicas)) if replicas is not None else []
        if left:
            self._write(host, owner, left)
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(host))
        except OSError as error:
            raise write_failed(self._path(host), error) from error

    def _read(self, host: str) -> tuple[str, list[str]]:
        """Return the owner and the replicas of a host's mark; empty if there is none."""
        try:
            mark = json.loads(read_text(self._path(host)))
            return str(mark["owner"]), [str(name) for name in mark["replicas"]]
        except (ValueError, TypeError, LookupError):
            return "", []

    def _write(self, host: str, owner: str, replicas: Iterable[str]) -> None:
        write_file(self._path(host), json.dumps({"owner": owner, "replicas": sorted(replicas)}) + "\n", MODE)

    def _path(self, host: str) -> str:
        # No name in HAProxy has a slash.
        return os.path.join(self._folder, f"{host.replace('/', '_')}.json")
