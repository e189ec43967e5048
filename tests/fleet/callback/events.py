# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down what Ansible hands to its callbacks, as AWX keeps it in its job's events and artefacts.

These are the tasks with their arguments, unless they have C(no_log), all results and differences, and the statistics
that a play sets.

Set C(ANSIBLE_CALLBACK_PLUGINS) to this folder, and C(GPUFLEET_EVENTS) to a file, which gets a line of JSON for each.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: events
    type: aggregate
    short_description: Writes down every result of a play
    description:
        - See the head of the file.
    author: gpufleet contributors (@gpufleet)
    version_added: 0.3.0
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """See the head of this file."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "events"

    def _keep(self, event: dict[str, Any]) -> None:
        path = os.environ.get("GPUFLEET_EVENTS")
        if path:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(event, default=str) + "\n")

    def _write(self, result: Any, *_more: Any, **_options: Any) -> None:
        self._keep({"host": result.host.get_name(), "task": result.task.get_name(), "res": result.result})

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Keep what a task is given, as it stands in the playbook."""
        if not task.no_log:
            self._keep({"task": task.get_name(), "args": task.args})

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Keep what a play has set as its artefacts."""
        self._keep({"artifacts": stats.custom})

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_on_skipped = v2_runner_on_unreachable = _write
    v2_runner_item_on_ok = v2_runner_item_on_failed = v2_runner_item_on_skipped = v2_runner_retry = _write
    v2_on_file_diff = _write
