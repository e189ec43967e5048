# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection's utilities raise. Utilities raise, only modules and action plugins fail."""

from __future__ import annotations

from typing import Any


class GpufleetError(Exception):
    """A failure with one named cause, its proof and its remedy.

    Attributes:
        message: one or two sentences a person understands, with the values that matter in them.
        name: the cause as a stable identifier in kebab case, such as C(port-in-use).
        remedy: what to do about it: the variable to set or the command to run.
        evidence: the line of a log or the text of an answer that proves the cause; empty if there is none.
        details: further data for programs; must be serialisable as JSON and hold no secret.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str,
        remedy: str = "",
        evidence: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.name = name
        self.remedy = remedy
        self.evidence = evidence
        self.details = details or {}

    def as_text(self) -> str:
        """Return the message, its evidence and its remedy as the text of a task's C(msg)."""
        parts = [self.message]
        if self.evidence:
            parts.append(f"Evidence: {self.evidence}")
        if self.remedy:
            parts.append(f"Remedy: {self.remedy}")
        return "\n".join(parts)

    def as_failure(self) -> dict[str, Any]:
        """Return the result of a task that fails by it: C(failed), C(msg) and C(error)."""
        return {"failed": True, "msg": self.as_text(), "error": self.as_result()}

    def as_result(self) -> dict[str, Any]:
        """Return the failure as the C(error) value of a task's result."""
        return {
            "name": self.name,
            "message": self.message,
            "remedy": self.remedy,
            "evidence": self.evidence,
            "details": self.details,
        }
