# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run M(gpufleet.vllm.vllm_bundle_part) in the background and show what it is doing."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction


class ActionModule(LongTaskAction):
    """See LongTaskAction: there is nothing more to it."""
