# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout will do and what became of it, as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import fold, in_order
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout import (
    BEGUN,
    DONE,
    FAILED,
    PENDING,
    ROLLED_BACK,
    Rollout,
    still_out,
)


def arranged_lines(rollout: Rollout) -> list[str]:
    """Return the lines that say what a rollout is going to do."""
    order = rollout.order
    total = sum(map(len, (order, rollout.done, rollout.same, rollout.refused, rollout.unreachable)))
    sizes = ", ".join(str(len(batch)) for batch in rollout.batches)
    lines = [
        f"{_hosts(total)}: {len(order)} to change"
        + (f" in {len(rollout.batches)} batch{'es' * (len(rollout.batches) != 1)} ({sizes})" if order else "")
    ]
    if rollout.canaries:
        lines.append(f"  canary: {fold(rollout.canaries)}")
        lines += [f"  the canary is held against nothing: {text}" for text in rollout.ungated]
    if rollout.left:
        lines.append(f"  left without requests by a run that did not end: {fold(rollout.left)}")
    if rollout.dark:
        lines.append(f"  first, because they do not serve: {fold(rollout.dark)}")
    lines += [f"  {fold(hosts)} {text}" for text, hosts in _by_text(rollout.notes)]
    for text, names in (("done before", rollout.done), ("nothing to do", rollout.same)):
        if names:
            lines.append(f"  {text}: {fold(names)}")
    if rollout.unreachable:
        lines.append(f"  not reachable, left out: {fold(rollout.unreachable)}")
    lines += _reasons("cannot be changed", rollout.refused)
    if rollout.stop:
        lines.append(f"Nothing is changed: {rollout.stop.rstrip('.')}.")
    return lines


def told_lines(states: Mapping[str, Mapping[str, Any]], stop: str) -> list[str]:
    """Return the lines that say what became of a rollout."""
    by_state: dict[str, list[str]] = {}
    for host, state in states.items():
        by_state.setdefault(str(state["state"]), []).append(host)
    words = {
        DONE: "changed, and not brought back yet" if stop else "changed and verified",
        ROLLED_BACK: "changed, then brought back",
        PENDING: "not reached, left as they were",
        BEGUN: "begun and not ended",
    }
    lines = [f"The rollout was stopped: {stop.rstrip('.')}."] if stop else []
    for name, text in words.items():
        if by_state.get(name):
            lines.append(f"  {text}: {fold(by_state[name])} ({_hosts(len(by_state[name]))})")
    kept = {host: str(states[host]["why"]) for host in by_state.get(DONE, []) if stop and states[host].get("why")}
    failed = {host: str(states[host]["why"]) for host in by_state.get(FAILED, [])}
    lines += _reasons("not brought back", kept) + _reasons("failed", failed)
    ungated = {host: "; ".join(states[host].get("ungated") or []) for host in by_state.get(DONE, [])}
    lines += _reasons("held against nothing", {host: text for host, text in ungated.items() if text})
    if still_out(states):
        lines.append(f"  get no requests until a next rollout has verified them: {fold(still_out(states))}")
    return lines


def _reasons(what: str, reasons: Mapping[str, str]) -> list[str]:
    """Return each reason once, with its hosts."""
    return [f"  {what}: {fold(hosts)}: {reason}" for reason, hosts in _by_text(reasons)]


def _by_text(texts: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Return each text once with its hosts, the one of most hosts first."""
    hosts_of: dict[str, list[str]] = {}
    for host, text in texts.items():
        hosts_of.setdefault(" ".join(text.split()), []).append(host)
    return sorted(hosts_of.items(), key=lambda item: (-len(item[1]), in_order(item[1])[0]))


def _hosts(count: int) -> str:
    return f"{count} host{'s' * (count != 1)}"
