# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of action plugins on the controller: arguments, result and failure."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from ansible.errors import AnsibleError

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action


class Work(ControllerAction):
    """Returns its arguments, or fails."""

    options: ClassVar[dict[str, Any]] = {
        "number": {"type": "int", "default": 3},
        "changes": {"type": "bool", "default": False},
        "problem": {"type": "str", "default": ""},
    }

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        if arguments["problem"]:
            raise GpufleetError("It does not.", name=arguments["problem"], remedy="Fix it.", evidence="a line")
        found: dict[str, Any] = {"number": arguments["number"], "host": variables["inventory_hostname"]}
        return {**found, "changed": True} if arguments["changes"] else found


def test_arguments_are_read_as_their_types_and_nothing_changed_unless_it_is_said() -> None:
    variables = {"inventory_hostname": "gpu-01"}
    result, _display = run_action(Work, {"number": "7"}, variables)
    assert (result["number"], result["host"], result["changed"]) == (7, "gpu-01", False)
    result, _display = run_action(Work, {"changes": True}, variables)
    assert (result["number"], result["changed"]) == (3, True)
    with pytest.raises(AnsibleError, match="nubmer"):
        run_action(Work, {"nubmer": 7}, variables)


def test_an_error_is_a_failed_task_with_its_parts() -> None:
    result, _display = run_action(Work, {"problem": "broken"}, {"inventory_hostname": "gpu-01"})
    assert result == {
        "failed": True,
        "msg": "It does not.\nEvidence: a line\nRemedy: Fix it.",
        "error": {
            "name": "broken",
            "message": "It does not.",
            "remedy": "Fix it.",
            "evidence": "a line",
            "details": {},
        },
    }
