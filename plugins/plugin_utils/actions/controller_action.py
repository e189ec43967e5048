# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of action plugins that do their work on the controller, without a trip to the host."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError


class ControllerAction(ActionBase):  # type: ignore[misc]
    """Checks the task's arguments, does the work, and turns a GpufleetError into a failed task.

    Attributes:
        options: argument specification.
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def specification(cls) -> dict[str, Any]:
        """Return the argument specification."""
        return cls.options

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Do the work and return the task's result, in which C(changed) is false unless it says otherwise.

        Args:
            arguments: those of the task, with their defaults.
            variables: of the host, untemplated.

        Raises:
            GpufleetError: what fails the task.
        """
        raise NotImplementedError

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do the work, and return its result or its failure."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(argument_spec=self.specification())
        try:
            return {**result, "changed": False, **self.work(arguments, task_vars or {})}
        except GpufleetError as error:
            return {**result, **error.as_failure()}
