# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a rollout that is under way, in files on the controller: one for it, and one for each host.

Each host's file is written by the task of that host alone, so that hosts that are changed at the same time do not get
into each other's way.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import rollout

SCHEMA_VERSION = 1


class RolloutState:
    """The files of a rollout.

    Args:
        folder: on the controller.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).expanduser().resolve()
        self._hosts = self._folder / "hosts"

    def settings(self) -> dict[str, Any]:
        """Return what was arranged; empty when no rollout is under way."""
        return self._read(self._folder / "rollout.json")

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Keep what was arranged."""
        self._write(self._folder / "rollout.json", settings)

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Return the state of each host of the rollout."""
        found = (self._read(path) for path in sorted(self._hosts.glob("*.json")))
        return {str(state["host"]): state for state in found if state}

    def save_host(self, host: str, **parts: Any) -> None:
        """Change parts of a host's state, and keep the others."""
        path = self._hosts / f"{host}.json"
        self._write(path, {**self._read(path), "host": host, **parts, "time": now()})

    def drop_host(self, host: str) -> None:
        """Forget a host."""
        with contextlib.suppress(FileNotFoundError):
            (self._hosts / f"{host}.json").unlink()

    def last(self) -> dict[str, Any]:
        """Return how the last rollout ended; empty when none did."""
        return self._read(self._folder / "last.json")

    def end(self, result: dict[str, Any]) -> None:
        """Keep how the rollout ended as C(last.json), and forget the rest but the hosts that get no requests."""
        hosts = self.hosts()
        self._write(self._folder / "last.json", {**self.settings(), **result, "ended": now(), "hosts": hosts})
        out = rollout.still_out(hosts)
        for host in hosts:
            if host in out:
                self.save_host(host, state=rollout.OUT)
            else:
                self.drop_host(host)
        with contextlib.suppress(FileNotFoundError):
            (self._folder / "rollout.json").unlink()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise _unreadable(path, str(error)) from error
        if not isinstance(state, dict) or state.get("schema_version") != SCHEMA_VERSION:
            raise _unreadable(path, f"schema_version is not {SCHEMA_VERSION}")
        return state

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        text = json.dumps({**state, "schema_version": SCHEMA_VERSION}, indent=2) + "\n"
        replace_file(str(path), text, what="state", name="rollout-state-not-written", variable="vllm_rollout_state_dir")


def now() -> str:
    """Return the time for a file."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _unreadable(path: Path, why: str) -> GpufleetError:
    return GpufleetError(
        f"The state of the rollout in {path} cannot be read.",
        name="rollout-state-unreadable",
        remedy="Remove that file: the rollout then goes by what the hosts run, and that host's earlier deployment is"
        " found in its own history.",
        evidence=why,
    )
