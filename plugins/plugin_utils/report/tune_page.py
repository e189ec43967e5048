# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sweep of settings found on one host, as one document: in JSON, HTML, a few lines, and as group_vars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import VERSION
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned, count_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report.document import figure, rendered
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning.goal import (
    PERCENTILES,
    Goal,
    choose,
    closest,
    front,
    points_of,
)

SCHEMA_VERSION = 1
TEMPLATE = Path(__file__).parent / "tune.html.j2"
WINS, KEEPS, MISSES = "wins", "keeps the goal", "misses it"
MEASURED, FAILED, OPEN = "measured", "failed", "not measured"


def build(
    facts: Mapping[str, Any],
    arranged: Sequence[Mapping[str, Any]],
    refused: Sequence[Mapping[str, str]],
    measured: Mapping[str, Mapping[str, Any]],
    goal: Goal,
    margin: float,
) -> dict[str, Any]:
    """Return the document.

    Args:
        facts: of the sweep as a whole: C(host), C(created), C(model), C(precision), C(hardware), C(driver), C(image),
            C(vllm_version), C(gpus_each), C(load).
        arranged: the candidates, the plan as it is first: C(name), C(digest) and C(variables).
        refused: combinations that the planner left out, C(name) and C(why).
        measured: what was found, by digest.
        goal: what is looked for.
        margin: share by which a candidate has to be better than the plan as it is.
    """
    entries = []
    for candidate in arranged:
        found = measured.get(candidate["digest"]) or {}
        entries.append(
            {
                **{name: candidate[name] for name in ("name", "digest", "variables")},
                "status": found.get("status", OPEN),
                "points": points_of(candidate["digest"], found.get("points") or []),
                "error": found.get("error") or {},
                "start_s": found.get("start_s", 0),
                "seconds": found.get("seconds", 0),
                "time": found.get("time", ""),
                "command": found.get("command", ""),
            }
        )
    points = [point for entry in entries for point in entry["points"]]
    choice = choose(points, goal, arranged[0]["digest"], margin)
    best = front(points)
    for point in points:
        misses = goal.misses(point)
        point["front"] = any(point is other for other in best)
        point["judged"] = MISSES if misses else WINS if point is choice.point else KEEPS
        point["misses"] = misses
    names = {entry["digest"]: entry["name"] for entry in entries}
    for point in points:
        point["name"] = names[point["candidate"]]
    winner = next((entry for entry in entries if choice.point and entry["digest"] == choice.point["candidate"]), None)
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "goal": {"text": goal.as_text(), "limits": dict(goal.limits), "percentile": goal.percentile},
        "candidates": entries,
        "refused": [dict(entry) for entry in refused],
        "winner": {"name": winner["name"], "variables": winner["variables"]} if winner else None,
        "point": choice.point,
        "planned": choice.planned,
        "kept": choice.kept,
        "closest": closest(points, goal) if winner is None else None,
        "margin": margin,
    }


def outcome(document: Mapping[str, Any]) -> str:
    """Return what the sweep ended with, in a sentence or two."""
    if document["point"] is None:
        near = document["closest"]
        if near is None:
            return "Nothing was measured that counts, so no settings are recommended."
        return (
            f"No candidate keeps the goal. The closest is {near['name']} at {near['concurrency']} requests at once:"
            f" {'; '.join(near['misses'])}."
        )
    won, planned = document["point"], document["planned"]
    rate = f"{figure(won['throughput'])} {unit(document)} at {won['concurrency']} requests at once"
    if document["kept"]:
        return (
            f"The plan as it is stays: {rate}, and no candidate that keeps the goal is better by"
            f" {document['margin']:.0%} (vllm_tune_margin)."
        )
    if planned is None:
        return f"{won['name']} wins: {rate}. The plan as it is does not keep the goal."
    gain = won["throughput"] / planned["throughput"] - 1 if planned["throughput"] else 0.0
    return f"{won['name']} wins: {rate}, {gain:+.0%} against {figure(planned['throughput'])} of the plan as it is."


def unit(document: Mapping[str, Any]) -> str:
    """Return what a throughput is counted in."""
    return "output tokens/s and GPU" if document["gpus_each"] else "output tokens/s"


def lines(document: Mapping[str, Any]) -> list[str]:
    """Return what a person reads on the terminal."""
    kind = PERCENTILES[document["goal"]["percentile"]]
    rows = [("candidate", "at once", "tok/s", "tok/s each", f"{kind} TTFT", f"{kind} TPOT", "")]
    for entry in document["candidates"]:
        for point in entry["points"]:
            rows.append((entry["name"], *figures(point, kind)))
        if entry["status"] == FAILED:
            rows.append((entry["name"], "", "", "", "", "", f"failed: {entry['error'].get('message', '')}"))
        elif entry["status"] == OPEN:
            rows.append((entry["name"], "", "", "", "", "", OPEN))
    found = [f"Tuning of {document['host']}: {document['goal']['text']}", ""]
    return [*found, *("  " + line for line in aligned(rows)), "", outcome(document)]


def figures(point: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Return a point's columns: load, rates, latencies in ms, and how it was judged."""
    values = point["figures"]
    said = [*(["front"] if point["front"] else []), *([WINS] if point["judged"] == WINS else []), *point["misses"]]
    latencies = (values.get(f"{kind}_{name}_ms") for name in ("ttft", "tpot"))
    return (
        str(point["concurrency"]),
        figure(point["throughput"]),
        figure(point["speed"]),
        *(f"{figure(value)} ms" if value is not None else "-" for value in latencies),
        ", ".join(said),
    )


def html(document: Mapping[str, Any], plot: str, notes: Sequence[str]) -> str:
    """Return the page.

    Args:
        document: what build returned.
        plot: of the Pareto front; empty for none.
        notes: sentences about the page itself.
    """
    return rendered(
        TEMPLATE,
        report=document,
        outcome=outcome(document),
        unit=unit(document),
        kind=PERCENTILES[document["goal"]["percentile"]],
        figures=figures,
        plot=plot,
        notes=notes,
    )


def group_vars(document: Mapping[str, Any]) -> str:
    """Return the winner as a file of variables, with its evidence; empty where nothing wins."""
    won, load = document["point"], document["load"]
    if won is None:
        return ""
    states = [entry["status"] for entry in document["candidates"]]
    evidence = [
        f"Found by the playbook gpufleet.vllm.tune on {document['host']}, {document['created']},"
        f" gpufleet.vllm {VERSION}.",
        f"Model: {document['model']} ({document['precision']}). Hardware: {document['hardware']}"
        + (f", driver {document['driver']}." if document["driver"] else "."),
        f"Image: {document['image']}, vLLM {document['vllm_version']}.",
        f"Goal: {document['goal']['text']}.",
        f"Load: random prompts of {load['input_len']} tokens, answers of {load['output_len']};"
        f" {count_of(load['waves'], 'prompt')} for each request at once, {count_of(load['runs'], 'run')}.",
        f"{count_of(states.count(MEASURED), 'candidate')} measured, {states.count(FAILED)} failed; see tune.html.",
        outcome(document),
        *(f"  {line}" for line in aligned(_evidence(document))),
    ]
    if document["goal"]["limits"]:
        evidence.append(
            f"The goal was kept with up to {won['concurrency']} requests at once on a server; behind a router,"
            f" router_max_requests_per_replica: {won['concurrency']} holds it to that."
        )
    variables = document["winner"]["variables"]
    body = yaml.safe_dump(variables, sort_keys=False, allow_unicode=True) if variables else "{}\n"
    return "---\n" + "".join(f"# {line}".rstrip() + "\n" for line in evidence) + body


def _evidence(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    kind = PERCENTILES[document["goal"]["percentile"]]
    rows: list[tuple[str, ...]] = [("", "at once", "tok/s", "tok/s each", f"{kind} TTFT", f"{kind} TPOT")]
    rows.append(("these settings", *figures(document["point"], kind)[:-1]))
    if document["planned"] and not document["kept"]:
        rows.append(("the plan before", *figures(document["planned"], kind)[:-1]))
    return rows
