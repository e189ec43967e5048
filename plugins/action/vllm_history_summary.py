# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the last deployments of a whole fleet, one line each."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.fleet_page import FleetPage
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.history_page import history_lines


class ActionModule(FleetPage):
    """The action plugin behind gpufleet.vllm.vllm_history_summary."""

    option, shown, verbose = "deployments", "lines", "errors"

    def page(self, hosts: dict[str, Any], **further: Any) -> dict[str, list[str]]:
        """Return a line for each deployment, and why those failed that did."""
        return history_lines(hosts)
