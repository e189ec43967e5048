# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show what the servers of a whole fleet are doing, one line a replica."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.fleet import status_lines
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet_page import FleetPage


class ActionModule(FleetPage):
    """The action plugin behind gpufleet.vllm.vllm_server_summary."""

    option, shown, verbose = "servers", "lines", "docker_run"

    def page(self, hosts: dict[str, Any]) -> dict[str, list[str]]:
        """Return a line for each replica, and its docker run line."""
        return status_lines(hosts)
