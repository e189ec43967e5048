# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts fetch weights from the hub, and which ones from other hosts."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.action.vllm_weights_turn import FETCHED, LACKS, SEEN, ActionModule
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.weights_turns import turn_of
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

HOSTS = ["a", "b", "c", "d"]
LACKING: dict[str, Any] = {"wanted": ["w"], "complete": False, "models": [], "public_key": "key"}
WHOLE: dict[str, Any] = {"wanted": ["w"], "complete": True, "models": [{}], "public_key": ""}


def parts(seen: dict[str, dict[str, Any]], seeds: int = 1) -> list[str]:
    """Return what each host does."""
    return [turn_of(host, HOSTS, seen, seeds).part for host in HOSTS]


def test_the_first_hosts_ask_the_hub_and_the_others_those() -> None:
    seen = dict.fromkeys(HOSTS, LACKING)
    assert parts(seen) == ["seed", "receiver", "receiver", "receiver"]
    assert parts(seen, seeds=2) == ["seed", "seed", "receiver", "receiver"]
    # Once the first one has them, it is a source.
    seen["a"] = {**LACKING, "fetched": True}
    assert parts(seen) == ["source", "receiver", "receiver", "receiver"]
    assert turn_of("a", HOSTS, seen, 1).text == "has the weights and gives them to 3 other hosts"
    assert turn_of("b", HOSTS, seen, 1).public_keys == ["key"] * 4


def test_where_a_host_has_them_nobody_asks_the_hub() -> None:
    assert parts({**dict.fromkeys(HOSTS, LACKING), "c": WHOLE}) == ["receiver", "receiver", "source", "receiver"]
    assert parts(dict.fromkeys(HOSTS, WHOLE)) == ["none"] * 4


def test_another_host_asks_the_hub_where_the_first_one_failed() -> None:
    seen = {**dict.fromkeys(HOSTS, LACKING), "a": {**LACKING, "failed": True}}
    assert parts(seen) == ["none", "seed", "receiver", "receiver"]


def test_hosts_of_different_models_have_no_part_with_each_other() -> None:
    other = {**LACKING, "wanted": ["v"]}
    seen = {"a": LACKING, "b": other, "c": LACKING, "d": other}
    assert parts(seen) == ["seed", "seed", "receiver", "receiver"]
    assert turn_of("d", HOSTS, seen, 1).members == ["b", "d"]


def test_a_host_that_does_not_know_the_hubs_hashes_is_no_source() -> None:
    brought = {**WHOLE, "models": []}
    assert parts({**dict.fromkeys(HOSTS, LACKING), "a": brought}) == ["none", "seed", "receiver", "receiver"]


def test_a_host_that_said_nothing_has_no_part() -> None:
    assert parts({"b": LACKING, "c": LACKING}) == ["none", "seed", "receiver", "none"]


def test_the_action_reads_what_the_role_keeps() -> None:
    hostvars: dict[str, Any] = {
        "a": {LACKS: {"lacks": True}, SEEN: LACKING, FETCHED: {"failed": True}},
        "b": {LACKS: {"lacks": False}, SEEN: LACKING},
        "c": {},
    }
    variables = {"inventory_hostname": "b", "ansible_play_hosts": ["a", "b", "c"], "hostvars": hostvars}
    result, _display = run_action(ActionModule, {"seeds": 1}, variables)
    assert (result["looks"], result["part"], result["changed"]) == (True, "seed", False)
    hostvars["a"][LACKS] = {"lacks": False}
    result, _display = run_action(ActionModule, {}, variables)
    assert (result["looks"], result["part"]) == (False, "none")


def test_the_probe_decides_whether_a_host_is_looked_at() -> None:
    arguments = {"step": "probed", "model": "o/m", "hf_home": "/hf"}
    assert run_action(ActionModule, arguments)[0]["lacks"] is True
    probed = [{"folder": "/hf/hub/models--o--m", "complete": True}]
    assert run_action(ActionModule, {**arguments, "probed": probed})[0]["lacks"] is False
