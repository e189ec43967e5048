# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide, on the controller, which hosts of a fleet are changed when, and whether to go on; see the documentation."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import baseline
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import prepared_host, rollout, rollout_lines
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.canary_gates import ungated_after, ungated_before
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import in_order
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.job_runner import refuse_in_job
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.rollout_state import RolloutState, now
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.way_back import find_way_back, to_bring_back

STEPS = ["describe", "arrange", "note", "check_gates", "judge", "tell", "way_back"]
ARGUMENTS: dict[str, Any] = {
    "step": {"type": "str", "required": True, "choices": STEPS},
    "state_dir": {"type": "str", "required": True},
    "hosts": {"type": "dict", "default": {}},
    "all_hosts": {"type": "list", "elements": "str", "default": []},
    "batches": {"type": "list", "elements": "raw", "default": []},
    "max_failures": {"type": "raw", "default": 0},
    "left_by": {"type": "dict", "default": {}},
    "routed": {"type": "bool", "default": False},
    "stages": {"type": "list", "elements": "str", "default": []},
    "baseline_dir": {"type": "str", "default": ""},
    "require_gates": {"type": "bool", "default": False},
    "host": {"type": "str", "default": ""},
    "state": {"type": "str", "choices": ["begun", "done", "failed", "rolled-back"]},
    "why": {"type": "str", "default": ""},
    "before": {"type": "dict", "default": {}},
    "settled": {"type": "bool", "default": False},
    "after": {"type": "dict", "default": {}},
    "out": {"type": "bool", "default": False},
    "undoes": {"type": "str", "default": ""},
    "ungated": {"type": "list", "elements": "str", "default": []},
    "plan": {"type": "dict", "default": {}},
    "info": {"type": "dict", "default": {}},
    "rehearsed": {"type": "dict", "default": {}},
    "floors": {"type": "dict", "default": {}},
    "tasks": {"type": "list", "elements": "str", "default": []},
    "limits": {"type": "list", "elements": "str", "default": []},
    "accuracy": {"type": "list", "elements": "dict", "default": []},
    "performance": {"type": "list", "elements": "dict", "default": []},
}


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_rollout."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Do one step."""
        steps: dict[str, Callable[..., dict[str, Any]]] = {
            "describe": describe,
            "arrange": arrange,
            "note": note,
            "check_gates": check_gates,
            "judge": judge,
            "tell": tell,
            "way_back": way_back,
        }
        state = RolloutState(arguments["state_dir"])
        if arguments["step"] in ("describe", "arrange"):
            refuse_in_job(variables, arguments["state_dir"])
        arguments["inventory"] = list((variables.get("groups") or {}).get("all") or [])
        found = steps[arguments["step"]](state, arguments, check=bool(self._task.check_mode))
        if found.get("lines"):
            self._display.display("\n".join(found["lines"]))
        return found


def describe(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Return what a host would change, what it serves until then, and what its verification is held against."""
    del state, check  # what was found is put into other words
    before = prepared_host.served_before(arguments["info"])
    found = {
        "changes": prepared_host.changes_of(arguments["rehearsed"]),
        "serves": prepared_host.serves(arguments["info"]),
        "before": before,
    }
    if arguments["plan"]:
        found["gates"] = prepared_host.gates_of(
            arguments["plan"],
            before["baseline_for"],
            floors=arguments["floors"],
            tasks=arguments["tasks"],
            limits=arguments["limits"],
        )
    return found


def check_gates(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Return which stages had nothing to hold a canary's results against.

    Raises:
        GpufleetError: C(nothing-to-compare), where O(require_gates) wants something.
    """
    del state, check  # it looks alone
    found = ungated_after(arguments["stages"], arguments["accuracy"], arguments["performance"])
    if found and arguments["require_gates"]:
        raise GpufleetError(
            f"vllm_rollout_require_gates is true, and {'; '.join(found)}.",
            name="nothing-to-compare",
        )
    return {"ungated": found}


def arrange(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Return the batches, and begin the rollout or go on with it.

    A rollout that was stopped, and of which the bringing back was interrupted, has nothing but that left to do.
    """
    hosts = _prepared(arguments)
    known, states = _left_by_earlier_runs(state, hosts, arguments, check=check)
    unreachable = [host for host in arguments["all_hosts"] if host not in hosts]
    found = rollout.arrange(
        hosts,
        unreachable,
        states,
        arguments["batches"],
        arguments["max_failures"],
        require_gates=arguments.get("require_gates", False),
    )
    lines = rollout_lines.arranged_lines(found)
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
        "bring_back": to_bring_back(states) if stopped else [],
        "done": found.done,
        "same": found.same,
        "refused": found.refused,
        "not_reached": found.unreachable,
    }


def _left_by_earlier_runs(
    state: RolloutState, hosts: dict[str, rollout.Prepared], arguments: dict[str, Any], *, check: bool
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what was arranged before and is not over, and the states of its hosts; bring the files to that."""
    known, states = state.settings(), state.hosts()
    if over := _why_over(known, states, hosts, arguments):
        if not check:
            state.end({"result": [over]})
        known, states = {}, {host: {**states[host], "state": rollout.OUT} for host in rollout.still_out(states)}
    elif known.get("stopped"):
        # Those that could not be brought back get no requests: they come first, so that others may be taken out.
        for host in set(rollout.still_out(states)) & set(hosts):
            states[host] = {**states[host], "state": rollout.BEGUN}
            if not check:
                state.save_host(host, state=rollout.BEGUN)
    for host in _gone(states, arguments):
        # Nothing was done to it, or nothing can be any more.
        if states[host]["state"] in (rollout.PENDING, rollout.OUT):
            del states[host]
            if not check:
                state.drop_host(host)
    return known, states


def _why_over(
    known: dict[str, Any],
    states: dict[str, dict[str, Any]],
    hosts: dict[str, rollout.Prepared],
    arguments: dict[str, Any],
) -> str:
    """Return why an earlier rollout has nothing left to do, though no run came to tell so; empty if it has."""
    if known.get("stopped"):
        return "" if to_bring_back(states) else str(known["stopped"])
    carried_out = arguments.get("routed") and rollout.is_carried_out(states, hosts)
    return "Another playbook brought every host to what this rollout was for." if known and carried_out else ""


def _prepared(arguments: dict[str, Any]) -> dict[str, rollout.Prepared]:
    """Return what the preparation found out about each host that answered."""
    left_by, stages = arguments.get("left_by") or {}, arguments.get("stages") or []
    folder = os.path.expanduser(str(arguments.get("baseline_dir") or ""))
    stored = baseline.stored_parts(folder) if folder and "performance" in stages else []
    return {
        host: rollout.Prepared(
            plan=found.get("plan") or {},
            changes=found.get("changes") or [],
            error=str(found.get("error") or ""),
            serves=bool(found.get("serves", True)),
            served=str(found.get("served") or ""),
            left_by=left_by.get(host) or [],
            note=str(found.get("note") or ""),
            ungated=ungated_before(found["gates"], stages, stored) if found.get("gates") else [],
        )
        for host, found in arguments["hosts"].items()
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
            state=rollout.BEGUN
            if states.get(host, {}).get("state") in (rollout.BEGUN, rollout.OUT)
            else rollout.PENDING,
            wish=hosts[host].wish(),
            canary=host in canaries,
            why="",
        )


def note(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Keep what became of one host, and when its turn begins what it has until then."""
    if check:
        return {}
    host = arguments["host"]
    known = state.hosts().get(host, {})
    parts: dict[str, Any] = {"state": arguments["state"], "why": " ".join(arguments["why"].split())}
    before = _before_its_turn(known, arguments["before"], bool(arguments.get("settled")))
    if arguments["before"]:
        parts["turn_wish"] = known.get("wish", "")
    parts.update(
        after=arguments.get("after") or known.get("after") or {},
        out=bool(arguments.get("out")),
        ungated=arguments.get("ungated") or [],
    )
    state.save_host(host, **parts, before=before)
    if arguments.get("undoes") and arguments["state"] == rollout.DONE:
        undone = RolloutState(arguments["undoes"])
        if host in undone.hosts():
            undone.save_host(host, state=rollout.ROLLED_BACK, out=False)
    return {"before": before, "canary": bool(known.get("canary"))}


def _before_its_turn(known: dict[str, Any], serves: dict[str, Any], settled: bool) -> dict[str, Any]:
    """Return what a host had when its turn began.

    Args:
        known: of the host, from the run before, if that was interrupted.
        serves: what it has now, of the step describe; empty where its turn goes on.
        settled: whether it gets requests.
    """
    before: dict[str, Any] = known.get("before") or {}
    if not serves:
        return before
    # Only what an interrupted turn itself has made is no place to go back to; where requests go, it was settled since.
    interrupted = known.get("state") in (rollout.BEGUN, rollout.OUT, rollout.FAILED) and not settled
    turn = known.get("turn_wish", serves.get("wish"))  # 0.1.0 did not note it
    of_that_turn = interrupted and turn and turn == serves.get("wish")
    return before if before and of_that_turn else serves


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
        "bring_back": to_bring_back(states) if stop else [],
        "serial": [settings["largest_batch"]],
    }


def tell(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Say what became of the rollout, and end it unless hosts are left; fail if one failed."""
    settings, states = state.settings(), state.hosts()
    if check or not settings:
        return {"lines": []}
    stop = str(settings["stopped"])
    lines = rollout_lines.told_lines(states, stop)
    failed = in_order(host for host, found in states.items() if found["state"] == rollout.FAILED)
    left = rollout.left_to_do(states, bool(stop))
    if not left:
        state.end({"result": lines})
    result: dict[str, Any] = {"lines": lines, "stop": stop, "failed_hosts": failed, "left": left}
    if stop or failed or left:
        result.update(
            failed=True, msg=_message(lines, left, [host for host in _gone(states, arguments) if host in left])
        )
    return result


def way_back(state: RolloutState, arguments: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Return how far a host goes back, by the last rollout of which something is known here."""
    del check  # it looks alone
    settings, last, host = state.settings(), state.last(), arguments["host"]
    known = state.hosts().get(host) or ({} if settings else (last.get("hosts") or {}).get(host) or {})
    began = str((settings or last).get("began") or "")
    info = arguments["info"]
    wish = prepared_host.served_before(info)["wish"]
    found = find_way_back(known, began, bool(settings), info.get("deployments") or [], wish)
    return {"to": found.to, "stays": found.stays, "why": found.why}


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
