# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of a rolling change, for fleets of a size that no test can have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import rollout, rollout_lines, way_back
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout import Prepared

DEFAULT = [1, "10%", "30%", "100%"]
HOPPER: dict[str, Any] = {"model": "m", "precision": "fp8", "replicas": [{"name": "vllm-0", "gpus": [0]}]}
BLACKWELL = {**HOPPER, "precision": "fp4"}


def fleet(hopper: int, blackwell: int = 0, **parts: Any) -> dict[str, Prepared]:
    """Return so many hosts of two kinds, all of which would be changed."""
    found = {"changes": ["config.max-num-seqs: 256 -> 128"], **parts}
    hosts = {f"h200-{number:03}": Prepared(plan=HOPPER, **found) for number in range(1, hopper + 1)}
    hosts.update({f"b200-{number:02}": Prepared(plan=BLACKWELL, **found) for number in range(1, blackwell + 1)})
    return hosts


def arrange(hosts: dict[str, Prepared], **parts: Any) -> rollout.Rollout:
    """Arrange a rollout of these hosts by the defaults."""
    arguments: dict[str, Any] = {"unreachable": [], "states": {}, "sizes": DEFAULT, "max_failures": 0, **parts}
    return rollout.arrange(hosts, **arguments)


def state(hosts: dict[str, Prepared], host: str, name: str) -> dict[str, Any]:
    """Return what an earlier run left of a host."""
    return {"state": name, "wish": hosts[host].wish(), "canary": False, "why": ""}


def test_200_hosts_go_one_then_a_tenth_then_a_third_then_the_rest() -> None:
    found = arrange(fleet(200))
    assert [len(batch) for batch in found.batches] == [1, 20, 60, 119]
    assert found.canaries == ["h200-001"]
    assert sorted(found.order) == sorted(fleet(200))
    assert (found.stop, found.same, found.done) == ("", [], [])


def test_every_kind_comes_up_early_and_by_its_share() -> None:
    found = arrange(fleet(160, 40))
    kinds = [["b200" if host.startswith("b200") else "h200" for host in batch] for batch in found.batches]
    assert found.canaries == ["h200-001"]
    assert kinds[1][0] == "b200"
    shares = [batch.count("b200") / len(batch) for batch in kinds[1:]]
    assert all(0.15 <= share <= 0.3 for share in shares), shares


def test_hosts_that_cannot_take_part_are_named_and_left_out() -> None:
    hosts = fleet(200)
    hosts["h200-007"] = Prepared(plan=HOPPER)
    hosts["h200-008"] = Prepared(error="The image is missing.")
    dead = [f"h200-{number}" for number in (301, 302, 303)]
    found = arrange(hosts, unreachable=dead, max_failures="1%")
    assert (found.same, found.unreachable, list(found.refused)) == (["h200-007"], dead, ["h200-008"])
    assert len(found.order) == 198
    lines = rollout_lines.arranged_lines(found)
    assert lines[0] == "203 hosts: 198 to change in 4 batches (1, 19, 59, 119)"
    assert "  not reachable, left out: h200-[301:303]" in lines
    assert "  nothing to do: h200-007" in lines
    assert "  cannot be changed: h200-008: The image is missing." in lines


def test_nothing_is_changed_when_too_many_hosts_could_not_take_the_change() -> None:
    hosts = {**fleet(10), "h200-004": Prepared(error="The disk is full.")}
    found = arrange(hosts)
    assert "1 of 10 hosts cannot be changed" in found.stop
    assert rollout_lines.arranged_lines(found)[-1].startswith("Nothing is changed: 1 of 10 hosts")
    assert arrange(hosts, max_failures=1).stop == ""
    assert arrange(hosts, max_failures="10%").stop == ""


def test_an_interrupted_rollout_goes_on_where_it_stopped() -> None:
    """One canary and 14 of the second batch are done, two more had begun: no canary again, the batch is completed."""
    hosts = fleet(200)
    done = [f"h200-{number:03}" for number in range(1, 16)]
    hosts.update({host: Prepared(plan=HOPPER) for host in done})
    states = {host: state(hosts, host, rollout.DONE) for host in done}
    states.update({host: state(hosts, host, rollout.BEGUN) for host in ("h200-150", "h200-016")})
    found = arrange(hosts, states=states)
    assert [len(batch) for batch in found.batches] == [6, 60, 119]
    assert found.batches[0][:2] == ["h200-016", "h200-150"]
    assert (found.canaries, found.done, found.same) == ([], done, [])


def test_a_host_that_had_begun_is_gone_through_again_even_if_it_has_its_servers() -> None:
    """It may not be verified, and the router may still keep requests from it."""
    hosts = {"h200-001": Prepared(plan=HOPPER), "h200-002": Prepared(plan=HOPPER, changes=["x"])}
    found = arrange(hosts, states={"h200-001": state(hosts, "h200-001", rollout.BEGUN)})
    assert found.batches == [["h200-001"], ["h200-002"]]
    assert found.canaries == ["h200-001"]


@pytest.mark.parametrize(
    ("left", "changes", "has_a_turn"),
    [
        (rollout.BEGUN, [], True),
        (rollout.BEGUN, ["x"], True),
        (rollout.OUT, [], True),
        (rollout.FAILED, [], True),
        (rollout.FAILED, ["x"], True),
        (rollout.DONE, [], False),
        (rollout.PENDING, [], False),
    ],
)
def test_a_host_that_may_be_drained_has_a_turn_whatever_is_wished_now(
    left: str, changes: list[str], has_a_turn: bool
) -> None:
    """It was interrupted, then the inventory was taken back: nothing is to be replaced, but it is to be put back."""
    hosts = {"h200-001": Prepared(plan=HOPPER, changes=changes)}
    other = {"state": left, "wish": "0123456789abcdef", "canary": False, "why": ""}
    assert (arrange(hosts, states={"h200-001": other}).order == ["h200-001"]) is has_a_turn


def test_those_that_get_no_requests_come_first() -> None:
    hosts = fleet(4)
    hosts["h200-002"] = Prepared(plan=HOPPER, left_by=["rollout"])
    hosts["h200-003"] = Prepared(plan=HOPPER, changes=["x"], serves=False)
    found = arrange(hosts)
    assert found.order == ["h200-002", "h200-003", "h200-001", "h200-004"]
    assert (found.left, found.dark) == (["h200-002"], ["h200-003"])
    lines = rollout_lines.arranged_lines(found)
    assert "  left without requests by a run that did not end: h200-002" in lines
    assert "  first, because they do not serve: h200-003" in lines
    # One that does not serve and needs nothing is for nobody to change.
    assert arrange({"h200-001": Prepared(plan=HOPPER, serves=False)}).order == []


def test_a_canary_that_is_held_against_nothing_is_said_or_refused() -> None:
    hosts = fleet(2, ungated=["accuracy has no floor"])
    found = arrange(hosts)
    assert (found.stop, found.ungated) == ("", ["accuracy has no floor"])
    assert "  the canary is held against nothing: accuracy has no floor" in rollout_lines.arranged_lines(found)
    assert "accuracy has no floor" in arrange(hosts, require_gates=True).stop
    done = {host: state(hosts, host, rollout.DONE) for host in ("h200-001",)}
    hosts["h200-001"] = Prepared(plan=HOPPER)
    assert arrange(hosts, states=done, require_gates=True).stop == "", "the canary is through already"


def test_a_stopped_rollout_has_those_left_that_it_changed() -> None:
    states = {name: {"state": name} for name in (rollout.DONE, rollout.BEGUN, rollout.PENDING, rollout.FAILED)}
    assert rollout.left_to_do(states, stopped=False) == ["begun", "pending"]
    assert rollout.left_to_do(states, stopped=True) == ["begun", "done"]


BEGAN = "2026-11-23T08:00:00+00:00"
FIRST = {"id": "first", "time": "2026-11-22T16:55:01Z", "current": False, "rolled_back_to": ""}
SECOND = {"id": "second", "time": "2026-11-23T08:10:00Z", "current": True, "rolled_back_to": ""}


def stayed(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a host's history as the current one."""
    return {**entry, "current": True}


@pytest.mark.parametrize(
    ("left", "under_way", "deployments", "expected"),
    [
        # Of an upgrade that was interrupted or stopped.
        (rollout.DONE, True, [SECOND, FIRST], ("first", False)),
        (rollout.BEGUN, True, [SECOND, FIRST], ("first", False)),
        (rollout.BEGUN, True, [stayed(FIRST)], ("first", True)),
        (rollout.FAILED, True, [{**SECOND, "rolled_back_to": "first"}, FIRST], ("second", True)),
        (rollout.PENDING, True, [stayed(FIRST)], ("first", True)),
        ("", True, [stayed(FIRST)], ("first", True)),
        # Of one that has ended.
        (rollout.DONE, False, [SECOND, FIRST], ("first", False)),
        (rollout.OUT, False, [SECOND, FIRST], ("first", False)),
        (rollout.FAILED, False, [stayed(FIRST)], ("first", True)),
        ("", False, [stayed(FIRST)], ("first", True)),
        # What was deployed otherwise since then is gone back from by itself.
        (rollout.DONE, False, [{**SECOND, "id": "third"}, {**SECOND, "current": False}, FIRST], ("", False)),
        (rollout.FAILED, False, [SECOND, FIRST], ("", False)),
        ("", False, [SECOND, FIRST], ("", False)),
        (rollout.PENDING, True, [SECOND, FIRST], ("", False)),
        ("", False, [{**stayed(FIRST), "time": "?"}], ("", False)),
        ("", False, [], ("", False)),
    ],
)
def test_a_host_goes_back_to_before_the_last_rollout_and_no_further(
    left: str, under_way: bool, deployments: list[dict[str, Any]], expected: tuple[str, bool]
) -> None:
    known: dict[str, Any] = {"state": left, "wish": "new", "before": {"deployment": "first"}} if left else {}
    if left == rollout.DONE:
        known["after"] = {"deployment": "second"}
    found = way_back.find_way_back(known, BEGAN, under_way, deployments, "new")
    assert (found.to, found.stays) == expected
    assert bool(found.to) is bool(found.why)


def test_without_a_rollout_a_host_goes_back_by_its_own_history() -> None:
    assert way_back.find_way_back({}, "", False, [SECOND, FIRST], "new") == way_back.WayBack()


def test_a_host_that_waits_for_its_turn_stays_as_another_playbook_left_it_meanwhile() -> None:
    waits = {"state": rollout.PENDING, "wish": "newer"}
    assert way_back.find_way_back(waits, BEGAN, True, [SECOND, FIRST], "new").stays
    assert way_back.find_way_back(waits, BEGAN, True, [SECOND, FIRST], "") == way_back.WayBack()


def test_a_host_that_waits_for_a_second_turn_goes_back_to_before_the_first() -> None:
    waits = {
        "state": rollout.PENDING,
        "wish": "newer",
        "before": {"deployment": "first"},
        "after": {"deployment": "second"},
    }
    assert way_back.find_way_back(waits, BEGAN, True, [SECOND, FIRST], "new").to == "first"


def test_a_rollout_is_carried_out_once_all_hosts_serve_its_wish_and_get_requests() -> None:
    hosts = {name: Prepared(plan=BLACKWELL, served="new") for name in ("a", "b", "c")}
    names = dict(zip(hosts, (rollout.DONE, rollout.BEGUN, rollout.PENDING), strict=True))
    states = {host: {"state": name, "wish": "new"} for host, name in names.items()}
    assert rollout.is_carried_out(states, hosts)
    for other in (
        Prepared(plan=BLACKWELL, served="old"),
        Prepared(plan=BLACKWELL, served="new", left_by=["rollout"]),
        Prepared(plan=BLACKWELL, served="new", serves=False),
    ):
        assert not rollout.is_carried_out(states, {**hosts, "b": other})
    assert not rollout.is_carried_out(states, {"a": hosts["a"]})
    assert not rollout.is_carried_out({**states, "b": {"state": rollout.FAILED, "wish": "new"}}, hosts)


def test_canaries_of_an_earlier_run_count_where_they_take_part_and_the_change_is_proved() -> None:
    hosts = {**fleet(2), "h200-001": Prepared(plan=HOPPER)}
    proved = arrange(hosts, states={"h200-001": state(hosts, "h200-001", rollout.DONE)})
    assert rollout.canaries_of(proved, ["h200-001", "b200-01"]) == ["h200-001"]
    assert rollout.canaries_of(arrange(fleet(3)), ["b200-01"]) == ["h200-001"]


def test_what_an_earlier_rollout_left_does_not_count_for_another_wish() -> None:
    hosts = fleet(2)
    other = {"state": rollout.DONE, "wish": "0123456789abcdef", "canary": True, "why": ""}
    found = arrange(hosts, states={"h200-001": other})
    assert (found.canaries, found.done) == (["h200-001"], [])


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [
        (3, DEFAULT, [1, 1, 1]),
        (10, DEFAULT, [1, 1, 3, 5]),
        (1, DEFAULT, [1]),
        (0, DEFAULT, []),
        (7, [2], [2, 2, 2, 1]),
        (5, ["50%"], [2, 2, 1]),
        (5, ["1", " 100 % "], [1, 4]),
    ],
)
def test_batches_are_cut_as_a_person_would(total: int, sizes: list[Any], expected: list[int]) -> None:
    assert rollout.batch_sizes(total, sizes) == expected


@settings(deadline=None)
@given(
    total=st.integers(0, 500),
    done=st.integers(0, 500),
    sizes=st.lists(st.integers(1, 50) | st.integers(1, 100).map(lambda share: f"{share}%"), min_size=1, max_size=5),
)
def test_every_host_has_one_turn_whatever_was_done_before(total: int, done: int, sizes: list[Any]) -> None:
    pending = [f"h-{number}" for number in range(total)]
    batches = rollout.cut(pending, done, sizes)
    assert [host for batch in batches for host in batch] == pending
    whole = rollout.batch_sizes(total + done, sizes)
    assert all(len(batch) <= max(whole) for batch in batches)
    assert all(batches)


@pytest.mark.parametrize("wrong", [[], [0], ["0%"], ["101%"], ["a few"], [-1], [1.5]])
def test_sizes_that_mean_nothing_are_refused_by_their_variable(wrong: list[Any]) -> None:
    with pytest.raises(GpufleetError, match="vllm_rollout_batches"):
        rollout.batch_sizes(10, wrong)


@pytest.mark.parametrize("wrong", ["some", "-1", "200%", None])
def test_a_number_of_failures_that_means_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(GpufleetError, match="vllm_rollout_max_failures"):
        rollout.allowed(wrong, 10)


def test_a_canary_or_too_many_failures_stop_it() -> None:
    hosts = fleet(40)
    states = {host: state(hosts, host, rollout.DONE) for host in hosts}
    assert rollout.why_stop(states, 0, 40) == ""
    states["h200-012"].update(state=rollout.FAILED, why="The server vllm-0 did not start.")
    assert rollout.why_stop(states, "5%", 40) == ""
    assert "1 of 40 hosts failed, more than vllm_rollout_max_failures (0) allows: h200-012" in rollout.why_stop(
        states, 0, 40
    )
    states["h200-012"]["canary"] = True
    assert rollout.why_stop(states, "5%", 40) == "the canary h200-012 failed: The server vllm-0 did not start."
    assert way_back.to_bring_back(states) == sorted(set(hosts) - {"h200-012"})


def test_a_person_reads_how_it_ended() -> None:
    hosts = fleet(5)
    names = (rollout.FAILED, rollout.ROLLED_BACK, rollout.ROLLED_BACK, rollout.PENDING, rollout.PENDING)
    states = {host: state(hosts, host, name) for host, name in zip(sorted(hosts), names, strict=True)}
    states["h200-001"]["why"] = "scores\nlow"
    assert rollout_lines.told_lines(states, "the canary h200-001 failed: scores low") == [
        "The rollout was stopped: the canary h200-001 failed: scores low.",
        "  changed, then brought back: h200-[002:003] (2 hosts)",
        "  not reached, left as they were: h200-[004:005] (2 hosts)",
        "  failed: h200-001: scores low",
    ]
