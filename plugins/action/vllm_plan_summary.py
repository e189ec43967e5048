# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the plans of a whole fleet on one page."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.fleet_page import FleetPage
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.plan_page import table


class ActionModule(FleetPage):
    """The action plugin behind gpufleet.vllm.vllm_plan_summary."""

    option, shown, verbose = "plans", "table", "reasons"

    def page(self, hosts: dict[str, Any], **further: Any) -> dict[str, list[str]]:
        """Return the table and the reasons."""
        return table(hosts)
