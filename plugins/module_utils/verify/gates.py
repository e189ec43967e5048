# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges measurements: floors, ceilings, regressions against a baseline, and hosts that differ from their equals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

# Metrics compared with a baseline, and whether more is better.
COMPARED = {"output_throughput": True, "median_ttft_ms": False, "median_tpot_ms": False}
# So many median absolute deviations are as many standard deviations of a normal distribution.
MAD_TO_STD = 1.4826
FEWEST_EQUALS = 3
# Noise may widen the tolerance of a regression to as many times itself.
MOST_NOISE = 3
CUT_SHORT = ": answers were cut short, as when the server ends a stream with an error; its log tells why"

Gate = dict[str, Any]


def gate(kind: str, metric: str, value: float | None, limit: float, passed: bool, text: str) -> Gate:
    """Return one judgement as data; C(text) is a sentence for people, with both numbers in it."""
    return {"kind": kind, "metric": metric, "value": value, "limit": limit, "passed": passed, "text": text}


def accuracy_gates(
    scores: Sequence[Mapping[str, Any]],
    floors: Mapping[str, Mapping[str, float]],
    standard_errors: float,
    expected: Collection[str] = (),
) -> list[Gate]:
    """Return a judgement of each score that has a floor, and a failed one for each floor without a score.

    Args:
        scores: what results.accuracy_scores returned.
        floors: task to metric (as C(exact_match,strict-match)) to floor.
        standard_errors: by how many standard errors of the score it may lie below the floor.
        expected: tasks that ought to have a score; the floors of others that have none do not count.
    """
    by_name = {(score["task"], score["metric"]): score for score in scores}
    tasks = {score["task"] for score in scores}
    gates = []
    for task, metrics in floors.items():
        if task not in tasks and task not in expected:
            continue
        for metric, floor in metrics.items():
            score = by_name.get((task, metric))
            name = f"{task} {metric}"
            if score is None:
                known = ", ".join(sorted(known for of, known in by_name if of == task))
                text = f"{name}: lm_eval gives no such metric; it gives {known or f'no score of {task} at all'}"
                gates.append(gate("accuracy", name, None, floor, False, text))
                continue
            gates.append(_accuracy_gate(name, score, floor, standard_errors))
    return gates


def _accuracy_gate(name: str, score: Mapping[str, Any], floor: float, standard_errors: float) -> Gate:
    value, stderr = score["value"], score["stderr"] or 0.0
    below = floor - value
    passed = below <= standard_errors * stderr
    error = f" ± {stderr:.4f}" if score["stderr"] is not None else ""
    text = f"{name} = {value:.4f}{error}, floor {floor:.4f}"
    if below > 0:
        how = f"{below / stderr:.1f} standard errors" if stderr else f"{below:.4f}, with no standard error,"
        text += f": {how} below it, {standard_errors:g} allowed"
    return gate("accuracy", name, value, floor, passed, text)


def limit_gates(
    figures: Mapping[str, float], floors: Mapping[str, float], ceilings: Mapping[str, float], where: str
) -> list[Gate]:
    """Return a judgement of each figure that has a floor or a ceiling; a figure that is not there fails.

    Args:
        figures: names to means.
        floors: names to the least allowed value.
        ceilings: names to the greatest allowed value.
        where: at what the figures were measured, such as C(concurrency 8).
    """
    gates = []
    for kind, limits in (("floor", floors), ("ceiling", ceilings)):
        for name, limit in limits.items():
            value = figures.get(name)
            if value is None:
                text = f"{name} ({kind} {limit:g}) was not measured; measured are {', '.join(sorted(figures))}"
                gates.append(gate(kind, name, None, limit, False, text))
                continue
            passed = value >= limit if kind == "floor" else value <= limit
            text = f"{name} = {value:.6g} at {where}, {kind} {limit:g}"
            gates.append(gate(kind, name, value, limit, passed, text))
    return gates


def requests_gate(completed: float, failed: float, where: str) -> Gate:
    """Return the judgement that every request of a run must be answered, and that there were any."""
    text = f"{completed:.0f} requests answered, {failed:.0f} failed at {where}"
    return gate("requests", "failed", failed, 0, completed > 0 and not failed, text)


def tokens_gate(arrived: float, wanted: float, where: str) -> Gate:
    """Return the judgement that every answer had its whole length: one that breaks off counts as answered elsewhere."""
    passed = arrived >= wanted
    text = f"{arrived:.0f} of {wanted:.0f} output tokens arrived at {where}"
    return gate("tokens", "total_output_tokens", arrived, wanted, passed, text + CUT_SHORT * (not passed))


def regression_gates(
    points: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    *,
    tolerance: float,
    standard_errors: float,
) -> list[Gate]:
    """Return a judgement of each compared metric at each concurrency that the baseline has.

    A metric has regressed when it is worse than the baseline's mean by more than C(tolerance) and by more than what is
    known as noise as well: C(standard_errors) standard errors of the difference, told from the stored runs and servers
    alone, because a measurement that scatters must not excuse itself, and never more than MOST_NOISE times
    C(tolerance). One that the baseline has and this measurement lacks fails, and so does a baseline with which nothing
    can be compared.

    Args:
        points: C(concurrency), C(runs) and C(summary) (name to C(mean) and C(std)) of this measurement.
        baseline: what baseline.reference returned; the same, and maybe C(servers) and C(spread) between them.
        tolerance: share of the baseline, such as 0.05.
        standard_errors: how many of them count as noise.
    """
    stored = {point["concurrency"]: point for point in baseline}
    gates = []
    for point in points:
        before = stored.get(point["concurrency"])
        for name, more_is_better in COMPARED.items():
            if not before or name not in before["summary"]:
                continue
            if name in point["summary"]:
                gates.append(_regression(name, point, before, more_is_better, tolerance, standard_errors))
            else:
                gates.append(_lacking(name, point, before))
    return gates or [nothing_compared(points, baseline)]


def common_concurrency(points: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the concurrencies at which both were measured, in order."""
    return sorted({point["concurrency"] for point in points} & {point["concurrency"] for point in baseline})


def _lacking(name: str, point: Mapping[str, Any], before: Mapping[str, Any]) -> Gate:
    mean = before["summary"][name]["mean"]
    text = f"{name} was not measured at concurrency {point['concurrency']}, baseline {mean:.6g}"
    return gate("regression", name, None, mean, False, text)


def nothing_compared(points: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> Gate:
    """Return the failed gate of a measurement that shares no figure with the baseline; see regression_gates."""
    stored = sorted({point["concurrency"] for point in baseline})
    if stored and not common_concurrency(points, baseline):
        text = (
            f"nothing was compared with the baseline: it has concurrency {_listed(stored)}, measured was"
            f" {_listed([point['concurrency'] for point in points])}; set vllm_benchmark_concurrency:"
            f" [{_listed(stored)}]"
        )
    else:
        text = (
            f"nothing was compared with the baseline: it has none of {', '.join(COMPARED)}; store a new one with"
            " vllm_benchmark_save_baseline: true"
        )
    return gate("regression", "concurrency", None, max(stored, default=0), False, text)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _regression(
    name: str,
    point: Mapping[str, Any],
    before: Mapping[str, Any],
    more_is_better: bool,
    tolerance: float,
    standard_errors: float,
) -> Gate:
    now, old = point["summary"][name], before["summary"][name]
    worse = (old["mean"] - now["mean"]) * (1 if more_is_better else -1)
    noise = standard_errors * _noise(old, len(before["runs"]), len(point["runs"]))
    tolerated = tolerance * old["mean"]
    allowed = max(tolerated, min(noise, MOST_NOISE * tolerated))
    servers = before.get("servers", 1)
    known = [f"noise of {len(before['runs'])} runs"] if len(before["runs"]) > 1 else []
    known += [f"spread of {servers} servers"] if servers > 1 else []
    included = f"{' and '.join(known)} included" if known else "one run"
    text = (
        f"{name} = {now['mean']:.6g} at concurrency {point['concurrency']}, baseline {old['mean']:.6g}:"
        f" {_percent(abs(worse), old['mean'])} {'worse' if worse > 0 else 'better'},"
        f" {_percent(allowed, old['mean'])} allowed ({included})"
    )
    return gate("regression", name, now["mean"], old["mean"], worse <= allowed, text)


def _noise(old: Mapping[str, float], before: int, now: int) -> float:
    """Return the standard error of the difference to a stored figure, from the numbers of runs before and now."""
    within = old["std"] * math.sqrt(1 / before + 1 / now) if before and now else 0.0
    return math.hypot(within, old.get("spread", 0.0))


def _percent(part: float, whole: float) -> str:
    return f"{part / whole * 100:.1f} %" if whole else "?"


def outliers(values: Mapping[str, float], tolerance: float) -> dict[str, str]:
    """Return the names whose value differs from their equals', each with a sentence.

    A value is an outlier when it differs from the median of the others by more than C(tolerance) of it and by more than
    three of their standard deviations, told robustly from the median absolute deviation. The value itself is left out
    of both: among three it would be half of the spread that it is judged by. Fewer than three equals tell nothing.
    """
    if len(values) < FEWEST_EQUALS:
        return {}
    found = {}
    for name, value in values.items():
        others = [entry for other, entry in values.items() if other != name]
        median = statistics.median(others)
        spread = MAD_TO_STD * statistics.median(abs(entry - median) for entry in others)
        if abs(value - median) > max(tolerance * median, 3 * spread):
            share = (value - median) / median * 100
            found[name] = f"{value:,.1f}, {share:+.1f} % from the median {median:,.1f} of its {len(others)} equals"
    return found


def failed(gates: Sequence[Gate]) -> list[str]:
    """Return the sentences of the judgements that failed."""
    return [entry["text"] for entry in gates if not entry["passed"]]


def verdict(result: dict[str, Any], *, fail: bool) -> dict[str, Any]:
    """Return a task's result with C(passed), and where one of its C(gates) failed, with C(error) and maybe C(failed).

    Args:
        result: with C(gates).
        fail: whether a failed gate fails the task.
    """
    sentences = failed(result["gates"])
    if not sentences:
        return {**result, "passed": True}
    error = failure(sentences)
    judged = {**result, "passed": False, "msg": error.as_text(), "error": error.as_result()}
    return {**judged, "failed": True} if fail else judged


def failure(sentences: Sequence[str]) -> GpufleetError:
    """Return the error for judgements that failed."""
    count = len(sentences)
    return GpufleetError(
        f"{count} gate{'s' if count > 1 else ''} failed: {'; '.join(sentences)}.",
        name="gates-failed",
        remedy="Find out why the server does worse, or, if this is what it can do, change the gate's variable.",
        details={"failed": list(sentences)},
    )
