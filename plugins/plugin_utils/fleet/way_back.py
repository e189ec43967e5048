# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts of a stopped rollout go back, and to what the playbook rollback takes a host."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import in_order
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout import (
    BEGUN,
    DONE,
    FAILED,
    OUT,
    PENDING,
    ROLLED_BACK,
)


def to_bring_back(states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the hosts that a stopped rollout has changed, in the order in which they are brought back.

    First those whose turn did not end: while they get no requests, no other host may be taken out for them.
    """
    return [*_in_state(states, BEGUN), *_in_state(states, DONE)]


def _in_state(states: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    return in_order(host for host, state in states.items() if state["state"] == name)


@dataclasses.dataclass(frozen=True)
class WayBack:
    """How far a host goes back.

    Attributes:
        to: id of the deployment; empty for the last one that served something else than what runs.
        stays: whether there is nothing to go back from: C(to) is what it serves.
        why: for people.
    """

    to: str = ""
    stays: bool = False
    why: str = ""


def find_way_back(
    state: Mapping[str, Any], began: str, under_way: bool, deployments: Sequence[Mapping[str, Any]], served: str
) -> WayBack:
    """Return how far a host goes back where no variable says so: before the last rollout, and no further.

    Whatever was deployed by other means since then is gone back from one by one.

    Args:
        state: of the host in the last rollout: C(state), C(wish), C(before) and C(after); empty if it had no part in
            it.
        began: when that one began; empty if there was none.
        under_way: whether it has not ended.
        deployments: of the host, the newest first, as the module vllm_server_info returns them.
        served: digest of what was wished when what it serves was deployed, see rollout.wish_of; empty if that
            is not known.
    """
    current = next((entry for entry in deployments if entry.get("current")), None)
    if not began or current is None:
        return WayBack()
    name = str(state.get("state") or "")
    after = str((state.get("after") or {}).get("deployment") or "")
    # Of a rollout that went on with another wish, a host may wait for a second turn.
    touched = name in (DONE, BEGUN, FAILED, OUT, ROLLED_BACK) or current["id"] == after
    before = str((state.get("before") or {}).get("deployment") or "") if touched else ""
    rollout = f"the rollout that began at {began}"
    if before:
        if before in (current["id"], current.get("rolled_back_to")):
            return WayBack(current["id"], True, f"serves what it served before {rollout}, and stays so")
        if current["id"] == after or (name != DONE and (under_way or name == OUT)):
            return WayBack(before, False, f"goes back to what it served before {rollout}")
    elif (name == PENDING and served not in ("", state.get("wish"))) or _before(str(current.get("time") or ""), began):
        return WayBack(
            current["id"], True, f"stays as it is: {rollout} has not changed it (vllm_rollback_to goes further back)"
        )
    return WayBack()


def _before(first: str, second: str) -> bool:
    """Return whether a time is before another one; false where one cannot be read."""
    try:
        one, other = (datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (first, second))
        return one < other
    except (ValueError, TypeError):
        return False
