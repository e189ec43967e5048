# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show on one page what preflight found on a whole fleet."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.fleet_page import FleetPage
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.preflight_page import findings_page


class ActionModule(FleetPage):
    """The action plugin behind gpufleet.vllm.vllm_preflight_summary."""

    option, shown, verbose = "findings", "lines", "details"

    def page(self, hosts: dict[str, Any], **further: Any) -> dict[str, list[str]]:
        """Return a line for each finding, and every host's own."""
        return findings_page(hosts)
