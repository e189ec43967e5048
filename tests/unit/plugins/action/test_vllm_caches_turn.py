# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose caches a host starts with."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.action.vllm_caches_turn import SERVER, ActionModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

READY: dict[str, Any] = {"caches": {"key": "k", "warm": True, "received": "", "folder": "/there"}}
COLD: dict[str, Any] = {"caches": {"key": "k", "warm": False, "received": "", "folder": "/here"}, "would_change": True}


def turn(own: dict[str, Any], **others: Any) -> str:
    """Return the host of which the one called here takes the caches."""
    said = {"here": own, **others}
    variables = {
        "inventory_hostname": "here",
        "ansible_play_hosts_all": list(said),
        "hostvars": {host: {SERVER: one} for host, one in said.items()},
    }
    result, _display = run_action(ActionModule, {}, variables)
    assert not result["changed"]
    assert result["folder"] == ("/there" if result["host"] else "")
    return str(result["host"])


def test_a_host_that_is_ready_gives_to_one_that_is_to_be_changed() -> None:
    assert turn(COLD, a=COLD, b=READY, c=READY) == "b"


def test_a_host_that_has_its_own_or_stays_takes_none() -> None:
    assert turn({**READY, "would_change": True}, b=READY) == ""
    assert turn({**COLD, "would_change": False}, b=READY) == ""
    assert turn({**COLD, "caches": {**COLD["caches"], "received": "a"}}, b=READY) == ""
    assert turn({**COLD, "caches": {**COLD["caches"], "key": ""}}, b={"caches": {**READY["caches"], "key": ""}}) == ""
    assert turn({"failed": True}, b=READY) == ""


def test_nobody_waits_and_nothing_foreign_is_taken() -> None:
    assert turn(COLD) == ""
    assert turn(COLD, a=COLD, b={"caches": {**READY["caches"], "key": "other"}}) == ""
    assert turn(COLD, a={**READY, "failed": True}, b={**READY, "unreachable": True}, c={}, d=None) == ""
