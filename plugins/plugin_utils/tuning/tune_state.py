# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sweep has found on one host, in a file on the controller, so that one that was interrupted goes on.

Each candidate is kept by its digest, as soon as it was measured or its server did not start. Whether the host's own
servers were stopped for the sweep is kept, too, so that they are started again by the next run if this one was killed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file

SCHEMA_VERSION = 1


class TuneState:
    """The files of a sweep.

    Args:
        folder: vllm_tune_dir, on the controller.
        host: its name in the inventory.
    """

    def __init__(self, folder: str, host: str) -> None:
        self.folder = Path(folder).expanduser().resolve() / host.replace("/", "_")
        self._path = self.folder / "state.json"

    def stopped(self) -> bool:
        """Return whether the host's own servers were stopped for a sweep, and are to be started again."""
        return bool(self._read().get("stopped"))

    def note_stopped(self, stopped: bool) -> None:
        """Keep whether the host's own servers are stopped for a sweep."""
        self._write({**self._read(), "stopped": stopped})

    def measured(self) -> dict[str, dict[str, Any]]:
        """Return what was found of candidates, by digest."""
        found: dict[str, dict[str, Any]] = self._read().get("candidates") or {}
        return found

    def note(self, digest: str, found: dict[str, Any]) -> None:
        """Keep what was found of a candidate."""
        self._write({**self._read(), "candidates": {**self.measured(), digest: {**found, "time": now()}}})

    def forget(self) -> None:
        """Forget every candidate."""
        self._write({**self._read(), "candidates": {}})

    def write(self, name: str, text: str) -> str:
        """Write a file of the result beside the state; return its path."""
        path = str(self.folder / name)
        replace_file(path, text, what="result", name="tune-not-written", variable="vllm_tune_dir")
        return path

    def remove(self, name: str) -> None:
        """Remove a file of an earlier result, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / name).unlink()

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        if not isinstance(state, dict) or state.get("schema_version") != SCHEMA_VERSION:
            raise self._unreadable(f"schema_version is not {SCHEMA_VERSION}")
        return state

    def _write(self, state: dict[str, Any]) -> None:
        text = json.dumps({**state, "schema_version": SCHEMA_VERSION}, indent=2) + "\n"
        replace_file(str(self._path), text, what="state", name="tune-not-written", variable="vllm_tune_dir")

    def _unreadable(self, why: str) -> GpufleetError:
        return GpufleetError(
            f"What was measured before, in {self._path}, cannot be read.",
            name="tune-state-unreadable",
            remedy="Remove that file: everything is then measured again. If the host's servers do not run, deploy them"
            " (playbook gpufleet.vllm.deploy).",
            evidence=why,
        )


def now() -> str:
    """Return the time for a file."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
