# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show how clients reach a router."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.access_lines import Access, access_lines

ARGUMENTS: dict[str, Any] = {
    "names": {"type": "list", "elements": "str", "required": True},
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "tls": {"type": "bool", "default": True},
    "connect_to": {"type": "str", "default": ""},
    "ansible_host": {"type": "str", "default": ""},
    "made_certificate": {"type": "str", "default": ""},
    "authorities": {"type": "str", "default": ""},
    "asks_for_key": {"type": "bool", "default": True},
    "models": {"type": "list", "elements": "str", "default": []},
}


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.router_access."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Print the lines and return them."""
        here = str(variables.get("inventory_hostname", ""))
        reached = arguments.pop("ansible_host") or here
        lines = access_lines(Access(**arguments, ansible_host=reached))
        self._display.display("\n".join(line if line.startswith(" ") else f"[{here}] {line}" for line in lines))
        return {"lines": lines}
