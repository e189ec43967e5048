# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what clients used of the models over all routers, and write it as CSV."""

from __future__ import annotations

import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.usage_page import as_csv, together, usage_lines

ARGUMENTS: dict[str, Any] = {
    "routers": {"type": "dict", "required": True},
    "file": {"type": "str", "default": ""},
}


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.router_usage_summary."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Show the table and write the file; a router without its rows is told as missing."""
        found = arguments["routers"]
        known = {router: answer["usage"] for router, answer in found.items() if "usage" in answer}
        missing = {router: _why(answer) for router, answer in found.items() if router not in known}
        rows = together(known)
        lines = usage_lines(rows, sorted(known), missing)
        path = os.path.abspath(os.path.expanduser(arguments["file"])) if arguments["file"] else ""
        text, changed = as_csv(rows), False
        if path and known:
            changed = read_text(path) != text
            lines.append(f"As CSV: {path}")
            if changed and not self._task.check_mode:
                replace_file(path, text, what="usage", name="usage-not-written", variable="router_usage_file")
        self._display.display("\n".join(lines))
        return {"changed": changed, "usage": rows, "lines": lines, "missing": missing}


def _why(answer: dict[str, Any]) -> str:
    """Return why a router has no rows, in one line."""
    return " ".join(str(answer.get("msg") or "it was not asked").split())
