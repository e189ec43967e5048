# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what the servers of a whole fleet are doing, one line a replica."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.vllm.plugins.module_utils.fleet import status_lines

ARGUMENTS: dict[str, Any] = {"servers": {"type": "dict", "required": True}}


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action plugin behind gpufleet.vllm.vllm_server_summary."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print the lines, and with -v the docker run line of each replica, and return both."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        found = status_lines(arguments["servers"])
        self._display.display("\n".join(found["lines"]))
        self._display.v("\n".join(found["docker_run"]))
        return {**result, "changed": False, **found}
