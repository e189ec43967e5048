# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running an action plugin as a task would."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import hub_model


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have no test ask the hub of the world, and return the folder where what was told is kept."""
    kept = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setattr(hub_model, "HUB", "http://127.0.0.1:1")
    return kept


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
