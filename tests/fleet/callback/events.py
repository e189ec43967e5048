# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down every result that Ansible hands to its callbacks, as AWX keeps them in its job's events.

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

    def _write(self, result: Any, *_more: Any, **_options: Any) -> None:
        path = os.environ.get("GPUFLEET_EVENTS")
        if path:
            event = {"host": result.host.get_name(), "task": result.task.get_name(), "res": result.result}
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(event, default=str) + "\n")

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_on_skipped = v2_runner_on_unreachable = _write
    v2_runner_item_on_ok = v2_runner_item_on_failed = v2_runner_item_on_skipped = v2_runner_retry = _write
