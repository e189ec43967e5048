# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action that shows what the test of a fleet's GPUs found."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.action import vllm_accept_summary
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action


def test_the_page_is_shown_and_hosts_that_failed_are_returned() -> None:
    processor = {"index": 0, "name": "processor", "uuid": "", "errors": {}, "figures": {"bandwidth_gbs": 9.5}}
    hosts = {"a": {"gpus": [processor], "allreduce": {}}, "b": {"msg": "it was not reached"}}
    result, display = run_action(vllm_accept_summary.ActionModule, {"hosts": hosts})
    shown = "\n".join(call.args[0] for call in display.display.call_args_list)
    assert "1 of 2 hosts accepted" in shown and "the processor" in shown and "9.5 GB/s of memory" in shown
    assert result["failed"] == {"b": "it was not reached"} and result["changed"] is False
