# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what the test of a fleet's GPUs found, and which hosts are not accepted."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.acceptance_page import acceptance


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_accept_summary."""

    options: ClassVar[dict[str, Any]] = {
        "hosts": {"type": "dict", "required": True},
        "tolerance": {"type": "float", "default": 0.1},
    }

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Print the page and return it."""
        found = acceptance(arguments["hosts"], arguments["tolerance"])
        self._display.display("\n".join(found["lines"]))
        return found
