# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From when on a number is worth an alert: the defaults, and what a person sets instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

# The bounds of vLLM's histogram of the time to the first token, as it writes them. They are the same from 0.12 to 0.33.
TTFT_BOUNDS = (
    *("0.001", "0.005", "0.01", "0.02", "0.04", "0.06", "0.08", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0"),
    *("7.5", "10.0", "20.0", "40.0", "80.0", "160.0", "640.0", "2560.0"),
)
# For each threshold its default, and the least and the largest value that makes sense.
THRESHOLDS: dict[str, tuple[float, float, float]] = {
    "replica_down_minutes": (15, 1, 1440),
    "no_router_minutes": (2, 1, 1440),
    "no_progress_minutes": (5, 1, 1440),
    "queue_length": (20, 1, 1e6),
    "queue_minutes": (10, 1, 1440),
    "kv_cache_share": (0.95, 0.01, 1),
    "kv_cache_minutes": (10, 1, 1440),
    "ttft_goal_seconds": (2.5, 0.001, 2560),
    "ttft_share": (0.95, 0.01, 0.9999),
    "ttft_fast_burn": (14.4, 1, 10000),
    "ttft_slow_burn": (6, 1, 10000),
    "error_share": (0.05, 0.0001, 1),
    "error_count": (5, 1, 1e6),
    "replicas_left": (1, 1, 10000),
    "certificate_days": (14, 1, 3650),
    "disk_free_share": (0.1, 0.001, 1),
    "gpu_reading_minutes": (15, 1, 1440),
    "drift_hours": (24, 1, 720),
    "rollout_minutes": (60, 1, 10080),
}


def read_thresholds(given: Mapping[str, Any]) -> dict[str, float]:
    """Return every threshold: the default, unless another one is given.

    Raises:
        GpufleetError: C(invalid-thresholds), naming every problem at once.
    """
    problems = [
        f"{name}: there is no such threshold; there are {', '.join(THRESHOLDS)}"
        for name in sorted(given.keys() - THRESHOLDS.keys())
    ]
    found = {name: default for name, (default, _least, _most) in THRESHOLDS.items()}
    for name, (_default, least, most) in THRESHOLDS.items():
        if given.get(name) is None:
            continue
        try:
            found[name] = float(given[name])
        except (TypeError, ValueError):
            problems.append(f"{name}: {given[name]!r} is no number")
            continue
        if not least <= found[name] <= most:
            problems.append(f"{name}: {given[name]} is not between {least:g} and {most:g}")
        elif name.endswith(("_minutes", "_hours")) and not found[name].is_integer():
            problems.append(f"{name}: {given[name]} is no whole number, which Prometheus wants for times")
    problems += [] if problems else _together(found)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise GpufleetError(
            f"monitoring_thresholds is not valid:\n{listed}",
            name="invalid-thresholds",
            remedy="Set its keys as said above; those that are left out have their defaults.",
        )
    return found


def ttft_bound(seconds: float) -> str:
    """Return the goal as the bound of the histogram that it has to be; empty where there is none."""
    return next((bound for bound in TTFT_BOUNDS if float(bound) == seconds), "")


def _together(found: Mapping[str, float]) -> list[str]:
    """Return what is wrong with thresholds that are right each by itself."""
    problems = []
    if not ttft_bound(found["ttft_goal_seconds"]):
        bounds = ", ".join(f"{float(bound):g}" for bound in TTFT_BOUNDS)
        problems.append(
            f"ttft_goal_seconds: {found['ttft_goal_seconds']:g} is no bound of vLLM's histogram, which counts requests"
            f" up to {bounds} seconds"
        )
    for name in ("ttft_fast_burn", "ttft_slow_burn"):
        share = found[name] * (1 - found["ttft_share"])
        if share >= 1:
            most = 1 / (1 - found["ttft_share"])
            problems.append(
                f"{name}: {found[name]:g} times the {1 - found['ttft_share']:.4g} of requests that may be late is more"
                f" than all requests, so the alert could never fire; with this ttft_share it has to be below {most:.4g}"
            )
    return problems
