# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of action plugins that show what was found on a whole fleet, on the controller."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction


class FleetPage(ControllerAction):
    """Prints lines about many hosts, with -v more of them, and returns both.

    Attributes:
        option: the option that has host names to what was found there.
        shown: the key of the page whose lines are always printed.
        verbose: the key of the page whose lines are printed with -v.
        further: argument specifications of further options, which the page gets by their names.
    """

    option = ""
    shown = ""
    verbose = ""
    further: ClassVar[dict[str, Any]] = {}

    def page(self, hosts: dict[str, Any], **further: Any) -> dict[str, list[str]]:
        """Return the lines by their keys."""
        raise NotImplementedError

    @classmethod
    def specification(cls) -> dict[str, Any]:
        """Return the argument specification."""
        return {cls.option: {"type": "dict", "required": True}, **cls.further}

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Print the page and return it."""
        found = self.page(arguments[self.option], **{name: arguments[name] for name in self.further})
        self._display.display("\n".join(found[self.shown]))
        self._display.v("\n".join(found[self.verbose]))
        return dict(found)
