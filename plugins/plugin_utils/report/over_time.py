# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What verifications measured, run after run: kept as lines of JSON below the report's folder, and told as trends.

A line is one server at one concurrency, or one score, with its host, cards, driver, image and plan. A trend compares
the newest value with the median of the earlier ones of the same cards, image and plan; what changed in between is told.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FILE = os.path.join("history", "results.jsonl")
FIGURES = (
    "output_throughput",
    "request_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "median_itl_ms",
)
# What tells one series of measurements from others, and what may change within it.
SERIES = ("host", "server", "kind", "model", "load", "concurrency", "metric")
CONDITIONS = ("gpus", "driver", "image", "plan")
SHOWN = 20
# Of a plot of one line.
WIDTH, HEIGHT, EDGE = 120, 24, 2


def entries_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of a run.

    Args:
        document: what report.document.build returned.
    """
    return [entry for host in document["hosts"] for entry in _of_host(host, str(document["created"]))]


def _of_host(host: Mapping[str, Any], created: str) -> Iterator[dict[str, Any]]:
    plan = host["plan"]
    image = plan.get("image") or {}
    for stage in ("performance", "accuracy"):
        for item in host["stages"][stage]:
            alike = item.get("comparable") or {}
            common = {
                "at": created,
                "host": host["name"],
                "server": item["server"],
                "kind": stage,
                "model": item.get("model") or plan.get("model", ""),
                "gpus": host["gpus"],
                "driver": host["driver"],
                "image": str(
                    alike.get("image_id")
                    or image.get("digest")
                    or image.get("reference")
                    or image.get("vllm_version")
                    or ""
                ),
                "vllm_version": str(image.get("vllm_version") or ""),
                "plan": _digest(plan),
            }
            for point in item.get("points", []):
                summary = point["summary"]
                figures = {name: summary[name]["mean"] for name in FIGURES if name in summary}
                rest = {"load": _digest(alike.get("load")), "concurrency": point["concurrency"], "figures": figures}
                yield {**common, **rest}
            for score in item.get("scores", []):
                metric = f"{score['task']} {score['metric']}"
                rest = {"load": "", "samples": score.get("samples"), "stderr": score.get("stderr")}
                yield {**common, "metric": metric, **rest, "figures": {"value": score["value"]}}


def _digest(value: Any) -> str:
    """Return a short name of what something is; the GPUs' own identities do not count in a plan."""
    if isinstance(value, Mapping) and "replicas" in value:
        replicas = [{**replica, "gpu_uuids": []} for replica in value["replicas"]]
        value = {**value, "replicas": replicas, "warnings": [], "decisions": []}
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12] if value else ""


def read(folder: str) -> list[dict[str, Any]]:
    """Return the lines below a report's folder; one that cannot be read is left out."""
    found = []
    try:
        with open(os.path.join(folder, FILE), encoding="utf-8") as stream:
            for line in stream:
                try:
                    entry = json.loads(line)
                except ValueError:  # of a run that was killed
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("figures"), dict):
                    found.append(entry)
    except (OSError, UnicodeDecodeError):
        return found
    return found


def append(folder: str, text: str) -> None:
    """Add lines at the end.

    Raises:
        OSError: they cannot be written.
    """
    if not text:
        return
    path = os.path.join(folder, FILE)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def trends(earlier: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how what a run measured has gone over time; nothing of what was measured for the first time.

    Returns:
        for each series C(host), C(server), C(what), C(values) (the last ones, each C(at), C(value) and C(changed)),
        C(value), C(change) (by which share it differs from the median of the earlier ones under the same conditions, or
        None), C(runs) (how many those are) and C(line) (points of a plot).
    """
    by_series: dict[str, list[Mapping[str, Any]]] = {}
    for entry in earlier:
        by_series.setdefault(_series(entry), []).append(entry)
    found = []
    for entry in now:
        before = by_series.get(_series(entry), [])
        figure = _figure(entry)
        values = [other for other in before if figure in other["figures"]]
        if figure and values:
            found.append(_trend(entry, values, figure))
    return found


def _trend(entry: Mapping[str, Any], before: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Any]:
    alike = [other["figures"][figure] for other in before if _conditions(other) == _conditions(entry)]
    value = entry["figures"][figure]
    median = statistics.median(alike) if alike else 0
    shown = [*before, entry][-SHOWN:]
    told = []
    for number, one in enumerate(shown):
        last = shown[number - 1] if number else one
        changed = [name for name in CONDITIONS if one.get(name) != last.get(name)]
        told.append({"at": one["at"], "value": one["figures"][figure], "changed": changed})
    what = entry.get("metric") or f"output tokens/s at concurrency {entry.get('concurrency')}"
    return {
        "host": entry["host"],
        "server": entry["server"],
        "what": what,
        "value": value,
        "values": told,
        "change": (value - median) / median if median else None,
        "runs": len(alike),
        "line": _line([point["value"] for point in told]),
    }


def _line(values: Sequence[float]) -> str:
    """Return the points of a plot of one line, for SVG."""
    low, high = min(values), max(values)
    spread, step = (high - low) or 1.0, (WIDTH - 2 * EDGE) / max(len(values) - 1, 1)
    return " ".join(
        f"{EDGE + number * step:.1f},{HEIGHT - EDGE - (value - low) / spread * (HEIGHT - 2 * EDGE):.1f}"
        for number, value in enumerate(values)
    )


def _figure(entry: Mapping[str, Any]) -> str:
    return next((name for name in ("output_throughput", "value") if name in entry["figures"]), "")


def _series(entry: Mapping[str, Any]) -> str:
    return json.dumps([entry.get(name) for name in SERIES])


def _conditions(entry: Mapping[str, Any]) -> list[Any]:
    return [entry.get(name) for name in CONDITIONS]
