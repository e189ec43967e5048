# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module that runs for minutes tells its action plugin what it is doing."""

from __future__ import annotations

import json
import os
import time
from typing import Callable


class Progress:
    """The current phase of a long task, kept in a small file that is replaced as a whole.

    The action plugin that started the module reads the file while it waits (plugin_utils/long_task.py).
    The file holds one JSON object: C(phase) (text), C(detail) (text), C(since) (seconds since the epoch at
    which this phase began) and C(phases) (the finished ones, each C(name) and C(seconds)).

    Args:
        path: where to write; None writes nowhere, so callers need not ask.
        clock: returns seconds since the epoch.
    """

    def __init__(self, path: str | None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._phase = ""
        self._detail = ""
        self._since = clock()
        self._finished: list[dict[str, str | float]] = []

    def phase(self, name: str, detail: str = "") -> None:
        """Enter the phase C(name), ending the one before; the same name again only updates the detail."""
        if name != self._phase:
            self._end_phase()
            self._phase, self._since = name, self._clock()
        elif detail == self._detail:
            return
        self._detail = detail
        self._write()

    def finish(self) -> list[dict[str, str | float]]:
        """End the current phase and return every finished one: C(name) and C(seconds), in order."""
        self._end_phase()
        self._phase = ""
        return list(self._finished)

    def _end_phase(self) -> None:
        if self._phase:
            self._finished.append({"name": self._phase, "seconds": round(self._clock() - self._since, 1)})

    def _write(self) -> None:
        if not self._path:
            return
        state = {"phase": self._phase, "detail": self._detail, "since": self._since, "phases": self._finished}
        temporary = f"{self._path}.new"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(state, stream)
            os.replace(temporary, self._path)
        except OSError:
            # Progress is a courtesy: a full or vanished folder must not end the work itself.
            self._path = None
