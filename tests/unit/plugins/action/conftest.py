# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running an action plugin as a task would."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar


def run_action(
    plugin: type[ActionBase],
    arguments: dict[str, Any],
    variables: dict[str, Any] | None = None,
    *,
    check: bool = False,
    diff: bool = False,
    delegate_to: str | None = None,
) -> tuple[dict[str, Any], MagicMock]:
    """Run an action plugin that works on the controller.

    Args:
        plugin: its class.
        arguments: of the task.
        variables: of the host, untemplated.
        check: whether in check mode.
        diff: whether a difference is asked for.
        delegate_to: the host that the task is for, if not that of the variables.

    Returns:
        The task's result, and the recorder of what was displayed.
    """
    task = MagicMock(args=arguments, check_mode=check, diff=diff, async_val=0, delegate_to=delegate_to)
    templar = Templar(loader=DataLoader(), variables=variables or {})
    action = plugin(task, MagicMock(), MagicMock(), DataLoader(), templar, MagicMock())
    action._display = MagicMock()
    result: dict[str, Any] = action.run(task_vars=variables or {})
    return result, action._display
