# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Goals, the Pareto front, and which point wins."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning.goal import (
    Goal,
    choose,
    closest,
    front,
    points_of,
    read_goal,
)


def point(candidate: str, throughput: float, speed: float, **more: Any) -> dict[str, Any]:
    figures = {"p90_ttft_ms": more.pop("ttft", 100.0), "p90_tpot_ms": 1000 / speed, "median_ttft_ms": 1.0}
    return {
        "candidate": candidate,
        "concurrency": 8,
        "failed": 0,
        "throughput": throughput,
        "speed": speed,
        "figures": figures,
        **more,
    }


@pytest.mark.parametrize(
    ("value", "limits", "percentile"),
    [
        ("throughput", {}, 90),
        ({"ttft_ms": 2000, "tpot_ms": 50}, {"ttft": 2000.0, "tpot": 50.0}, 90),
        ({"tpot_ms": "50", "percentile": "99"}, {"tpot": 50.0}, 99),
        ('{"e2el_ms": 8000, "percentile": 50}', {"e2el": 8000.0}, 50),
    ],
)
def test_goals_are_read(value: Any, limits: dict[str, float], percentile: int) -> None:
    assert read_goal(value) == Goal(limits, percentile)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("latency", "it must be throughput, or limits such as"),
        ({}, "it must be throughput, or limits such as"),
        ({"percentile": 90}, "it must be throughput, or limits such as"),
        ({"ttft": 2000}, "ttft is no part of a goal, did you mean ttft_ms?"),
        ({"ttft_ms": 0}, "ttft_ms: 0 is not above 0"),
        ({"ttft_ms": "2s"}, "without a unit"),
        ({"ttft_ms": 1, "percentile": 80}, "percentile: 80 is none of 50, 90, 95, 99"),
    ],
)
def test_what_is_no_goal_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        read_goal(value)


def test_points_come_from_the_benchmark() -> None:
    measured = [
        {
            "concurrency": 4,
            "runs": [{"failed": 0}, {"failed": 2}],
            "summary": {
                "output_throughput": {"mean": 800.0},
                "output_throughput_per_gpu": {"mean": 400.0},
                "median_tpot_ms": {"mean": 20.0},
            },
        }
    ]
    (found,) = points_of("abc", measured)
    assert (found["throughput"], found["speed"], found["failed"]) == (400.0, 50.0, 2)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    fast, middle, strong = point("a", 100, 90), point("b", 500, 50), point("c", 900, 10)
    beaten, broken = point("d", 400, 45), point("e", 2000, 100, failed=3)
    assert front([beaten, strong, broken, fast, middle]) == [fast, middle, strong]


def test_of_two_alike_one_is_on_the_front() -> None:
    assert len(front([point("a", 100, 10), point("b", 100, 10)])) == 1


def test_the_most_within_the_limits_wins() -> None:
    points = [point("plan", 300, 40), point("b", 500, 25), point("c", 900, 10)]
    choice = choose(points, Goal({"tpot": 50}), "plan", 0.03)
    assert choice.point is points[1]
    assert choice.planned is points[0]
    assert not choice.kept
    assert choose(points, Goal(), "plan", 0.03).point is points[2]


def test_limits_are_those_of_the_percentile() -> None:
    assert Goal({"ttft": 50}).misses(point("a", 1, 10)) == ["p90 TTFT 100 ms is above 50 ms"]
    assert Goal({"ttft": 50}, percentile=50).misses(point("a", 1, 10)) == []
    assert Goal({"e2el": 50}).misses(point("a", 1, 10)) == ["p90_e2el_ms is not known"]


def test_the_plan_stays_where_nothing_is_better_by_the_margin() -> None:
    points = [point("plan", 100, 10), point("b", 102, 10)]
    assert choose(points, Goal(), "plan", 0.03).kept
    assert not choose(points, Goal(), "plan", 0.01).kept


def test_failed_requests_never_win() -> None:
    choice = choose([point("plan", 100, 10), point("b", 900, 10, failed=1)], Goal(), "plan", 0.0)
    assert choice.point is not None
    assert choice.point["candidate"] == "plan"


def test_where_none_keeps_the_limits_none_wins_and_the_closest_is_told() -> None:
    goal = Goal({"ttft": 50})
    points = [point("plan", 100, 10, ttft=80.0), point("b", 900, 10, ttft=60.0)]
    assert choose(points, goal, "plan", 0.0).point is None
    assert closest(points, goal) is points[1]
    assert closest([], goal) is None


def test_a_plan_that_misses_the_goal_is_no_bar() -> None:
    points = [point("plan", 900, 10), point("b", 100, 40)]
    choice = choose(points, Goal({"tpot": 50}), "plan", 0.5)
    assert (choice.point, choice.planned, choice.kept) == (points[1], None, False)
