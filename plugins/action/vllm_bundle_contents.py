# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell on the controller what a bundle for hosts without internet has to hold."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.bundle_contents import Contents


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_bundle_contents."""

    @classmethod
    def specification(cls) -> dict[str, Any]:
        """Return the argument specification."""
        return {
            "hosts": {"type": "list", "elements": "str", "required": True},
            "routers": {"type": "list", "elements": "str", "default": []},
            "releases": {"type": "dict", "default": {}},
        }

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return the distributions of the hosts, and once these are known what to gather."""
        contents = Contents(self._loader, variables, arguments["hosts"], arguments["routers"])
        systems = contents.systems()
        if not arguments["releases"]:
            return {"systems": systems}
        return {"systems": systems, **contents.gather(arguments["releases"])}
