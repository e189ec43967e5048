# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the verification of a canary is held against: as far as is known before its turn, and as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ACCURACY, PERFORMANCE = "accuracy", "performance"
# Other gates of a benchmark look at the measurement itself.
JUDGING = ("regression", "floor", "ceiling")


def ungated_before(gates: Mapping[str, Any], stages: Sequence[str], stored: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which stages would hold what a host is going to serve against nothing, as far as is known before.

    Args:
        gates: of the host, as prepared_host.Preparation has them.
        stages: of the verification of a canary.
        stored: of each stored benchmark the parts that it is found by.
    """
    found = []
    if ACCURACY in stages and not gates.get("floors"):
        found.append("accuracy has no floor for it (vllm_accuracy_floors, vllm_accuracy_tasks)")
    wanted = gates.get("baseline_for") or {}
    known = bool(wanted) and any(wanted.items() <= parts.items() for parts in stored)
    if PERFORMANCE in stages and not gates.get("limits") and not known:
        found.append(
            "performance has no stored baseline of what it serves now, no floor and no ceiling (playbook verify with"
            " vllm_benchmark_save_baseline: true stores one in vllm_baseline_dir)"
        )
    return found


def ungated_after(
    stages: Sequence[str], accuracy: Iterable[Mapping[str, Any]], performance: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return which stages had nothing to hold the results of a canary against.

    Args:
        stages: of the verification of a canary.
        accuracy: the results of that stage, one for each server.
        performance: the results of that stage, one for each server.
    """
    found = []
    if ACCURACY in stages and not list(_gates(accuracy)):
        found.append("accuracy had no floor")
    if PERFORMANCE in stages and not any(gate.get("kind") in JUDGING for gate in _gates(performance)):
        found.append("performance had no baseline, no floor and no ceiling")
    return found


def _gates(results: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return (gate for result in results for gate in result.get("gates") or [])
