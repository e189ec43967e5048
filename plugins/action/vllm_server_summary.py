# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what the servers of a whole fleet are doing, what is wrong first."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.fleet_page import FleetPage
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.status_page import status_lines


class ActionModule(FleetPage):
    """The action plugin behind gpufleet.vllm.vllm_server_summary."""

    option, shown, verbose = "servers", "lines", "details"
    further: ClassVar[dict[str, Any]] = {
        "drift": {"type": "dict", "default": {}},
        "deployments": {"type": "dict", "default": {}},
        "all_hosts": {"type": "list", "elements": "str", "default": []},
        "errors": {"type": "dict", "default": {}},
        "routers": {"type": "dict", "default": {}},
        "plans": {"type": "dict", "default": {}},
        "gpu_health": {"type": "dict", "default": {}},
    }

    def page(self, hosts: dict[str, Any], **further: Any) -> dict[str, list[str]]:
        """Return what a person should see first, and with -v every replica's docker run line and the deployments."""
        return status_lines(hosts, **further)
