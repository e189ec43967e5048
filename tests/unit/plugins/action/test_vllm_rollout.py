# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a rollout and what they keep between runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action import vllm_rollout
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout import wish_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout_state import RolloutState

PLAN: dict[str, Any] = {"model": "m", "replicas": [{"name": "vllm-0"}]}
CHANGES = ["config.max-num-seqs: 256 -> 128"]


class Controller:
    """Runs the steps as the playbook does."""

    def __init__(self, folder: Path) -> None:
        self.state = RolloutState(str(folder))
        self.folder = folder

    def arrange(self, *hosts: str, check: bool = False, same: tuple[str, ...] = (), **parts: Any) -> dict[str, Any]:
        """Arrange a change of these hosts."""
        found = {host: {"plan": PLAN, "changes": CHANGES} for host in hosts}
        found.update({host: {"plan": PLAN, "changes": []} for host in same})
        arguments = {"hosts": found, "all_hosts": [*hosts, *same], "batches": [1, "100%"], "max_failures": 0, **parts}
        return vllm_rollout.arrange(self.state, arguments, check=check)

    def note(
        self, host: str, state: str, why: str = "", before: str = "", wish: str = "", **parts: Any
    ) -> dict[str, Any]:
        """Note what became of a host; C(wish) is what was wished of the deployment that it has before."""
        earlier = {"deployment": before, "wish": wish} if before else {}
        arguments = {"host": host, "state": state, "why": why, "before": earlier, **parts}
        return vllm_rollout.note(self.state, arguments, check=False)

    def judge(self) -> dict[str, Any]:
        """See whether to go on."""
        return vllm_rollout.judge(self.state, {}, check=False)

    def tell(self, **parts: Any) -> dict[str, Any]:
        """End it."""
        return vllm_rollout.tell(self.state, parts, check=False)


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    """A controller on which no rollout is under way."""
    return Controller(tmp_path / "rollout")


def test_a_rollout_that_succeeds_leaves_its_result_alone(controller: Controller) -> None:
    arranged = controller.arrange("a", "b", "c")
    assert (arranged["order"], arranged["serial"], arranged["canaries"]) == (["a", "b", "c"], [1, 2], ["a"])
    for host in ("a", "b", "c"):
        assert controller.judge()["stop"] == ""
        assert controller.note(host, "begun", before=f"before-{host}")["canary"] is (host == "a")
        controller.note(host, "done")
    told = controller.tell()
    assert not told.get("failed")
    assert told["lines"] == ["  changed and verified: a, b, c (3 hosts)"]
    assert sorted(path.name for path in controller.folder.iterdir()) == ["hosts", "last.json"]
    assert controller.state.hosts() == {}
    assert controller.arrange(same=("a", "b", "c"))["order"] == []
    assert controller.tell() == {"lines": []}


def test_a_failed_canary_stops_it_and_nothing_is_brought_back(controller: Controller) -> None:
    controller.arrange("a", "b")
    controller.note("a", "begun", before="1")
    controller.note("a", "failed", why="score 0.1,\n floor 0.7")
    judged = controller.judge()
    assert judged["stop"] == "the canary a failed: score 0.1, floor 0.7"
    assert judged["bring_back"] == []
    told = controller.tell()
    assert told["failed"] and told["failed_hosts"] == ["a"]
    assert "  not reached, left as they were: b (1 host)" in told["lines"]


def test_a_failed_batch_brings_back_what_was_done(controller: Controller) -> None:
    controller.arrange("a", "b", "c")
    for host in ("a", "b"):
        controller.note(host, "begun", before=f"before-{host}")
        controller.note(host, "done")
    controller.note("c", "failed", why="it did not start")
    judged = controller.judge()
    assert (judged["bring_back"], judged["serial"]) == (["a", "b"], [2])
    # Killed while bringing back: the next run does nothing but that.
    assert controller.note("a", "begun")["before"]["deployment"] == "before-a"
    again = controller.arrange("b", "c", same=("a",))
    assert (again["order"], again["bring_back"]) == ([], ["a", "b"])
    assert controller.judge()["bring_back"] == ["a", "b"]
    for host in ("a", "b"):
        controller.note(host, "rolled-back")
    told = controller.tell()
    assert told["failed"]
    assert "  changed, then brought back: a, b (2 hosts)" in told["lines"]
    assert controller.state.settings() == {}


def test_an_interrupted_one_goes_on_and_knows_what_was_before(controller: Controller) -> None:
    controller.arrange("a", "b", "c", "d")
    controller.note("a", "begun", before="1")
    controller.note("a", "done")
    controller.note("b", "begun", before="2")
    again = controller.arrange("c", "d", same=("a", "b"))
    assert (again["order"], again["serial"], again["canaries"]) == (["b", "c", "d"], [3], ["a"])
    assert again["lines"][0].startswith("Goes on with the rollout that began at ")
    noted = controller.note("b", "begun", before="what the turn made of it", wish=wish_of(PLAN))
    assert noted["before"]["deployment"] == "2"
    assert controller.tell()["left"] == ["b", "c", "d"]


def test_what_a_host_had_when_its_turn_began_is_not_what_an_earlier_turn_found_there(controller: Controller) -> None:
    """A turn is interrupted; then somebody deploys something else, and then comes the next rollout."""
    controller.arrange("a", "b")
    controller.note("a", "begun", before="1")
    controller.arrange("a", "b")
    assert controller.note("a", "begun", before="3", wish="of that deployment")["before"]["deployment"] == "3"
    # This turn is interrupted, too, when it has made its deployment, and something else is wished by then.
    hosts = {"a": {"plan": {**PLAN, "model": "n"}, "changes": CHANGES}}
    controller.arrange(hosts=hosts, all_hosts=["a"])
    assert controller.note("a", "begun", before="4", wish=wish_of(PLAN))["before"]["deployment"] == "3"


def test_a_rollback_ends_the_turn_that_it_takes_back(controller: Controller, tmp_path: Path) -> None:
    controller.arrange("a", "b")
    controller.note("a", "begun", before="1")
    back = Controller(tmp_path / "back")
    back.arrange("a", "b")
    for host in ("a", "b"):
        back.note(host, "begun", before="2")
        back.note(host, "done", undoes=str(controller.folder))
    assert {host: state["state"] for host, state in controller.state.hosts().items()} == {
        "a": "rolled-back",
        "b": "rolled-back",
    }
    # Deployed again by hand, it is no turn that goes on.
    controller.arrange("a", "b")
    assert controller.note("a", "begun", before="3", wish=wish_of(PLAN))["before"]["deployment"] == "3"


def test_a_host_drained_before_the_inventory_was_taken_back_is_put_back(controller: Controller) -> None:
    """The canary is done, the second host drained and not replaced yet; then what is wished is what it has."""
    controller.arrange("a", "b", "c")
    controller.note("a", "begun", before="1")
    controller.note("a", "done")
    controller.note("b", "begun", before="1")
    back = {**PLAN, "max_num_seqs": 256}
    hosts = {"a": {"plan": back, "changes": CHANGES}, "b": {"plan": back}, "c": {"plan": back}}
    again = controller.arrange(hosts=hosts, all_hosts=["a", "b", "c"])
    assert (again["order"], again["same"], again["canaries"]) == (["b", "a"], ["c"], ["b"])
    assert controller.note("b", "begun")["canary"]
    controller.note("b", "done")
    assert controller.note("a", "begun") == {"before": {"deployment": "1", "wish": ""}, "canary": False}
    controller.note("a", "done")
    assert controller.tell()["lines"] == ["  changed and verified: a, b (2 hosts)"]


def test_a_rollout_whose_inventory_was_taken_back_before_its_canary_ends(controller: Controller) -> None:
    controller.arrange("a", "b")
    controller.note("a", "begun", before="1")
    back = {"plan": {**PLAN, "max_num_seqs": 256}}
    again = controller.arrange(hosts={"a": back, "b": back}, all_hosts=["a", "b"])
    assert (again["order"], again["canaries"]) == (["a"], ["a"])
    controller.note("a", "done")
    assert not controller.tell().get("failed")
    assert (controller.state.settings(), controller.state.hosts()) == ({}, {})


def test_a_rollout_that_was_taken_back_before_any_turn_ends(controller: Controller) -> None:
    controller.arrange("a", "b")
    assert controller.arrange(same=("a", "b"))["order"] == []
    told = controller.tell()
    assert (told.get("failed"), told["left"]) == (None, [])
    assert (controller.state.settings(), controller.state.hosts()) == ({}, {})


def test_hosts_that_the_earlier_run_did_not_have_get_a_canary_of_their_own(controller: Controller) -> None:
    """Interrupted with --limit hopper, then run with --limit blackwell, then with hopper again."""
    controller.arrange("hopper-1", "hopper-2")
    controller.note("hopper-1", "begun", before="1")
    controller.note("hopper-1", "done")
    assert controller.arrange("blackwell-1", "blackwell-2")["canaries"] == ["blackwell-1"]
    assert controller.note("blackwell-1", "begun")["canary"]
    assert not controller.note("blackwell-2", "begun")["canary"]
    for host in ("blackwell-1", "blackwell-2"):
        controller.note(host, "done")
    assert controller.tell()["left"] == ["hopper-2"]
    again = controller.arrange("hopper-2", same=("hopper-1",))
    assert (again["order"], again["done"], again["canaries"]) == (["hopper-2"], ["hopper-1"], ["hopper-1"])


def test_a_host_that_failed_before_the_interruption_has_another_turn(controller: Controller) -> None:
    controller.arrange("a", "b", max_failures=1)
    controller.note("a", "begun")
    controller.note("a", "done")
    controller.note("b", "failed", why="x")
    assert controller.judge()["stop"] == ""
    assert controller.arrange("b", same=("a",), max_failures=1)["order"] == ["b"]
    assert controller.state.hosts()["b"]["state"] == "pending"


def test_check_mode_keeps_nothing(controller: Controller) -> None:
    assert controller.arrange("a", "b", check=True)["order"] == ["a", "b"]
    assert not controller.folder.exists()


def test_nothing_begins_when_too_many_hosts_cannot_be_changed(controller: Controller) -> None:
    hosts = {"a": {"plan": PLAN, "changes": CHANGES}, "b": {"error": "The disk is full."}}
    arranged = controller.arrange(hosts=hosts, all_hosts=["a", "b"])
    assert (arranged["order"], arranged["bring_back"]) == ([], [])
    assert "1 of 2 hosts cannot be changed" in arranged["stop"]
    assert not controller.folder.exists()


def test_a_broken_file_is_told_by_its_path(controller: Controller) -> None:
    controller.arrange("a")
    path = controller.folder / "hosts" / "a.json"
    path.write_text("{")
    with pytest.raises(GpufleetError) as caught:
        controller.judge()
    assert (caught.value.name, str(path) in caught.value.message) == ("rollout-state-unreadable", True)


def test_a_host_that_left_the_inventory_untouched_keeps_no_rollout_open(controller: Controller) -> None:
    controller.arrange("a", "b", "c")
    controller.note("a", "begun", before="1")
    controller.note("a", "done")
    again = controller.arrange("b", same=("a",), inventory=["a", "b"])
    assert again["order"] == ["b"]
    controller.note("b", "begun")
    controller.note("b", "done")
    assert not controller.tell(inventory=["a", "b"]).get("failed")
    assert controller.state.settings() == {}


def test_a_host_that_left_the_inventory_half_changed_is_named_with_what_to_do(controller: Controller) -> None:
    controller.arrange("a", "b")
    controller.note("a", "begun", before="1")
    controller.note("a", "done")
    controller.note("b", "begun", before="2")
    controller.arrange(same=("a",), inventory=["a"])
    told = controller.tell(inventory=["a"])
    assert (told["failed"], told["left"]) == (True, ["b"])
    assert "Not in the inventory any more, though the change had begun: b." in told["msg"]
    assert "vllm_rollout_state_dir" in told["msg"]
    # One that --limit leaves out is no reason for that.
    assert "inventory" not in controller.tell(inventory=["a", "b"])["msg"]


def test_one_that_was_stopped_and_not_told_does_not_stop_the_next(controller: Controller) -> None:
    controller.arrange("a", "b")
    controller.note("a", "begun", before="1")
    controller.note("a", "failed", why="boom")
    assert controller.judge()["stop"] != ""
    looked = controller.arrange("a", "b", check=True)
    assert (looked["stop"], looked["order"], controller.state.settings()["stopped"] != "") == ("", ["a", "b"], True)
    again = controller.arrange("a", "b")
    assert (again["stop"], again["order"], again["canaries"]) == ("", ["a", "b"], ["a"])


def test_a_stopped_one_is_not_over_while_a_changed_host_was_not_brought_back(controller: Controller) -> None:
    """As with C(--limit), or where it is the last host that gets requests."""
    controller.arrange("a", "b", "c")
    for host in ("a", "b"):
        controller.note(host, "begun", before=f"before-{host}")
        controller.note(host, "done")
    controller.note("c", "failed", why="it did not start")
    assert controller.judge()["bring_back"] == ["a", "b"]
    controller.note("a", "rolled-back")
    controller.note("b", "done", why="nobody else gets requests")
    told = controller.tell()
    assert (told["left"], told["failed"]) == (["b"], True)
    assert "  changed, and not brought back yet: b (1 host)" in told["lines"]
    assert "  not brought back: b: nobody else gets requests" in told["lines"]
    assert controller.arrange("b", "c", same=("a",))["bring_back"] == ["b"]
    assert controller.note("b", "begun")["before"]["deployment"] == "before-b"
    controller.note("b", "rolled-back")
    assert controller.tell()["left"] == []


def test_a_stopped_one_first_brings_back_whom_the_router_does_not_ask_once_they_answer_again(
    controller: Controller,
) -> None:
    """Until then no other host may be taken out, so that nothing else could be brought back."""
    controller.arrange("a", "b", "c")
    controller.note("a", "begun", before="before-a")
    controller.note("a", "done")
    controller.note("b", "begun", before="before-b")
    controller.note("b", "failed", why="it was lost", out=True)
    assert controller.judge()["bring_back"] == ["a"]
    controller.note("a", "done", why="b is out")
    assert controller.tell()["left"] == ["a"]
    assert controller.arrange("a", "c")["bring_back"] == ["a"], "it is still lost"
    assert controller.arrange("a", "b", "c", check=True)["bring_back"] == ["b", "a"]
    assert controller.judge()["bring_back"] == ["a"]
    assert controller.arrange("a", "b", "c")["bring_back"] == controller.judge()["bring_back"] == ["b", "a"]
    assert controller.note("b", "begun")["before"]["deployment"] == "before-b"
    for host in ("b", "a"):
        controller.note(host, "rolled-back")
    assert controller.tell()["left"] == []
    assert controller.state.hosts() == {}


def interrupted(controller: Controller) -> dict[str, Any]:
    """Leave a rollout of a, b and c in the turn of b; return what is found once C(deploy) made the same change."""
    controller.arrange("a", "b", "c")
    controller.note("a", "begun", before="1", wish="old")
    controller.note("a", "done", after={"deployment": "2"})
    controller.note("b", "begun", before="1", wish="old")
    newer = {**PLAN, "model": "newer"}
    return {host: {"plan": newer, "changes": CHANGES, "served": wish_of(PLAN)} for host in ("a", "b", "c")}


def test_one_that_another_playbook_brought_to_its_end_is_over(controller: Controller) -> None:
    found = interrupted(controller)
    arguments = {"hosts": found, "all_hosts": [*found], "batches": [1], "max_failures": 0, "routed": True}
    arranged = vllm_rollout.arrange(controller.state, arguments, check=False)
    assert arranged["order"] == ["a", "b", "c"]
    assert not any("Goes on" in line for line in arranged["lines"])
    assert [state["state"] for state in controller.state.hosts().values()] == ["pending"] * 3
    assert not any(state.get("before") for state in controller.state.hosts().values())
    assert controller.state.last()["hosts"]["a"]["state"] == "done"


@pytest.mark.parametrize(
    ("routed", "left_by", "others"),
    [(False, {}, {}), (True, {"b": ["rollout"]}, {}), (True, {}, {"c": {"plan": PLAN, "served": "old"}})],
)
def test_one_that_another_playbook_did_not_bring_to_its_end_goes_on(
    controller: Controller, routed: bool, left_by: dict[str, list[str]], others: dict[str, Any]
) -> None:
    found = {**interrupted(controller), **others}
    arguments = {"hosts": found, "all_hosts": [*found], "batches": [1], "max_failures": 0}
    arranged = vllm_rollout.arrange(controller.state, {**arguments, "routed": routed, "left_by": left_by}, check=False)
    assert any("Goes on" in line for line in arranged["lines"])
    assert arranged["order"][0] == "b"


@pytest.mark.parametrize(("settled", "expected"), [(True, "2"), (False, "1")])
def test_what_gets_requests_is_a_place_to_go_back_to_whoever_made_it(
    controller: Controller, settled: bool, expected: str
) -> None:
    interrupted(controller)
    noted = controller.note("b", "begun", before="2", wish=wish_of(PLAN), settled=settled)
    assert noted["before"]["deployment"] == expected


def test_a_host_that_gets_no_requests_is_kept_for_the_next_rollout_and_does_not_count_there(
    controller: Controller,
) -> None:
    controller.arrange("a", "b")
    controller.note("a", "begun", before="1")
    controller.note("a", "failed", why="boom", out=True)
    controller.judge()
    told = controller.tell()
    assert (told["left"], controller.state.settings()) == ([], {})
    assert "  get no requests until a next rollout has verified them: a" in told["lines"]
    # Another one, without it: nothing of it stops that.
    controller.arrange("b")
    controller.note("b", "begun")
    controller.note("b", "done")
    assert controller.judge()["stop"] == ""
    told = controller.tell()
    assert not told.get("failed") and "  get no requests until a next rollout has verified them: a" in told["lines"]
    # And the next one that has it.
    assert controller.arrange(same=("a", "b"))["order"] == ["a"]
    assert controller.note("a", "begun")["before"]["deployment"] == "1"
    controller.note("a", "done")
    assert not controller.tell().get("failed")
    assert controller.state.hosts() == {}


def test_a_host_that_gets_no_requests_and_left_the_inventory_is_forgotten(controller: Controller) -> None:
    controller.arrange("a", "b")
    controller.note("a", "failed", why="boom", out=True)
    controller.judge()
    controller.tell()
    controller.arrange("b", inventory=["b"])
    assert list(controller.state.hosts()) == ["b"]


def test_whom_the_router_knows_as_left_has_a_turn_without_any_state(controller: Controller) -> None:
    arranged = controller.arrange(same=("a", "b"), left_by={"a": [], "b": ["rollout"]})
    assert arranged["order"] == ["b"]


def test_what_a_canary_would_be_held_against_is_looked_for(controller: Controller, tmp_path: Path) -> None:
    served = {"image_id": "sha256:1", "plan": {"precision": "fp8"}}
    gates = {"floors": ["gsm8k"], "limits": [], "baseline_for": served}

    def said(stages: tuple[str, ...] = ("basic", "accuracy", "performance"), **parts: Any) -> list[str]:
        hosts = {"a": {"plan": PLAN, "changes": CHANGES, "gates": {**gates, **parts}}}
        arguments: dict[str, Any] = {"hosts": hosts, "stages": list(stages), "baseline_dir": str(tmp_path)}
        lines: list[str] = controller.arrange(check=True, all_hosts=["a"], **arguments)["lines"]
        return [line for line in lines if "against nothing" in line]

    assert len(said()) == 1 and "performance has no stored baseline" in said()[0]
    assert (said(limits=["output_throughput"]), said(("basic",))) == ([], [])
    assert len(said(floors=[], baseline_for={})) == 2
    stored = {"schema_version": 1, "date": "2026-11-22", "points": [], "of": {**served, "load": {"input_len": 1}}}
    (tmp_path / "0123.json").write_text(json.dumps(stored), encoding="utf-8")
    assert said() == []
    assert len(said(baseline_for={**served, "image_id": "sha256:2"})) == 1
    hosts = {"a": {"plan": PLAN, "changes": CHANGES, "gates": {**gates, "floors": []}}}
    stages = ["basic", "accuracy", "performance"]
    refused = controller.arrange(hosts=hosts, all_hosts=["a"], stages=stages, require_gates=True)
    assert refused["stop"].startswith("vllm_rollout_require_gates is true") and not controller.folder.exists()


def test_what_was_held_against_nothing_is_told(controller: Controller) -> None:
    controller.arrange("a")
    controller.note("a", "begun")
    controller.note("a", "done", ungated=["accuracy had no floor"])
    assert "  held against nothing: a: accuracy had no floor" in controller.tell()["lines"]


def test_a_canary_held_against_nothing_fails_where_that_is_required(controller: Controller) -> None:
    def checked(**parts: Any) -> dict[str, Any]:
        arguments = {"stages": ["accuracy"], "accuracy": [], "performance": [], "require_gates": False, **parts}
        return vllm_rollout.check_gates(controller.state, arguments, check=False)

    assert checked() == {"ungated": ["accuracy had no floor"]}
    assert checked(accuracy=[{"gates": [{}]}], require_gates=True) == {"ungated": []}
    with pytest.raises(GpufleetError, match=r"^vllm_rollout_require_gates is true, and accuracy had no floor\.$"):
        checked(require_gates=True)


def test_what_the_preparation_found_is_described(controller: Controller) -> None:
    arguments: dict[str, Any] = {
        "plan": {"precision": "fp8"},
        "info": {"servers": [{"phase": "serving"}], "deployments": [{"id": "2", "current": True}]},
        "rehearsed": {"replicas": [{"why": CHANGES}], "removed": []},
        "floors": {"fp8": {"gsm8k": {}}},
        "tasks": ["gsm8k"],
        "limits": [],
    }
    found = vllm_rollout.describe(controller.state, arguments, check=False)
    assert (found["changes"], found["serves"], found["gates"]["floors"]) == (CHANGES, True, ["gsm8k"])
    assert found["before"] == {"deployment": "2", "baseline_for": {}, "wish": ""}
    # A host that goes back is not verified as a canary.
    back = vllm_rollout.describe(controller.state, {**arguments, "plan": {}, "rehearsed": {}}, check=False)
    assert back == {"changes": [], "serves": True, "before": found["before"]}
    assert not controller.folder.exists()


def test_the_way_back_is_told_by_the_last_rollout(controller: Controller) -> None:
    old = {"id": "1", "time": "2020-01-01T00:00:00Z", "current": False, "rolled_back_to": ""}
    new = {"id": "2", "time": "2999-01-01T00:00:00Z", "current": True, "rolled_back_to": ""}

    def back(host: str, *deployments: dict[str, Any]) -> tuple[str, bool]:
        arguments = {"host": host, "info": {"deployments": list(deployments)}}
        found = vllm_rollout.way_back(controller.state, arguments, check=False)
        return found["to"], found["stays"]

    assert back("a", new, old) == ("", False)
    controller.arrange("a", "b")
    controller.note("a", "begun", before="1")
    controller.note("a", "done", after={"deployment": "2"})
    stays = {**old, "current": True}
    assert (back("a", new, old), back("b", stays)) == (("1", False), ("1", True)), "under way"
    controller.note("b", "failed", why="boom")
    controller.tell()
    assert (back("a", new, old), back("b", stays)) == (("1", False), ("1", True)), "ended"
