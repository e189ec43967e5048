# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vllm_server's action says at the end."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.common.parameters import remove_values

from ansible_collections.gpufleet.vllm.plugins.action.vllm_server import ActionModule, summary
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action


def replica(**parts: Any) -> dict[str, Any]:
    """Return one replica of the module's result."""
    return {"name": "vllm-0", "action": "none", "why": [], "ready_s": 0.0, **parts}


def test_a_replaced_replica_is_told_with_its_reasons() -> None:
    """The reader sees what changed without asking for a difference."""
    done = replica(action="replaced", why=["config.max-num-seqs: 8 -> 4", "image: a -> b"], ready_s=67.4)
    assert summary({"replicas": [done]}) == [
        "vllm-0: replaced (config.max-num-seqs: 8 -> 4; image: a -> b), ready after 1 min 7 s"
    ]


def test_what_was_left_alone_is_not_told() -> None:
    """A converged host prints nothing."""
    assert summary({"replicas": [replica()]}) == []
    assert summary({"failed": True, "msg": "no"}) == []


def test_removed_and_recovered_are_told() -> None:
    """Containers that are gone and what an interrupted run left are part of it."""
    done = {"replicas": [], "removed": ["vllm-1"], "recovered": ["removed vllm-0-next, which an earlier run left"]}
    assert summary(done) == ["vllm-1: removed", "removed vllm-0-next, which an earlier run left"]


def test_what_became_of_requests_is_told_whether_it_failed_or_not() -> None:
    """Who had requests aborted learns it from the play."""
    drain = {"waited_s": 12.2, "running_at_start": 5, "finished": 4, "aborted": 1, "refused": 3, "turned_away": True}
    drain["answered"] = True
    lines = [
        "vllm-0: had 5 requests when it was to be stopped: 4 finished within 12 s, 1 aborted, 3 new ones turned away"
    ]
    assert summary({"replicas": [], "drains": {"vllm-0": drain}}) == lines
    assert summary({"failed": True, "error": {"details": {"drains": {"vllm-0": drain}}}}) == lines
    idle = {**drain, "running_at_start": 0, "refused": 0}
    assert summary({"drains": {"vllm-0": idle}}) == ["vllm-0: had no requests when it was stopped"]
    silent = {**idle, "answered": False}
    assert summary({"drains": {"vllm-0": silent}}) == ["vllm-0: did not tell of its requests before it was stopped"]


def test_numbers_in_which_a_secret_occurs_do_not_spoil_a_success() -> None:
    """Ansible's own masking, of a secret that is one digit."""
    drain = {"waited_s": 11.2, "running_at_start": 15, "finished": 14, "aborted": 0, "refused": 3, "turned_away": True}
    drain["answered"] = True
    done = replica(action="replaced", why=["config.max-num-seqs: 16 -> 4"], ready_s=61.4)
    result = remove_values({"replicas": [done], "drains": {"vllm-0": drain}}, {"1"})
    assert summary(result) == [
        "vllm-0: replaced (config.max-num-seqs: ********6 -> 4), ready after (hidden)",
        "vllm-0: had (hidden) requests when it was to be stopped: (hidden) finished within (hidden), 0 aborted, 3 new"
        " ones turned away",
    ]


class Action(ActionModule):
    """The plugin with a module that would replace a server."""

    def _execute_module(self, **_parts: Any) -> dict[str, Any]:
        return {"changed": True, "replicas": [replica(action="replaced", why=["image: a -> b"])]}


class TextsAlone(ActionModule):
    """The plugin with a module that would write another plan, and leave the servers alone."""

    def _execute_module(self, **_parts: Any) -> dict[str, Any]:
        return {"changed": True, "would_change": False, "replicas": [replica()]}


def test_a_plan_of_which_the_texts_changed_changes_no_server() -> None:
    result, _display = run_action(TextsAlone, {}, {"inventory_hostname": "gpu-01"}, check=True)
    assert (result["changed"], result["would_change"]) == (True, False)


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ({}, ["[gpu-01] in check mode, so not done: vllm-0: replaced (image: a -> b)"]),
        ({"__vllm_mode": "rehearse"}, ["[gpu-01] in check mode, so not done: vllm-0: replaced (image: a -> b)"]),
        ({"__vllm_mode": "compare"}, []),
    ],
)
def test_a_look_says_whether_servers_would_be_changed(mode: dict[str, str], shown: list[str]) -> None:
    """In the result, in which changed_when leaves it alone, and, unless it is a comparison, on the screen."""
    result, display = run_action(Action, {}, {"inventory_hostname": "gpu-01", **mode}, check=True)
    assert result["would_change"] is True
    assert [call.args[0] for call in display.display.call_args_list] == shown


def test_other_keys_alone_are_told_and_are_no_change_of_the_servers() -> None:
    """Or a host would be drained for them."""

    class Changing(Action):
        def _execute_module(self, **_parts: Any) -> dict[str, Any]:
            return {"changed": True, "would_change": False, "keys_changed": ["vllm-0"], "replicas": [replica()]}

    result, display = run_action(Changing, {}, {"inventory_hostname": "gpu-01"}, check=True)
    assert result["would_change"] is False
    shown = [call.args[0] for call in display.display.call_args_list]
    assert "[gpu-01] in check mode, so not done: vllm-0: takes other keys" in shown
