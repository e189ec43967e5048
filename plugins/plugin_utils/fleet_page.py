# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of action plugins that show what was found on a whole fleet, on the controller."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible.plugins.action import ActionBase


class FleetPage(ActionBase):  # type: ignore[misc]
    """Prints lines about many hosts, with -v more of them, and returns both.

    Attributes:
        option: the option that has host names to what was found there.
        shown: the key of the page whose lines are always printed.
        verbose: the key of the page whose lines are printed with -v.
        further: argument specifications of further options, which the page gets by their names.
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    option = ""
    shown = ""
    verbose = ""
    further: ClassVar[dict[str, Any]] = {}

    def page(self, hosts: dict[str, Any], **further: Any) -> dict[str, list[str]]:
        """Return the lines by their keys."""
        raise NotImplementedError

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print the page and return it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        specification = {self.option: {"type": "dict", "required": True}, **self.further}
        _validation, arguments = self.validate_argument_spec(specification)
        found = self.page(arguments[self.option], **{name: arguments[name] for name in self.further})
        self._display.display("\n".join(found[self.shown]))
        self._display.v("\n".join(found[self.verbose]))
        return {**result, "changed": False, **found}
