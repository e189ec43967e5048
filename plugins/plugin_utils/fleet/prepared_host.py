# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the preparation of a rollout found out about a host: what would change there, and what it serves until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout import wish_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.verification.verify_targets import comparable, floors_of

SERVING = "serving"


def changes_of(rehearsed: Mapping[str, Any]) -> list[str]:
    """Return why servers would be replaced, and which would be removed, of vllm_server's rehearsal."""
    reasons = [reason for replica in rehearsed.get("replicas") or [] for reason in replica["why"]]
    return [*reasons, *(rehearsed.get("removed") or [])]


def serves(info: Mapping[str, Any]) -> bool:
    """Return whether a server of the host serves, of what vllm_server_info returned."""
    return any(server["phase"] == SERVING for server in info.get("servers") or [])


def served_before(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return where to go back to, what was wished there, and which stored benchmark is of what serves now.

    Args:
        info: what vllm_server_info returned.
    """
    plan = info.get("plan") or {}
    deployments = info.get("deployments") or []
    deployment: Mapping[str, Any] = next((each for each in deployments if each["current"]), {})
    known = bool(plan and deployment)
    return {
        "deployment": deployment.get("id", ""),
        "baseline_for": _baseline_for(plan, deployment) if known else {},
        "wish": wish_of(plan) if known else "",
    }


def _baseline_for(plan: Mapping[str, Any], deployment: Mapping[str, Any]) -> dict[str, Any]:
    replica: Mapping[str, Any] = next(iter(plan.get("replicas") or []), {})
    return {"image_id": (deployment.get("image") or {}).get("id", ""), "plan": comparable(plan, replica)}


def gates_of(
    plan: Mapping[str, Any],
    baseline_for: Mapping[str, Any],
    *,
    floors: Mapping[str, Any],
    tasks: Sequence[str],
    limits: Sequence[str],
) -> dict[str, Any]:
    """Return what the verification of the host is held against, as far as is known before.

    Args:
        plan: what the host is going to serve.
        baseline_for: of served_before.
        floors: vllm_accuracy_floors.
        tasks: vllm_accuracy_tasks.
        limits: figures for which there is a floor or a ceiling.
    """
    own = floors_of(floors, str(plan.get("precision") or ""))
    return {
        "floors": [task for task in own if task in tasks],
        "limits": list(limits),
        "baseline_for": dict(baseline_for),
    }
