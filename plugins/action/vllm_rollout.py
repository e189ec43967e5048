# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide, on the controller, which hosts of a fleet are changed when, and whether to go on; see the documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import rollout
from ansible_collections.gpufleet.vllm.plugins.module_utils.fleet import in_order
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.rollout_state import RolloutState, now

ARGUMENTS: dict[str, Any] = {
    "step": {"type": "str", "required": True, "choices": ["arrange", "note", "judge", "tell"]},
    "state_dir": {"type": "str", "required": True},
    "hosts": {"type": "dict", "default": {}},
    "all_hosts": {"type": "list", "elements": "str", "default": []},
    "batches": {"type": "list", "elements": "raw", "default": []},
    "max_failures": {"type": "raw", "default": 0},
    "host": {"type": "str", "default": ""},
    "state": {"type": "str", "choices": ["begun", "done", "failed", "rolled-back"]},
    "why": {"type": "str", "default": ""},
    "before": {"type": "dict", "default": {}},
}


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_rollout."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Do one step."""
        steps: dict[str, Callable[..., dict[str, Any]]] = {
            "arrange": arrange,
            "note": note,
            "judge": judge,
            "tell": tell,
        }
        state = RolloutState(arguments["state_dir"])
        arguments["inventory"] = list((variables.get("groups") or {}).get("all") or [])
        found = steps[arguments["step"]](state, arguments, check=bool(self._task.check_mode))
        if found.get("lines"):
            self._display.display("\n".join(found["lines"]))
        return found


def arrange(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Return the batches, and begin the rollout or go on with it.

    A rollout that was stopped, and of which the bringing back was interrupted, has nothing but that left to do.
    """
    hosts = {
        host: rollout.Prepared(
            plan=found.get("plan") or {}, changes=found.get("changes") or [], error=str(found.get("error") or "")
        )
        for host, found in arguments["hosts"].items()
    }
    known, states = state.settings(), state.hosts()
    if known.get("stopped") and not rollout.to_bring_back(states):
        # The run that stopped it did not come to tell so.
        if not check:
            state.end({"result": [str(known["stopped"])]})
        known, states = {}, {}
    for host in _gone(states, arguments):
        # Nothing was done to it, and nothing can be any more.
        if states[host]["state"] == rollout.PENDING:
            del states[host]
            if not check:
                state.drop_host(host)
    unreachable = [host for host in arguments["all_hosts"] if host not in hosts]
    found = rollout.arrange(hosts, unreachable, states, arguments["batches"], arguments["max_failures"])
    lines = rollout.arranged_lines(found)
    if known:
        lines.insert(0, f"Goes on with the rollout that began at {known['began']}.")
    stopped = str(known.get("stopped") or "")
    batches = [] if stopped or found.stop else found.batches
    if not check and not found.stop:
        _keep(state, found, hosts, states, arguments)
    return {
        "lines": lines,
        "order": [host for batch in batches for host in batch],
        "serial": [len(batch) for batch in batches],
        "canaries": rollout.canaries_of(found, known.get("canaries", [])),
        "stop": stopped or found.stop,
        "bring_back": rollout.to_bring_back(states) if stopped else [],
        "done": found.done,
        "same": found.same,
        "refused": found.refused,
        "not_reached": found.unreachable,
    }


def _gone(states: dict[str, dict[str, Any]], arguments: dict[str, Any]) -> list[str]:
    """Return the hosts of a rollout that are not in the inventory, where that is known."""
    inventory = arguments.get("inventory") or list(states)
    return in_order(host for host in states if host not in inventory)


def _keep(
    state: RolloutState,
    found: rollout.Rollout,
    hosts: dict[str, rollout.Prepared],
    states: dict[str, dict[str, Any]],
    arguments: dict[str, Any],
) -> None:
    """Write what was arranged: of a host that is not begun only what it had before stays."""
    known = state.settings()
    if known.get("stopped"):
        return
    for host in found.same:
        state.drop_host(host)
    if not found.order and not found.done:
        return
    canaries = rollout.canaries_of(found, known.get("canaries", []))
    settings = {
        "began": known.get("began") or now(),
        # Those of hosts outside this run stay for the run that goes on with them.
        "canaries": canaries + [host for host in known.get("canaries", []) if host not in arguments["all_hosts"]],
        "total": len(found.order) + len(found.done),
        "largest_batch": max([1, *map(len, found.batches)]),
        "max_failures": arguments["max_failures"],
        "stopped": "",
    }
    state.save_settings(settings)
    for host in found.order:
        state.save_host(
            host,
            state=rollout.BEGUN if states.get(host, {}).get("state") == rollout.BEGUN else rollout.PENDING,
            wish=hosts[host].wish(),
            canary=host in canaries,
            why="",
        )


def note(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Keep what became of one host; what it had before the rollout is kept the first time only."""
    if check:
        return {}
    known = state.hosts().get(arguments["host"], {})
    parts: dict[str, Any] = {"state": arguments["state"], "why": " ".join(arguments["why"].split())}
    before = known.get("before") or arguments["before"]
    state.save_host(arguments["host"], **parts, before=before)
    return {"before": before, "canary": bool(known.get("canary"))}


def judge(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Return whether to go on, and if not, why and which hosts are to be brought back."""
    settings, states = state.settings(), state.hosts()
    if check or not settings:
        return {"stop": "", "bring_back": [], "serial": [1]}
    stop = settings["stopped"] or rollout.why_stop(states, settings["max_failures"], settings["total"])
    if stop and not settings["stopped"]:
        state.save_settings({**settings, "stopped": stop})
    return {
        "stop": stop,
        "bring_back": rollout.to_bring_back(states) if stop else [],
        "serial": [settings["largest_batch"]],
    }


def tell(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Say what became of the rollout, and end it unless hosts are left; fail if one failed."""
    settings, states = state.settings(), state.hosts()
    if check or not settings:
        return {"lines": []}
    stop = str(settings["stopped"])
    lines = rollout.told_lines(states, stop)
    failed = in_order(host for host, found in states.items() if found["state"] == rollout.FAILED)
    left = [host for host, found in states.items() if found["state"] == rollout.BEGUN]
    left += [host for host, found in states.items() if found["state"] == rollout.PENDING and not stop]
    if not left:
        state.end({"result": lines})
    result: dict[str, Any] = {"lines": lines, "stop": stop, "failed_hosts": failed, "left": in_order(left)}
    if stop or failed or left:
        result.update(
            failed=True, msg=_message(lines, left, [host for host in _gone(states, arguments) if host in left])
        )
    return result


def _message(lines: list[str], left: list[str], gone: list[str]) -> str:
    """Return why a rollout failed, in a sentence."""
    message = lines[0].strip()
    if left:
        message += f"; not ended: {', '.join(in_order(left))}"
    if gone:
        message += (
            f". Not in the inventory any more, though the change had begun: {', '.join(gone)}. Put them back, or remove"
            " their files in the folder hosts of vllm_rollout_state_dir if they are gone for good"
        )
    return message
