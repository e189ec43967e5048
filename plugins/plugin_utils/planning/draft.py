# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions and warnings that a plan gathers on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Decision


@dataclass
class Draft:
    """The decisions and warnings gathered on the way to a plan."""

    decisions: list[Decision] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def decide(self, name: str, value: Any, reason: str) -> None:
        """Note a decision, why it fell, and its value as the plan has it (None: the option is not sent)."""
        self.decisions.append({"field": name, "value": value, "reason": reason})

    def warn(self, text: str) -> None:
        """Note a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)
