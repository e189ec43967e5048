# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what is made of a fleet of stand-in hosts: its samples, its turns, the judgement; the fleet itself runs in
`make test` and `make fleet`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.tests.fleet import interruptions, many
from ansible_collections.gpufleet.vllm.tests.fleet.changes import (
    CHANGES,
    HEADS,
    Change,
    Seen,
    as_it_is,
    limit_of,
    with_forks,
)
from ansible_collections.gpufleet.vllm.tests.fleet.interruptions import Interruption, named, turn_of, unexpected
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import At, Played
from ansible_collections.gpufleet.vllm.tests.fleet.watching import (
    SAMPLES_EVERY_S,
    Sample,
    Turn,
    most_out,
    read_sample,
    seconds_of,
    spans_of,
)

STATISTICS = """# pxname,svname,qcur,qmax,scur,status
replicas,host-01:vllm-0,0,0,2,UP
replicas,host-02:vllm-0,0,0,1,DRAIN
replicas,host-02:vllm-1,0,0,3,UP 1/2
replicas,host-03:vllm-0,0,0,0,DOWN 1/2
other,host-04:vllm-0,0,0,0,DOWN
"""


def test_a_host_is_out_unless_all_its_servers_are_up() -> None:
    found = read_sample(STATISTICS, 7.0)
    assert found == Sample(7.0, frozenset({"host-02", "host-03"}), {"host-01": 2, "host-02": 4, "host-03": 0})


def test_spans_and_the_most_that_were_out_at_once() -> None:
    moments = [(1.0, "a"), (2.0, "ab"), (3.0, "b"), (4.0, "")]
    samples = [Sample(when, frozenset(out), {}) for when, out in moments]
    assert spans_of(samples) == {"a": (1.0, 2.0 + SAMPLES_EVERY_S), "b": (2.0, 3.0 + SAMPLES_EVERY_S)}
    assert (most_out(samples), most_out([])) == (2, 0)


def test_dockers_times_are_read_with_their_nanoseconds() -> None:
    assert seconds_of("1970-01-01T00:01:00.250000000Z") == 60.25
    assert seconds_of("1970-01-02T00:00:00Z") == 86400


@pytest.mark.parametrize(("hosts", "limit"), [(1, 1), (3, 1), (8, 2), (40, 10)])
def test_a_quarter_and_at_least_one_may_be_out(hosts: int, limit: int) -> None:
    assert limit_of(hosts) == limit


def test_a_small_fleet_goes_through_all_changes_at_each_number_of_forks_and_a_large_one_once() -> None:
    some = CHANGES[:3]
    small = [(change.name, forks) for change, forks in with_forks(some, [5, 50], 3)]
    assert small == [(change.name, forks) for forks in (5, 50) for change in some]
    assert with_forks(some, [5, 50], 40) == list(zip(some, (5, 50, 5), strict=True))


COUNTS = {"sent": 90, "answered": 90, "retried": 0, "refused": 0, "lost": 0, "failed": 0, "reasons": {}}
GOOD = Seen(
    change=CHANGES[0],
    hosts=4,
    forks=5,
    start_s=60.0,
    played=Played("upgrade", 0, "", 0.0, 280.0),
    counts=COUNTS,
    out=1,
    turns={f"host-0{number}": Turn(number * 70.0, number * 70.0 + 66, 60.0) for number in range(4)},
    served={"host-00": 1024},
    wanted={"host-00": 1024},
    left_out=[],
)


def test_a_change_that_went_well_has_no_problem() -> None:
    assert (GOOD.problems(), GOOD.times, GOOD.allowed_s, GOOD.wall_s) == ([], 1.1, 240.0, 276.0)
    assert len(GOOD.row()) == len(HEADS) and GOOD.row()[-1] == "yes"


@pytest.mark.parametrize(
    "change",
    [
        {"played": Played("upgrade", 2, "", 0.0, 1.0)},
        {"counts": {**COUNTS, "lost": 1}},
        {"counts": {**COUNTS, "sent": 0}},
        {"counts": {**COUNTS, "retried": 1}},
        {"out": 2},
        {"served": {"host-00": 0}},
        {"left_out": ["host-02"]},
        {"turns": {**GOOD.turns, "host-03": Turn(210.0, 285.0, 60.0)}},
        {"turns": {**GOOD.turns, "host-03": Turn(280.0, 346.0, 60.0)}},
        {"turns": {f"host-0{number}": turn for number, turn in enumerate(list(GOOD.turns.values())[:3])}},
    ],
)
def test_anything_else_is_named(change: dict[str, Any]) -> None:
    found = dataclasses.replace(GOOD, **change).problems()
    assert len(found) == 1 and found[0].startswith("upgrade, 4 hosts, 5 forks: ")


def test_times_of_servers_that_start_at_once_are_not_judged() -> None:
    slow = {"host-03": Turn(210.0, 600.0, 6.0)}
    assert dataclasses.replace(GOOD, turns={**GOOD.turns, **slow}, start_s=2.0).problems() == []


def test_a_change_without_its_playbook_is_left_out() -> None:
    assert CHANGES[0].possible()
    assert not Change("no", "no_such_playbook", as_it_is).possible()


def step(task: str, action: str, *, host: str = "host-02", play: str = "Change", **rest: Any) -> dict[str, Any]:
    """Return a step as the callback writes it."""
    common = {"nth": 1, "changed": False, "status": "ok"}
    return {"host": host, "task": task, "action": action, "play": play, **common, **rest}


SERVE = step("Serve", "gpufleet.vllm.vllm_server", changed=True)
STEPS = [
    step("Look", "gpufleet.vllm.vllm_server", play="Prepare"),
    step("Begin", "gpufleet.vllm.vllm_rollout"),
    step("Other", "gpufleet.vllm.vllm_rollout", host="host-01"),
    step("Keep", "ansible.builtin.set_fact"),
    step("Copy", "ansible.builtin.copy", status="skipped"),
    SERVE,
    step("Put back", "gpufleet.vllm.router_backend", nth=2),
    step("Look", "gpufleet.vllm.vllm_server", play="End"),
]


def test_the_steps_of_a_turn_are_those_that_may_change_something() -> None:
    assert [one["task"] for one in turn_of(STEPS, "host-02")] == ["Begin", "Serve", "Put back"]
    assert [named(one) for one in STEPS[-2:]] == ["Put back (router_backend, 2)", "Look (vllm_server)"]
    with pytest.raises(SystemExit, match="host-01 had no turn"):
        turn_of(STEPS, "host-01")


@pytest.mark.parametrize(("ends", "status", "problems"), [(True, 2, 0), (True, 0, 1), (False, 2, 1), (None, 2, 0)])
def test_an_interruption_that_did_not_happen_is_a_problem(ends: bool | None, status: int, problems: int) -> None:
    what = Interruption("after Serve", "kill -9", At("host-02", "Serve", 1, "true"), ends)
    assert len(unexpected(what, Played("upgrade", status, "", 0.0, 1.0))) == problems


def test_a_line_for_later_keeps_its_quotes() -> None:
    assert interruptions.later("kill $PLAY", 0.5) == "setsid /bin/sh -c 'sleep 0.5; kill $PLAY' >/dev/null 2>&1 &"


def test_what_is_tried_has_its_own_sizes() -> None:
    assert (many.parse(["changes"]).hosts, many.parse(["changes"]).start) == ([3, 40], 45.0)
    given = many.parse(["short", "--hosts", "4", "--start", "0"])
    assert (given.hosts, given.start, given.forks) == ([4], 0.0, [5, 50])
