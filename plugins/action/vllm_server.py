# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run M(gpufleet.vllm.vllm_server) in the background, show its phases, and say at the end what was done and why."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import duration
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction

HIDDEN = "(hidden)"
MODE = "__vllm_mode"


class ActionModule(LongTaskAction):
    """See LongTaskAction; one line a replica that was not left alone is added."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and say what it did, unless it only compares: who has it compare says what was found."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode and "changed" in result:
            # A task that only looks says that it changed nothing (changed_when), which takes the place of the module's.
            result.setdefault("would_change", bool(result["changed"]))
        if self._templar.template((task_vars or {}).get(MODE, "")) == "compare":
            return result
        host = (task_vars or {}).get("inventory_hostname", "")
        would = "in check mode, so not done: " if self._task.check_mode else ""
        for line in summary(result):
            self._display.display(f"[{host}] {would}{line}")
        return result


def summary(result: dict[str, Any]) -> list[str]:
    """Return what the module did, a line for each replica that was not left alone, with the reasons."""
    lines = []
    for replica in result.get("replicas") or []:
        if replica["action"] == "none":
            continue
        why = f" ({'; '.join(replica['why'])})" if replica["why"] else ""
        ready = f", ready after {_lasted(replica['ready_s'])}" if replica["ready_s"] else ""
        lines.append(f"{replica['name']}: {replica['action']}{why}{ready}")
    lines += [f"{name}: removed" for name in result.get("removed") or []]
    lines += [f"{name}: stopped" for name in result.get("stopped") or []]
    if result.get("rolled_back_to"):
        lines.append(f"runs the deployment {result['rolled_back_to']}" + ("" if lines else ", as before"))
    lines += [f"{name}: takes other keys" for name in result.get("keys_changed") or []]
    drains = result.get("drains") or ((result.get("error") or {}).get("details") or {}).get("drains") or {}
    lines += [f"{name}: {drained(drain)}" for name, drain in sorted(drains.items())]
    return lines + list(result.get("recovered") or [])


def drained(drain: dict[str, Any]) -> str:
    """Return what became of a stopped server's requests, as people say it."""
    if not drain["answered"]:
        return "did not tell of its requests before it was stopped"
    if not drain["running_at_start"] and not drain["refused"]:
        return "had no requests when it was stopped"
    count = {name: _number(drain[name]) for name in ("running_at_start", "finished", "aborted", "refused")}
    refused = f", {count['refused']} new ones turned away" if drain["turned_away"] else ", new ones not turned away"
    return (
        f"had {count['running_at_start']} requests when it was to be stopped: {count['finished']} finished within"
        f" {_lasted(drain['waited_s'])}, {count['aborted']} aborted{refused}"
    )


def _number(value: Any) -> str:
    """Return a number of a result; Ansible hides one in which the value of a short secret occurs behind a text."""
    return str(value) if isinstance(value, (int, float)) else HIDDEN


def _lasted(value: Any) -> str:
    """Return seconds of a result as people say them."""
    return duration(value) if isinstance(value, (int, float)) else HIDDEN
