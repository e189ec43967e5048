# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down the steps that a play makes on its hosts, and does something when a certain one begins or has ended.

Set C(ANSIBLE_CALLBACK_PLUGINS) to this folder, and:

- C(GPUFLEET_STEPS) to a file: it gets a line of JSON for each task that has ended on a host (C(ended), in seconds
  since the epoch);
- C(GPUFLEET_AT) to a JSON object with C(host), C(task), C(nth) (of that name on that host, from 1) and C(begins)
  (whether it is about its beginning), and C(GPUFLEET_AT_DO) to a line for the shell, which finds the id of
  ansible-playbook in C(PLAY). The play goes on once that line has ended, so that what it finds is that step's.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: at_step
    type: aggregate
    short_description: Writes down the steps of a play and does something at one of them
    description:
        - See the head of the file.
    author: gpufleet contributors (@gpufleet)
    version_added: 0.2.0
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """See the head of this file."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "at_step"

    def __init__(self) -> None:
        super().__init__()
        self._path = os.environ.get("GPUFLEET_STEPS", "")
        self._at = json.loads(os.environ.get("GPUFLEET_AT") or "{}")
        self._play = ""
        self._counts: dict[bool, collections.Counter[tuple[str, str]]] = {
            begins: collections.Counter() for begins in (True, False)
        }

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Note the play."""
        self._play = play.get_name()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Note that a task begins on a host."""
        self._met(host.get_name(), task.get_name(), begins=True)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note that a task has ended on a host."""
        self._end(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Note that a task has failed on a host."""
        self._end(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Note that a task was skipped on a host."""
        self._end(result, "skipped")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Note that a host did not answer."""
        self._end(result, "unreachable")

    def _end(self, result: Any, status: str) -> None:
        host, task = result.host.get_name(), result.task
        name = task.get_name()
        if self._path:
            step = {
                "play": self._play,
                "host": host,
                "task": name,
                "nth": self._counts[False][host, name] + 1,
                "action": task.action,
                "path": task.get_path(),
                "changed": bool(result.result.get("changed")),
                "status": status,
                "ended": round(time.time(), 3),
            }
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(step) + "\n")
        self._met(host, name, begins=False)

    def _met(self, host: str, task: str, *, begins: bool) -> None:
        counts = self._counts[begins]
        counts[host, task] += 1
        met = {"host": host, "task": task, "nth": counts[host, task], "begins": begins}
        if met == self._at:
            subprocess.run(
                ["/bin/sh", "-c", os.environ["GPUFLEET_AT_DO"]],
                env={**os.environ, "PLAY": str(os.getpid())},
                check=False,
            )
