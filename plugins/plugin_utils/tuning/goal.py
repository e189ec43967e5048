# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sweep of settings looks for, which of its points are on the Pareto front, and which one wins.

A point is what one candidate did under one load: C(candidate) (its digest), C(concurrency), C(failed) requests,
C(throughput) (output tokens a second, for each GPU if there are), C(speed) (output tokens a second that one request
sees, from the median TPOT) and C(figures) (the mean of each figure over the runs).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import mapping_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.variables import number

THROUGHPUT = "throughput"
LATENCIES = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = {50: "median", 90: "p90", 95: "p95", 99: "p99"}
EXAMPLE = f"it must be {THROUGHPUT}, or limits such as {{ttft_ms: 2000, tpot_ms: 50}}"
Point = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """The most output tokens a second, among the loads under which latencies keep their limits.

    Attributes:
        limits: milliseconds by latency, such as C({"ttft": 2000}); none for throughput alone.
        percentile: of the requests that have to keep them.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    percentile: int = 90

    def as_text(self) -> str:
        """Return the goal for people."""
        if not self.limits:
            return "the most output tokens/s"
        limits = " and ".join(f"{name.upper()} {limit:g} ms" for name, limit in self.limits.items())
        return f"the most output tokens/s with {limits} or less for {self.percentile} % of the requests"

    def misses(self, point: Point) -> list[str]:
        """Return why a point does not count, a sentence for each reason."""
        found = [f"{point['failed']:g} requests failed"] if point["failed"] else []
        for name, limit in self.limits.items():
            key = f"{PERCENTILES[self.percentile]}_{name}_ms"
            value = point["figures"].get(key)
            if value is None:
                found.append(f"{key} is not known")
            elif value > limit:
                found.append(f"{PERCENTILES[self.percentile]} {name.upper()} {value:.0f} ms is above {limit:g} ms")
        return found


@dataclass(frozen=True)
class Choice:
    """What a sweep ended with.

    Attributes:
        point: that wins; None if none keeps the limits.
        planned: the best point of the plan as it is, if one counts.
        kept: whether the plan as it is wins because nothing is better by the margin.
    """

    point: Point | None
    planned: Point | None
    kept: bool


def read_goal(value: Any) -> Goal:
    """Read a goal. Raises ValueError, as all readers do."""
    if isinstance(value, str) and value.strip() == THROUGHPUT:
        return Goal()
    try:
        given = mapping_of(value, "limits")
    except ValueError:
        raise ValueError(EXAMPLE) from None
    names = {f"{name}_ms": name for name in LATENCIES}
    limits: dict[str, float] = {}
    percentile = 90
    for key, entry in given.items():
        if key == "percentile":
            percentile = _percentile(entry)
            continue
        if key not in names:
            near = difflib.get_close_matches(str(key), [*names, "percentile"], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)} and percentile"
            raise ValueError(f"{key} is no part of a goal, {hint}; {EXAMPLE}")
        limit = number(entry)
        if limit <= 0:
            raise ValueError(f"{key}: {limit:g} is not above 0; {EXAMPLE}")
        limits[names[key]] = limit
    if not limits:
        raise ValueError(EXAMPLE)
    return Goal(limits, percentile)


def _percentile(value: Any) -> int:
    listed = ", ".join(map(str, PERCENTILES))
    try:
        found = int(number(value))
    except ValueError:
        found = 0
    if found not in PERCENTILES:
        raise ValueError(f"percentile: {value!r} is none of {listed}, which vllm bench tells")
    return found


def points_of(digest: str, measured: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of a candidate.

    Args:
        digest: of the candidate.
        measured: what the module vllm_benchmark returned as C(points).
    """
    found = []
    for entry in measured:
        figures = {name: values["mean"] for name, values in entry["summary"].items()}
        tpot = figures.get("median_tpot_ms") or 0.0
        found.append(
            {
                "candidate": digest,
                "concurrency": entry["concurrency"],
                "failed": sum(run["failed"] for run in entry["runs"]),
                "throughput": figures.get("output_throughput_per_gpu", figures.get("output_throughput", 0.0)),
                "speed": 1000 / tpot if tpot else 0.0,
                "figures": figures,
            }
        )
    return found


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in throughput and in speed, the fastest for one request first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (-point["speed"], -point["throughput"])):
        if not point["failed"] and (not found or point["throughput"] > found[-1]["throughput"]):
            found.append(point)
    return found


def choose(points: Sequence[Point], goal: Goal, planned: str, margin: float) -> Choice:
    """Return the point that wins.

    Args:
        points: of all candidates.
        goal: what is looked for.
        planned: digest of the plan as it is.
        margin: share by which another candidate has to be better than the plan as it is.
    """
    counting = [point for point in points if not goal.misses(point)]
    if not counting:
        return Choice(None, None, kept=False)
    best = _best(counting)
    own = [point for point in counting if point["candidate"] == planned]
    if not own:
        return Choice(best, None, kept=False)
    ours = _best(own)
    kept = best["throughput"] < ours["throughput"] * (1 + margin)
    return Choice(ours if kept else best, ours, kept=kept)


def _best(points: Sequence[Point]) -> Point:
    return max(points, key=lambda point: (point["throughput"], point["speed"]))


def closest(points: Sequence[Point], goal: Goal) -> Point | None:
    """Return the point without failed requests that is least beyond the limits, where none keeps them."""
    key = PERCENTILES[goal.percentile]

    def beyond(point: Point) -> float:
        figures: Mapping[str, float] = point["figures"]
        return max(figures.get(f"{key}_{name}_ms", 1e12) / limit for name, limit in goal.limits.items())

    whole = [point for point in points if not point["failed"]]
    return min(whole, key=beyond) if whole and goal.limits else None
